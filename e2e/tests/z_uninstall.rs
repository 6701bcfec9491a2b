//! Uninstalling gives nodes and running pods back as they were; its name makes it run last.

mod shop;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, Namespace, dynamic};
use e2e::cluster::Cluster;
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::{PodRef, conditions, eventually, wait_gone};
use e2e::replicas;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, LogParams};
use kube::{Client, ResourceExt as _};
use tokio::time::Instant;

use shop::{AMBIENT, GATEWAY_API, SOON, START, WAYPOINT_PODS};

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
        let client = shop::open(ns).await?;
        shop::bind(ns, &client).await?;
        let pods = [vec![client.clone()], ns.pods("app=web").await?].concat();
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

        // First: a waypoint's pod that drains still listens where ztunnel would in others.
        no_waypoint(ns).await?;
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
        no_classes(ns.client()).await?;
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

/// Controllers that were restarted and find no signing key serve nobody, but hold nothing up.
#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn without_a_signing_key_the_mesh_still_goes() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let before = replicas::ready(&client).await?;
    secrets.delete("ambit-ca", &DeleteParams::default()).await?;
    for replica in &before {
        replica.delete(true).await?;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let which = ListParams::default().labels("app.kubernetes.io/name=ambit-controller");
    eventually("controllers look for the key", START, async || {
        for pod in pods.list(&which).await? {
            let old = before
                .iter()
                .any(|replica| replica.pod.name() == pod.name_any());
            ensure!(!old, "still {}", pod.name_any());
            let log = pods.logs(&pod.name_any(), &LogParams::default()).await?;
            ensure!(log.contains("no signing key"), "{log}");
        }
        Ok(())
    })
    .await?;
    let began = Instant::now();
    e2e::mesh::uninstall(&cluster).await?;
    println!("gone after {:.1} s", began.elapsed().as_secs_f32());
    no_classes(&client).await
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

/// The Gateway is the user's and stays, without a word of ours; what was made for it is gone.
async fn no_waypoint(ns: &Namespace) -> Result<()> {
    let made = "waypoint";
    ensure!(ns.api::<Deployment>().get_opt(made).await?.is_none());
    ensure!(ns.api::<Service>().get_opt(made).await?.is_none());
    ensure!(ns.api::<ServiceAccount>().get_opt(made).await?.is_none());
    let maps = ns.api::<ConfigMap>().list(&ListParams::default()).await?;
    let names: Vec<_> = maps
        .items
        .into_iter()
        .map(|map| map.metadata.name)
        .collect();
    ensure!(
        names == [Some("kube-root-ca.crt".to_owned())],
        "left: {names:?}"
    );
    // A pod may take its time to end; those that have begun to are meant, too.
    let pods = ns.api::<Pod>();
    let ending = pods
        .list_metadata(&ListParams::default().labels(WAYPOINT_PODS))
        .await?;
    for pod in ending.items {
        wait_gone(pods.clone(), &pod.name_any(), START).await?;
    }
    let gateways = dynamic(ns.client(), GATEWAY_API, "Gateway", Some(ns.name())).await?;
    let told = conditions(&gateways.get("waypoint").await?);
    ensure!(
        !told.iter().any(|[_, status, ..]| status == "True"),
        "{told:?}"
    );
    let told = conditions(&ns.api::<Service>().get("web").await?);
    ensure!(
        !told.iter().any(|[kind, ..]| kind.starts_with("istio.io/")),
        "{told:?}"
    );
    Ok(())
}

async fn no_classes(client: &Client) -> Result<()> {
    let classes = dynamic(client, GATEWAY_API, "GatewayClass", None).await?;
    let left = classes.list(&ListParams::default()).await?.items;
    let left: Vec<_> = left.into_iter().filter_map(|c| c.metadata.name).collect();
    ensure!(
        !left.iter().any(|name| name.ends_with("-waypoint")),
        "left: {left:?}"
    );
    Ok(())
}
