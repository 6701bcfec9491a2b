//! Uninstalling gives nodes and running pods back as they were; its name makes it run last.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace, dynamic};
use e2e::cluster::Cluster;
use e2e::probe::{PodRef, conditions, eventually, has_condition};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(90);
/// What goes over the API server and the controller.
const SOON: Duration = Duration::from_secs(45);
const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// What of ours is in any pod's network namespace of a node.
const IN_PODS: &str = r#"
for netns in /run/netns/*; do
  in="nsenter --net=$netns"
  { $in nft list tables; $in ip rule; $in ip -6 rule; $in ss -ltnH; } 2>&1 |
    grep -E 'ambit|lookup 100|:(15001|15006|15008) ' | sed "s|^|$netns: |"
done
true"#;
/// What of ours is on a node.
const ON_NODE: &str = r"
grep -l ambit /etc/cni/net.d/* 2>/dev/null
find /opt/cni/bin /etc/cni/net.d -name '*ambit*'
find /var/lib/ambit /run/ambit -not -type d 2>/dev/null
true";

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn nodes_and_pods_are_given_back_as_they_were() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "leave", &[AMBIENT], async |ns| {
        let (v1, v2) = (
            EchoServer::new("web", "v1").on("worker-1"),
            EchoServer::new("web", "v2").on("worker-2"),
        );
        ns.deploy(&v1).await?;
        let client = ns.start(&EchoClient::new("client").on("worker-1")).await?;
        ns.serve(&v2, START).await?;
        ns.serve(&v1, START).await?;
        let pods = [vec![client.clone()], ns.pods("app=web").await?].concat();
        for pod in &pods {
            pod.wait("in the mesh", START, |pod: &Pod| {
                has_condition(pod, "ambit.mesh/InMesh", "True")
                    && has_condition(pod, "Ready", "True")
            })
            .await?;
        }
        for node in &cluster.nodes {
            ensure!(
                !found(&cluster, &node.name, IN_PODS)?.is_empty(),
                "nothing to take"
            );
            ensure!(
                !found(&cluster, &node.name, ON_NODE)?.is_empty(),
                "nothing to take"
            );
        }
        let before = containers(&pods).await?;
        let load = client.load("http://web/", 50).await?;

        e2e::mesh::uninstall(&cluster).await?;

        for node in &cluster.nodes {
            for what in [IN_PODS, ON_NODE] {
                let left = found(&cluster, &node.name, what)?;
                ensure!(left.is_empty(), "left on {}:\n{left}", node.name);
            }
        }
        for pod in &pods {
            let object = pod.get().await?;
            let annotations = object.metadata.annotations.clone().unwrap_or_default();
            ensure!(
                !annotations.contains_key("ambient.istio.io/redirection"),
                "{annotations:?}"
            );
            let told = conditions(&object);
            ensure!(
                !told
                    .iter()
                    .any(|[kind, ..]| kind.starts_with("ambit.mesh/")),
                "{told:?}"
            );
        }
        no_classes(ns).await?;
        ensure!(before == containers(&pods).await?, "a pod was restarted");
        // A new pod needs nothing of the mesh.
        ns.run(&EchoClient::new("late"), START).await?;
        eventually("an answer", SOON, async || {
            client.ask_once("http://web/").await
        })
        .await?;
        let load = load.stop().await?;
        println!(
            "uninstalling: {} requests, {} failed, slowest {:.0} ms",
            load.sent, load.failed, load.latency_max_ms
        );
        ensure!(load.failed == 0 && load.ok == load.sent, "{load:?}");
        Ok(())
    })
    .await
}

fn found(cluster: &Cluster, node: &str, script: &str) -> Result<String> {
    let found = cluster.node_exec(node, &["sh", "-c", script]);
    Ok(found.context("looking at a node")?.trim().to_owned())
}

async fn containers(pods: &[PodRef]) -> Result<Vec<(String, i32)>> {
    let mut all = Vec::new();
    for pod in pods {
        all.extend(pod.containers().await?);
    }
    Ok(all)
}

async fn no_classes(ns: &Namespace) -> Result<()> {
    let version = "gateway.networking.k8s.io/v1";
    let classes = dynamic(ns.client(), version, "GatewayClass", None).await?;
    let left = classes.list(&ListParams::default()).await?.items;
    let left: Vec<_> = left.into_iter().filter_map(|c| c.metadata.name).collect();
    ensure!(
        !left.iter().any(|name| name.ends_with("-waypoint")),
        "left: {left:?}"
    );
    Ok(())
}
