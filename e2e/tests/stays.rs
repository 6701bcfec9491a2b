//! Only the controller's word gives a node back: rights that go and pods deleted by force leave its pods in the mesh.

mod callers;
mod shop;

use anyhow::{Result, ensure};
use e2e::apps::Namespace;
use e2e::capture::Capture;
use e2e::cluster::Cluster;
use e2e::echo::LoadSummary;
use e2e::mesh::{SYSTEM_NAMESPACE, kubectl};
use e2e::probe::{PodRef, Run, eventually, has_condition};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;

use callers::ztunnel_of;
use shop::{AMBIENT, SOON, START};

/// The network namespaces of a node whose connections are redirected, one a line.
const REDIRECTED: &str = r#"for n in /run/netns/*; do
  if nsenter --net="$n" nft list table inet ambit >/dev/null 2>&1; then echo "$n"; fi
done; ls /etc/cni/net.d; grep -l ambit /etc/cni/net.d/*"#;

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn rights_that_go_and_force_leave_a_nodes_pods_in_the_mesh() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let worked = Namespace::within(&client, "stays", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        let server = ns.pods("app=web,version=v2").await?.remove(0);
        // Whatever rights a node proxy or the controller has, somebody takes them away.
        for (kind, name) in [
            ("clusterrolebinding", "ambit-controller"),
            ("clusterrolebinding", "ambit-controller-uninstall"),
            ("rolebinding", "ambit-controller"),
            ("rolebinding", "ztunnel"),
        ] {
            let args = [
                "-n",
                SYSTEM_NAMESPACE,
                "delete",
                "--ignore-not-found",
                kind,
                name,
            ];
            kubectl(&cluster, &args)?;
        }
        for by_force in [false, true] {
            Box::pin(restarted(&cluster, &asks, &server, by_force)).await?;
        }
        Ok(())
    })
    .await;
    // Whatever failed, the tests after this one find the rights.
    e2e::mesh::install(&cluster).await?;
    worked
}

/// The ztunnel of the client's node goes and comes again; its pods stay redirected, and nothing travels in plaintext.
async fn restarted(
    cluster: &Cluster,
    asks: &PodRef,
    server: &PodRef,
    by_force: bool,
) -> Result<()> {
    let old = ztunnel_of(asks).await?;
    let node = old
        .get()
        .await?
        .spec
        .and_then(|spec| spec.node_name)
        .unwrap_or_default();
    let redirected = || cluster.node_exec(&node, &["sh", "-c", REDIRECTED]);
    let before = redirected()?;
    ensure!(
        before.contains("/run/netns/"),
        "nobody is redirected: {before}"
    );
    let ip = server.ips().await?.remove(0);
    let url = format!("http://{ip}:8080/");
    let (capture, load) = watched(cluster, asks, server, &url).await?;
    let how = if by_force {
        DeleteParams::default().grace_period(0)
    } else {
        DeleteParams::default()
    };
    old.api().delete(old.name(), &how).await?;
    let mut given_back = None;
    eventually("another ztunnel", START, async || {
        // Seen once is enough, whatever the successor mends.
        let now = redirected()?;
        if now != before {
            given_back.get_or_insert(now);
        }
        let new = ztunnel_of(asks).await?;
        ensure!(new.name() != old.name(), "still the old one");
        ensure!(
            has_condition(&new.get().await?, "Ready", "True"),
            "not ready"
        );
        Ok(())
    })
    .await?;
    ensure!(
        given_back.is_none() && redirected()? == before,
        "the node was given back: before:\n{before}then:\n{given_back:?}"
    );
    eventually("an answer", SOON, async || asks.ask_once(&url).await).await?;
    let load = load.stop().await?;
    let readable = capture.stop().packets.len();
    println!(
        "by force: {by_force}: {} requests, {} failed, {readable} readable",
        load.sent, load.failed
    );
    ensure!(readable == 0, "{readable} packets in plaintext");
    // In good order the successor takes over. By force there is none for a moment, and new connections wait.
    ensure!(by_force || load.failed == 0, "{load:?}");
    asks.wait("in the mesh", SOON, |pod: &Pod| {
        has_condition(pod, "ambit.mesh/InMesh", "True")
    })
    .await
    .map(drop)
}

/// Requests with a marker, and the packets in which it can be read.
async fn watched(
    cluster: &Cluster,
    asks: &PodRef,
    server: &PodRef,
    url: &str,
) -> Result<(Capture, Run<LoadSummary>)> {
    let marker = format!("marker-{}-end", std::process::id());
    let header = format!("X-Marker:{marker}");
    let ends = [asks.ips().await?, server.ips().await?].concat();
    let capture = cluster.underlay_capture(move |packet| {
        let mut parts = packet.payload.windows(marker.len());
        ends.contains(&packet.to.ip()) && parts.any(|bytes| bytes == marker.as_bytes())
    })?;
    let load = asks.load_with(url, 20, &["-H", &header]).await?;
    Ok((capture, load))
}
