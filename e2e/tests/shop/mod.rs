//! A shop for tests of waypoints: two versions of a server and a client, all in the mesh.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace, apply_objects, dynamic, label};
use e2e::probe::{PodRef, eventually, has_condition, wait_until};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

/// A pod's start, its image being there, on a busy machine.
pub const START: Duration = Duration::from_secs(90);
/// What goes over the API server and the controller.
pub const SOON: Duration = Duration::from_secs(45);
/// A page of metrics may be a second old. Whatever is counted at all is on it by then, before others are sent.
const COUNTED: Duration = Duration::from_secs(3);
pub const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");
pub const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
pub const WAYPOINT_PODS: &str = "gateway.networking.k8s.io/gateway-name=waypoint";

/// All of `web` to its one version, `v1` or `v2`.
pub fn all_to_version(version: &str) -> String {
    format!(
        r#"
apiVersion: {GATEWAY_API}
kind: HTTPRoute
metadata: {{name: split}}
spec:
  parentRefs: [{{group: "", kind: Service, name: web, port: 80}}]
  rules: [{{backendRefs: [{{name: web-{version}, port: 80}}]}}]
"#
    )
}

/// A Gateway that is a waypoint of ours.
pub fn waypoint(name: &str) -> Value {
    json!({"apiVersion": GATEWAY_API, "kind": "Gateway", "metadata": {"name": name},
        "spec": {"gatewayClassName": "ambit-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}})
}

/// Puts the pods in, and waits until all are in the mesh and the client is answered.
pub async fn open(ns: &Namespace) -> Result<PodRef> {
    let (v1, v2) = (
        EchoServer::new("web", "v1").on("worker-1"),
        EchoServer::new("web", "v2").on("worker-2"),
    );
    ns.deploy(&v1).await?;
    let pod = ns.start(&EchoClient::new("client").on("worker-1")).await?;
    ns.serve(&v2, START).await?;
    ns.serve(&v1, START).await?;
    for pod in [vec![pod.clone()], ns.pods("app=web").await?].concat() {
        pod.wait("in the mesh", START, |pod: &Pod| {
            has_condition(pod, "ambit.mesh/InMesh", "True") && has_condition(pod, "Ready", "True")
        })
        .await?;
    }
    eventually("an answer", SOON, async || {
        pod.ask_once("http://web/").await
    })
    .await?;
    Ok(pod)
}

/// Makes the waypoint, binds `web` to it, and waits until statuses say so and requests go through it.
pub async fn bind(ns: &Namespace, client: &PodRef) -> Result<()> {
    apply_objects(ns.client(), Some(ns.name()), [waypoint("waypoint")]).await?;
    let gateways = dynamic(ns.client(), GATEWAY_API, "Gateway", Some(ns.name())).await?;
    wait_until(gateways, "waypoint", "programmed", START, |gateway| {
        has_condition(gateway, "Accepted", "True")
            && has_condition(gateway, "Programmed", "True")
            && !gateway.data["status"]["addresses"].is_null()
    })
    .await?;
    let web = ns.api::<Service>();
    label(&web, "web", "istio.io/use-waypoint", Some("waypoint")).await?;
    wait_until(web, "web", "bound", SOON, |service| {
        has_condition(service, "istio.io/WaypointBound", "True")
    })
    .await?;
    let waypoint = ns.pods(WAYPOINT_PODS).await?.pop().context("no waypoint")?;
    through_waypoint(&waypoint, client).await
}

/// Waits until the pods of this one's Gateway count each of the client's requests, and this one some of them.
pub async fn through_waypoint(waypoint: &PodRef, client: &PodRef) -> Result<()> {
    let began = requests(waypoint).await?;
    eventually("requests go through the waypoint", SOON, async || {
        let before = total(&waypoints_of(waypoint).await?);
        let answers = client.ask(&["http://web/", "--count=5"]).await?;
        eventually("they are counted", COUNTED, async || {
            let now = waypoints_of(waypoint).await?;
            ensure!(
                total(&now) >= before + 5.0 && requests(waypoint).await? > began,
                "they counted {before}, then {now:?}; {} began with {began}; answers: {answers:?}",
                waypoint.name()
            );
            Ok(())
        })
        .await
    })
    .await
}

fn total(counts: &[(String, Result<f64>)]) -> f64 {
    counts.iter().flat_map(|(_, count)| count).sum()
}

/// The pods that say they are of this one's Gateway, with what each has counted, or why it cannot be asked.
async fn waypoints_of(one: &PodRef) -> Result<Vec<(String, Result<f64>)>> {
    let labelled = ListParams::default().labels(WAYPOINT_PODS);
    let client = one.api().clone().into_client();
    let mut counts = Vec::new();
    for pod in one.api().list(&labelled).await?.items {
        let pod = PodRef::new(&client, one.namespace(), &pod.name_any());
        counts.push((pod.name().to_owned(), requests(&pod).await));
    }
    Ok(counts)
}

async fn requests(waypoint: &PodRef) -> Result<f64> {
    let page = waypoint.page(15020, "/metrics").await?;
    let counts = page
        .lines()
        .filter(|line| line.starts_with("istio_requests_total"));
    Ok(counts
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}
