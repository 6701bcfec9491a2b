//! The replica storm: controllers killed and rolled in turn, while everything they are told about changes, under load.

mod changes;
mod enrolled;
mod harm;
mod report;

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use report::Report;

use crate::apps::{EchoClient, EchoServer, Namespace, apply_objects, dynamic, service};
use crate::capture::Capture;
use crate::cluster::Cluster;
use crate::probe::{self, PodRef, eventually, has_condition, wait_until};
use crate::replicas;

/// Requests per second on each of the two ways: straight, and through the waypoint.
const RATE: u32 = 25;
/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Until a change that the controller has to notice is everywhere.
const SETTLED: Duration = Duration::from_secs(60);
/// How many controllers there are.
const REPLICAS: usize = 2;
/// How many pods come and go.
const CHURNING: u32 = 3;
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const MODE: &str = "istio.io/dataplane-mode";
const IN_MESH: &str = "ambit.mesh/InMesh";

/// Where the storm takes place.
struct Scene<'a> {
    cluster: &'a Cluster,
    ns: &'a Namespace,
    /// Sends the requests, and stays.
    client: PodRef,
}

/// Runs the storm for so long (and until each harm was done) in a namespace of its own, and says how it went.
pub async fn run(cluster: &Cluster, client: &Client, lasts: Duration) -> Result<Report> {
    Namespace::within(client, "soak", &[(MODE, "ambient")], async |ns| {
        let scene = Scene {
            cluster,
            ns,
            client: set_up(ns).await?,
        };
        Box::pin(storm(&scene, lasts)).await
    })
    .await
}

/// Servers that stay and servers that come and go, a waypoint before one of their two Services, and a client.
async fn set_up(ns: &Namespace) -> Result<PodRef> {
    let stay = [
        EchoServer::new("web", "v1").on("worker-1"),
        EchoServer::new("web", "v2").on("worker-2"),
    ];
    let churn = EchoServer::new("web", "v3").replicas(CHURNING);
    for server in stay.iter().chain([&churn]) {
        ns.deploy(server).await?;
    }
    let client = ns.start(&EchoClient::new("client").on("worker-1")).await?;
    ns.start(&EchoClient::new(changes::BYSTANDER).on("worker-2"))
        .await?;
    for server in stay.iter().chain([&churn]) {
        ns.serve(server, START).await?;
    }
    let mut routed = service(changes::ROUTED, &json!({"app": "web"}), false);
    routed["metadata"]["labels"] = json!({"istio.io/use-waypoint": "waypoint"});
    let gateway = json!({"apiVersion": GATEWAY_API, "kind": "Gateway", "metadata": {"name": "waypoint"},
        "spec": {"gatewayClassName": "ambit-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}});
    let route = changes::route(0);
    apply_objects(ns.client(), Some(ns.name()), [gateway, routed, route]).await?;
    let gateways = dynamic(ns.client(), GATEWAY_API, "Gateway", Some(ns.name())).await?;
    wait_until(gateways, "waypoint", "programmed", START, |gateway| {
        has_condition(gateway, "Programmed", "True")
    })
    .await?;
    all_in_mesh(ns).await?;
    for url in ["http://web/", "http://routed/"] {
        eventually(url, SETTLED, async || client.ask_once(url).await).await?;
    }
    Ok(client)
}

/// Waits until every pod that is to be in the mesh is.
async fn all_in_mesh(ns: &Namespace) -> Result<()> {
    eventually("all pods in the mesh", SETTLED, async || {
        for pod in ns.pods("app").await? {
            let object = pod.get().await?;
            let wanted = pod.name() != changes::BYSTANDER;
            anyhow::ensure!(
                !wanted || in_mesh(&object),
                "{}: {:?}",
                pod.name(),
                probe::conditions(&object)
            );
        }
        Ok(())
    })
    .await
}

fn in_mesh(pod: &Pod) -> bool {
    has_condition(pod, IN_MESH, "True")
}

async fn storm(scene: &Scene<'_>, lasts: Duration) -> Result<Report> {
    let client = scene.ns.client();
    replicas::wait_led(client, REPLICAS, START).await?;
    let before = replicas::leadership(client).await?;
    let marker = format!("soak-{}-marker", std::process::id());
    let (capture, readable) = read_along(scene.cluster, &marker)?;
    let enrolled = enrolled::Watch::begin(scene.ns);
    let header = format!("X-Marker:{marker}");
    let straight = scene
        .client
        .load_with("http://web/", RATE, &["-H", &header])
        .await?;
    let routed = scene
        .client
        .load_with("http://routed/", RATE, &["-H", &header])
        .await?;

    let began = Instant::now();
    let (enough, over) = (CancellationToken::new(), CancellationToken::new());
    let (made, harm, ()) = tokio::join!(
        changes::make(scene, &over),
        async {
            let harm = harm::do_it(scene, &enough).await;
            over.cancel();
            harm
        },
        async {
            // This is how long the storm lasts at least, not a wait for something.
            tokio::time::sleep(lasts).await;
            enough.cancel();
        }
    );
    let took = began.elapsed();
    let harm = harm.context("taking controllers away")?;
    let settled = all_in_mesh(scene.ns).await;
    let loads = [straight.stop().await?, routed.stop().await?];
    capture.stop();
    let seen = enrolled.end().await?;
    let readable = readable.into_iter().map(|packet| tell(&packet, &seen));
    let after = replicas::leadership(client).await?;
    Ok(Report {
        took,
        loads,
        left: seen.left.clone(),
        never_in: settled.err().map(|why| format!("{why:#}")),
        readable: readable.collect(),
        leader_changes: after.transitions - before.transitions,
        changes: made,
        harm,
    })
}

/// A packet in which a request could be read: whom it was for, and when.
type Readable = (SocketAddr, Instant);

/// Notes the packets between the nodes in which the marker can be read.
fn read_along(cluster: &Cluster, marker: &str) -> Result<(Capture, mpsc::Receiver<Readable>)> {
    let (found, readable) = mpsc::channel();
    let marker = marker.as_bytes().to_owned();
    let capture = cluster.underlay_capture(move |packet| {
        let mut parts = packet.payload.windows(marker.len());
        if parts.any(|bytes| bytes == marker) {
            // It outlives the capture.
            let _ = found.send((packet.to, Instant::now()));
        }
        false
    })?;
    Ok((capture, readable))
}

/// Whose packet it was, and whether its pod was in the mesh by then.
fn tell((to, at): &Readable, seen: &enrolled::Seen) -> String {
    let Some(occupant) = seen.by_address.get(&to.ip()) else {
        return format!("to {to}, nobody's address");
    };
    let (pod, said) = (&occupant.name, &occupant.said);
    match &occupant.inside {
        None => format!("to {pod} (port {}), never in the mesh: {said}", to.port()),
        Some(inside) if inside > at => format!("to {pod} before it was in the mesh"),
        Some(_) => format!("to {pod} while it was in the mesh"),
    }
}
