//! A new pod of a mesh namespace is in the mesh before its first instruction, or does not start.

use anyhow::{Context, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace, apply_objects};
use e2e::capture::Capture;
use e2e::cluster::Cluster;
use e2e::images::ECHO_IMAGE;
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::{PodRef, eventually};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use super::{CHANGE, LABEL, START, marker, wait_answers, wait_in_mesh};

/// So many new pods, one after the other.
const NEWCOMERS: usize = 3;

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_new_pod_sends_nothing_in_plaintext() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "l4-plain", &[], async |ns| {
        target(ns).await?;
        let (seen, _) = newcomer(&cluster, ns, "first").await?;
        ensure!(
            seen > 0,
            "outside the mesh the capture should read the first request"
        );
        Ok(())
    })
    .await?;
    Namespace::within(&client, "l4-newpod", &[LABEL], async |ns| {
        let server = target(ns).await?;
        wait_in_mesh(&server).await?;
        for number in 1..=NEWCOMERS {
            let (seen, tries) = newcomer(&cluster, ns, &format!("newcomer-{number}")).await?;
            println!("new pod {number}: its first request in {seen} readable packets, init container restarted {tries} times");
            ensure!(seen == 0, "a new pod's first request is readable on the wire");
            ensure!(tries == 0, "a new pod's first request failed");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn without_ztunnel_only_new_pods_of_the_mesh_wait() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "l4-held", &[LABEL], async |ns| {
        let server = target(ns).await?;
        wait_in_mesh(&server).await?;
        Namespace::within(&client, "l4-free", &[], async |free| {
            let capture = readable(&cluster, "marker-")?;
            place_ztunnel(ns, "none").await?;
            let held = held(ns, free).await;
            // Whatever came out, the next test wants it back.
            place_ztunnel(ns, "linux").await?;
            e2e::mesh::serving(&client).await?;
            let pod = held?;
            pod.wait_ready(START).await?;
            println!("ztunnel is back: the pod that was held runs");
            let seen = capture.stop().packets.len();
            ensure!(seen == 0, "{seen} packets of the held pod are readable");
            Ok(())
        })
        .await
    })
    .await
}

/// Two new pods while there is no ztunnel: the one of the mesh, waiting.
async fn held(ns: &Namespace, free: &Namespace) -> Result<PodRef> {
    let pods: Api<Pod> = Api::namespaced(ns.client().clone(), SYSTEM_NAMESPACE);
    let gone = ListParams::default().labels("app.kubernetes.io/name=ztunnel");
    eventually("the end of every ztunnel", START, async || {
        let left = pods.list_metadata(&gone).await?.items.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    let pod = start(ns, "held", &marker()).await?;
    let why = ns.wait_event("held", "ztunnel", START).await?;
    println!("without ztunnel: {why}");
    ensure!(
        why.contains("not running") && why.contains(ns.name()),
        "{why}"
    );
    let outside = free
        .run(&EchoClient::new("free").on("worker-1"), START)
        .await?;
    outside.wait_ready(START).await?;
    println!("without ztunnel: a pod of another namespace runs");
    let status = pod.get().await?.status.unwrap_or_default();
    let begun = status.init_container_statuses.unwrap_or_default();
    ensure!(
        begun
            .iter()
            .all(|one| one.started != Some(true) && one.container_id.is_none()),
        "the pod should wait: {begun:?}"
    );
    Ok(pod)
}

/// Lets ztunnel run on nodes with this operating system: `none` is no node.
///
/// The value is one that `kubectl apply` puts back, should this test never come to do it.
async fn place_ztunnel(ns: &Namespace, system: &str) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(ns.client().clone(), SYSTEM_NAMESPACE);
    let patch =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": system}}}}});
    sets.patch("ztunnel", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .context("ztunnel's nodes")?;
    Ok(())
}

/// Whom the new pods ask, and an answer from it.
async fn target(ns: &Namespace) -> Result<PodRef> {
    ns.serve(&EchoServer::new("echo", "v1").on("worker-2"), START)
        .await?;
    let client = ns
        .run(&EchoClient::new("early").on("worker-1"), START)
        .await?;
    wait_answers(&client, "http://echo-v1/").await?;
    Ok(ns.pods("app=echo").await?.remove(0))
}

/// Starts a pod and waits until it runs: in how many packets its first request can be read, how often it was repeated.
async fn newcomer(cluster: &Cluster, ns: &Namespace, name: &str) -> Result<(usize, i32)> {
    let marker = marker();
    let capture = readable(cluster, &marker)?;
    let pod = start(ns, name, &marker).await?;
    let pod = pod.wait_ready(START).await?;
    let inits = pod
        .status
        .unwrap_or_default()
        .init_container_statuses
        .unwrap_or_default();
    let tries = inits.first().context("no init container")?.restart_count;
    Ok((capture.stop().packets.len(), tries))
}

/// Captures the packets between machines in which the marker can be read; etcd's, on loopback, hold the pod's spec.
fn readable(cluster: &Cluster, marker: &str) -> Result<Capture> {
    let marker = marker.as_bytes().to_vec();
    cluster.underlay_capture(move |packet| {
        let readable = || {
            packet
                .payload
                .windows(marker.len())
                .any(|part| part == marker)
        };
        !packet.from.ip().is_loopback() && readable()
    })
}

/// A pod whose first instruction sends the marker.
async fn start(ns: &Namespace, name: &str, marker: &str) -> Result<PodRef> {
    let ask = [
        "/usr/local/bin/client",
        "http://echo-v1/",
        "-H",
        &format!("X-Marker:{marker}"),
    ];
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "worker-1"},
            "terminationGracePeriodSeconds": 1,
            "initContainers": [{"name": "first", "image": ECHO_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ask}],
            "containers": [{
                "name": "echo",
                "image": ECHO_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/usr/local/bin/ambit-echo", "sleep"],
            }],
        },
    });
    apply_objects(ns.client(), Some(ns.name()), [pod]).await?;
    eventually("the pod", CHANGE, async || ns.pod(name).get().await).await?;
    Ok(ns.pod(name))
}
