//! The promises of layer 4, on the real cluster: enrolment, new pods, every pair of ends; all of it needs the cluster.

#[path = "l4/enrol.rs"]
mod enrol;
#[path = "l4/newpod.rs"]
mod newpod;
#[path = "l4/pairs.rs"]
mod pairs;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::capture::{Capture, Captured, Packet};
use e2e::cluster::Cluster;
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::{PodRef, eventually, has_condition};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::time::Instant;

/// What puts a namespace into the mesh.
const LABEL: (&str, &str) = ("istio.io/dataplane-mode", "ambient");
/// The condition that says a pod is in it.
const IN_MESH: &str = "ambit.mesh/InMesh";
/// Tunnels arrive here.
const HBONE: u16 = 15008;
/// A pod's start, its image being there, on a slow machine.
const START: Duration = Duration::from_secs(120);
/// A change of the mesh, on a slow machine.
const CHANGE: Duration = Duration::from_secs(60);

/// When something was first seen on the wire.
type Seen = Arc<OnceLock<Instant>>;

/// Waits until the pod's status says that it is in the mesh.
async fn wait_in_mesh(pod: &PodRef) -> Result<()> {
    pod.wait("in the mesh", CHANGE, |pod| {
        has_condition(pod, IN_MESH, "True")
    })
    .await
    .map(drop)
}

/// Captures what travels between these two, in either direction.
fn capture_between(cluster: &Cluster, one: &[IpAddr], other: &[IpAddr]) -> Result<Capture> {
    let (one, other) = (one.to_vec(), other.to_vec());
    cluster.underlay_capture(move |packet| {
        let (from, to) = (packet.from.ip(), packet.to.ip());
        (one.contains(&from) && other.contains(&to)) || (other.contains(&from) && one.contains(&to))
    })
}

/// Sends one request with a marker in a header, and returns what travelled between the two meanwhile, and the marker.
async fn ask_marked(
    cluster: &Cluster,
    client: &PodRef,
    server: &PodRef,
    url: &str,
) -> Result<(Captured, String)> {
    let marker = marker();
    let capture = capture_between(cluster, &client.ips().await?, &server.ips().await?)?;
    let answer = client
        .ask(&[url, "-H", &format!("X-Marker:{marker}")])
        .await?;
    let captured = capture.stop();
    let came = answer
        .first()
        .and_then(|one| one.request_header("x-marker"));
    ensure!(
        came.as_deref() == Some(&*marker),
        "the request did not arrive as it was sent: {came:?}"
    );
    Ok((captured, marker))
}

/// Bytes that occur nowhere else.
fn marker() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("marker-{}-{number}-end", std::process::id())
}

/// Can the marker be read on the wire, and does anything travel in a tunnel?
fn looks(captured: &Captured, marker: &str) -> (bool, bool) {
    let tunnelled = |packet: &Packet| packet.to.port() == HBONE && !packet.payload.is_empty();
    (
        !captured.containing(marker.as_bytes()).is_empty(),
        captured.packets.iter().any(tunnelled),
    )
}

/// The ztunnel of a node.
async fn ztunnel(client: &kube::Client, node: &str) -> Result<PodRef> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let chosen = ListParams::default()
        .labels("app.kubernetes.io/name=ztunnel")
        .fields(&format!("spec.nodeName={node}"));
    let list = pods.list(&chosen).await?;
    let name = list
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .find_map(|pod| pod.metadata.name)
        .with_context(|| format!("no ztunnel on {node}"))?;
    Ok(PodRef::new(client, SYSTEM_NAMESPACE, &name))
}

/// Waits until every pod that the selector chooses serves on each of its addresses, asked from `client`.
async fn wait_answers(client: &PodRef, url: &str) -> Result<()> {
    eventually(url, CHANGE, async || client.ask_once(url).await)
        .await
        .map(drop)
}
