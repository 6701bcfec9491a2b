//! Only the controller's word gives a node back: rights that go and pods deleted by force leave its pods in the mesh.

mod callers;
mod shop;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::Namespace;
use e2e::capture::Capture;
use e2e::cluster::Cluster;
use e2e::echo::LoadSummary;
use e2e::mesh::kubectl;
use e2e::probe::{PodRef, Run, eventually, has_condition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, DeleteParams};

use callers::ztunnel_of;
use shop::{AMBIENT, SOON, START};

/// Of these addresses, those whose pods' connections are redirected, one a line; then the CNI configurations.
const REDIRECTED: &str = r#"for n in /run/netns/*; do
  if nsenter --net="$n" nft list table inet ambit >/dev/null 2>&1; then
    for ip in "$@"; do nsenter --net="$n" ip -o addr | grep -oF " $ip/"; done
  fi
done; ls /etc/cni/net.d; grep -l ambit /etc/cni/net.d/*"#;

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn rights_that_go_and_force_leave_a_nodes_pods_in_the_mesh() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let worked = Namespace::within(&client, "stays", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        let server = ns.pods("app=web,version=v2").await?.remove(0);
        // Only these: pods of tests before this one may still be on their way out.
        let mut ips = Vec::new();
        for pod in [vec![asks.clone()], ns.pods("app=web").await?].concat() {
            ips.extend(pod.ips().await?.iter().map(ToString::to_string));
        }
        for end in [End::InGoodOrder, End::ByForce, End::ByForceWithoutRights] {
            Box::pin(restarted(&cluster, (&asks, &server), &ips, end)).await?;
        }
        Ok(())
    })
    .await;
    // Whatever failed, the tests after this one find the rights; those to uninstall are the controllers' to restore.
    e2e::mesh::install(&cluster).await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client);
    eventually("the rights to uninstall", START, async || {
        let there = bindings.get_opt("ambit-controller-uninstall").await?;
        there.map(drop).context("nobody has them")
    })
    .await?;
    worked
}

/// How a ztunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    InGoodOrder,
    ByForce,
    /// The controller may ask Kubernetes nothing: it can neither know its successor nor say that the mesh goes.
    ByForceWithoutRights,
}

/// The ztunnel of the client's node goes and comes again; its pods stay redirected, and nothing travels in plaintext.
async fn restarted(
    cluster: &Cluster,
    (asks, server): (&PodRef, &PodRef),
    ips: &[String],
    end: End,
) -> Result<()> {
    let old = ztunnel_of(asks).await?;
    let node = old.get().await?.spec.and_then(|spec| spec.node_name);
    let node = node.context("a pod without node")?;
    let before = redirected(cluster, &node, ips)?;
    let client = format!(" {}/", asks.ips().await?.remove(0));
    ensure!(
        before.contains(&client),
        "the client is not redirected: {before}"
    );
    let url = format!("http://{}:8080/", server.ips().await?.remove(0));
    let (capture, load) = watched(cluster, asks, server, &url).await?;
    let how = match end {
        End::InGoodOrder => DeleteParams::default(),
        End::ByForce => DeleteParams::default().grace_period(0),
        End::ByForceWithoutRights => {
            let args = ["delete", "clusterrolebinding"];
            let both = ["ambit-controller", "ambit-controller-uninstall"];
            kubectl(cluster, &[args, both].concat())?;
            DeleteParams::default().grace_period(0)
        }
    };
    old.api().delete(old.name(), &how).await?;
    let mut given_back = None;
    eventually("another ztunnel", START, async || {
        // Seen once is enough, whatever the successor mends.
        let now = redirected(cluster, &node, ips)?;
        if now != before {
            given_back.get_or_insert(now);
        }
        let new = ztunnel_of(asks).await?;
        ensure!(new.name() != old.name(), "still the old one");
        let there = match end {
            // Nobody can tell it anything yet.
            End::ByForceWithoutRights => runs(&new.get().await?),
            _ => has_condition(&new.get().await?, "Ready", "True"),
        };
        ensure!(there, "it is not there yet");
        Ok(())
    })
    .await?;
    if end == End::ByForceWithoutRights {
        e2e::mesh::install(cluster).await?;
    }
    ensure!(
        given_back.is_none() && redirected(cluster, &node, ips)? == before,
        "the node was given back: before:\n{before}then:\n{given_back:?}"
    );
    eventually("an answer", SOON, async || asks.ask_once(&url).await).await?;
    let load = load.stop().await?;
    let readable = capture.stop().packets.len();
    println!(
        "{end:?}: {} requests, {} failed, {readable} readable",
        load.sent, load.failed
    );
    ensure!(readable == 0, "{readable} packets in plaintext");
    // In good order the successor takes over. By force there is none for a moment, and new connections wait.
    ensure!(end != End::InGoodOrder || load.failed == 0, "{load:?}");
    Ok(())
}

fn redirected(cluster: &Cluster, node: &str, ips: &[String]) -> Result<String> {
    let ips = ips.iter().map(String::as_str);
    let argv: Vec<&str> = ["sh", "-c", REDIRECTED, "redirected"]
        .into_iter()
        .chain(ips)
        .collect();
    cluster.node_exec(node, &argv)
}

/// Have its containers been started?
fn runs(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let started = status.container_statuses.unwrap_or_default();
    !started.is_empty() && started.iter().all(|one| one.started == Some(true))
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
