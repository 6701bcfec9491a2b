//! A node that joins is kept free of pods until its ztunnel is ready (B16), and of a node the controller writes that taint
//! alone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::{eventually, wait_gone};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::admission::{patch, refused};

/// What goes over the API server, the scheduler and the controllers.
const SOON: Duration = Duration::from_secs(45);
/// A node that is only an object: no kubelet stands behind it.
const NAME: &str = "worker-joining";
const TAINT: &str = "ambit.mesh/not-ready";

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_node_that_joins_gets_no_pods_before_its_ztunnel_is_ready() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let user = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:ambit-controller");
    let as_controller = cluster.client_as(&user, &[]).await?;
    let nodes = Api::<Node>::all(client.clone());
    take_away(&client).await?;
    // Unschedulable, so that nothing but DaemonSets ever comes there.
    let node = serde_json::from_value(json!({
        "metadata": {"name": NAME, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": NAME}},
        "spec": {"unschedulable": true, "taints": [{"key": "theirs", "effect": "NoSchedule"}]},
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    // Without room the scheduler would not even bind a DaemonSet's pod.
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "10"});
    let status = json!({"status": {"capacity": room, "allocatable": room}});
    nodes
        .patch_status(NAME, &PatchParams::default(), &Patch::Merge(&status))
        .await?;
    let joined = Box::pin(joins(&client, &as_controller)).await;
    let gone = take_away(&client).await;
    joined.and(gone)
}

async fn joins(client: &Client, as_controller: &Client) -> Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    tainted(&nodes, true).await?;
    its_taint_alone(as_controller).await?;

    // Ready, and its ztunnel is not yet.
    let ztunnel = eventually("a ztunnel on the node", SOON, async || {
        ztunnels(client).await?.pop().context("none yet")
    })
    .await?;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
    let how = PatchParams::default();
    nodes
        .patch_status(NAME, &how, &Patch::Strategic(&ready))
        .await?;
    let node = nodes.get(NAME).await?;
    ensure!(has_taint(&node), "ready without a ztunnel: {:?}", node.spec);

    let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    pods.patch_status(&ztunnel, &how, &Patch::Strategic(&ready))
        .await?;
    tainted(&nodes, false).await?;
    let taints = nodes.get(NAME).await?.spec.and_then(|spec| spec.taints);
    let theirs = taints
        .into_iter()
        .flatten()
        .any(|taint| taint.key == "theirs");
    ensure!(theirs, "somebody else's taint went");
    Ok(())
}

async fn its_taint_alone(as_controller: &Client) -> Result<()> {
    let nodes = Api::<Node>::all(as_controller.clone());
    for change in [
        json!({"metadata": {"labels": {"touched": "by-the-controller"}}}),
        json!({"metadata": {"annotations": {"touched": "by the controller"}}}),
        json!({"spec": {"unschedulable": null}}),
        json!({"spec": {"taints": [{"key": "other", "effect": "NoExecute"}]}}),
        json!({"spec": {"taints": []}}),
    ] {
        let tried = patch(&nodes, NAME, &change).await;
        refused(tried, "of a node the controller writes only")
            .with_context(|| change.to_string())?;
    }
    Ok(())
}

async fn tainted(nodes: &Api<Node>, wanted: bool) -> Result<()> {
    let what = if wanted { "tainted" } else { "given free" };
    eventually(what, SOON, async || {
        let node = nodes.get(NAME).await?;
        ensure!(has_taint(&node) == wanted, "{:?}", node.spec);
        Ok(())
    })
    .await
}

fn has_taint(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == TAINT))
}

/// The names of the ztunnels on the node.
async fn ztunnels(client: &Client) -> Result<Vec<String>> {
    named(client, |node| node == Some(NAME)).await
}

/// The names of the ztunnels whose node, if they have one yet, is such.
async fn named(client: &Client, is: impl Fn(Option<&str>) -> bool) -> Result<Vec<String>> {
    let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/name=ztunnel");
    let pods = pods.list(&ours).await?;
    let such = pods.items.iter().filter(|pod| {
        let spec = pod.spec.as_ref();
        is(spec.and_then(|spec| spec.node_name.as_deref()))
    });
    Ok(such.map(ResourceExt::name_any).collect())
}

/// The node, and the pods that no kubelet will ever say are gone.
async fn take_away(client: &Client) -> Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    if nodes.get_opt(NAME).await?.is_some() {
        nodes.delete(NAME, &DeleteParams::default()).await?;
    }
    wait_gone(nodes, NAME, SOON).await?;
    let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    eventually("its pods gone", SOON, async || {
        // One that was never bound would wait for the node for ever.
        let names = named(client, |node| node.is_none_or(|node| node == NAME)).await?;
        for name in &names {
            let at_once = DeleteParams::default().grace_period(0);
            // Its DaemonSet may have been faster; whether it is gone is asked again.
            drop(pods.delete(name, &at_once).await);
        }
        ensure!(names.is_empty(), "{names:?}");
        Ok(())
    })
    .await
}
