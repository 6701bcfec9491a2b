//! The pods of the bench: the same servers and client in a namespace without the mesh and in one with it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::figures::Way;
use super::processes::Processes;
use crate::apps::{EchoClient, EchoServer, Namespace, apply_objects, dynamic, service};
use crate::mesh::SYSTEM_NAMESPACE;
use crate::probe::{self, PodRef, eventually, has_condition, wait_available, wait_until};

/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Until a change that the controller has to notice is everywhere.
const SETTLED: Duration = Duration::from_secs(60);
/// So many servers, each of one thread: at c=16 one alone would be what is measured.
const SERVERS: u32 = 2;
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const WAYPOINT_PODS: &str = "gateway.networking.k8s.io/gateway-name=waypoint";

/// Where the loads run.
pub(super) struct Stage<'a> {
    meshed: &'a Namespace,
    /// Sends requests outside of the mesh.
    plain_client: PodRef,
    /// Sends them inside.
    meshed_client: PodRef,
}

impl Stage<'_> {
    /// Sets everything up, works, and takes it away again.
    pub(super) async fn within<T>(
        client: &Client,
        work: impl AsyncFnOnce(&Stage<'_>) -> Result<T>,
    ) -> Result<T> {
        Namespace::within(client, "bench-plain", &[], async |plain| {
            let ambient = [("istio.io/dataplane-mode", "ambient")];
            Namespace::within(client, "bench-mesh", &ambient, async |meshed| {
                let stage = set_up(plain, meshed).await?;
                Box::pin(work(&stage)).await
            })
            .await
        })
        .await
    }

    /// Who sends the requests of a way, and whereto.
    pub(super) fn client(&self, way: Way) -> (&PodRef, &'static str) {
        match way {
            Way::Plain => (&self.plain_client, "http://web/"),
            Way::L4 => (&self.meshed_client, "http://web/"),
            Way::Waypoint => (&self.meshed_client, "http://routed/"),
        }
    }

    /// The mesh's processes as they are now.
    pub(super) async fn processes(&self) -> Result<Processes> {
        let system = Api::namespaced(self.meshed.client().clone(), SYSTEM_NAMESPACE);
        let ztunnels = names(&system, "app.kubernetes.io/name=ztunnel").await?;
        let waypoints = names(&self.meshed.api(), WAYPOINT_PODS).await?;
        ensure!(
            !ztunnels.is_empty() && !waypoints.is_empty(),
            "no proxies: {ztunnels:?}, {waypoints:?}"
        );
        Processes::find(&ztunnels, &waypoints)
    }

    /// Waits until every pod is in the mesh, the waypoint's pods run this image, and every way is answered.
    pub(super) async fn settled(&self, waypoint_image: &str) -> Result<()> {
        eventually("the waypoint's pods of this image", START, async || {
            for pod in self.meshed.pods(WAYPOINT_PODS).await? {
                let spec = pod.get().await?.spec.unwrap_or_default();
                let runs = spec.containers.first().and_then(|one| one.image.clone());
                let good = runs
                    .as_ref()
                    .is_some_and(|runs| runs.ends_with(waypoint_image));
                ensure!(good, "{} runs {runs:?}", pod.name());
            }
            Ok(())
        })
        .await?;
        wait_available(self.meshed.api::<Deployment>(), "waypoint", START).await?;
        eventually("all pods in the mesh", SETTLED, async || {
            for pod in self.meshed.pods("app").await? {
                let object = pod.get().await?;
                let inside = has_condition(&object, "ambit.mesh/InMesh", "True");
                ensure!(inside, "{}: {:?}", pod.name(), probe::conditions(&object));
            }
            Ok(())
        })
        .await?;
        for way in [Way::Plain, Way::L4, Way::Waypoint] {
            let (client, url) = self.client(way);
            eventually(url, SETTLED, async || client.ask_once(url).await).await?;
        }
        Ok(())
    }
}

async fn set_up<'a>(plain: &Namespace, meshed: &'a Namespace) -> Result<Stage<'a>> {
    // Clients and servers are on different nodes: both ztunnels have work, as for most pairs of a large cluster.
    let servers = EchoServer::new("web", "v1")
        .on("worker-2")
        .replicas(SERVERS);
    for ns in [plain, meshed] {
        ns.deploy(&servers).await?;
    }
    let client = EchoClient::new("client").on("worker-1");
    let stage = Stage {
        meshed,
        plain_client: plain.run(&client, START).await?,
        meshed_client: meshed.run(&client, START).await?,
    };
    for ns in [plain, meshed] {
        ns.serve(&servers, START).await?;
    }
    let gateway = json!({"apiVersion": GATEWAY_API, "kind": "Gateway", "metadata": {"name": "waypoint"},
        "spec": {"gatewayClassName": "ambit-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}});
    let mut routed = service("routed", &json!({"app": "web"}), false);
    routed["metadata"]["labels"] = json!({"istio.io/use-waypoint": "waypoint"});
    apply_objects(meshed.client(), Some(meshed.name()), [gateway, routed]).await?;
    let gateways = dynamic(meshed.client(), GATEWAY_API, "Gateway", Some(meshed.name())).await?;
    wait_until(gateways, "waypoint", "programmed", START, |gateway| {
        has_condition(gateway, "Programmed", "True")
    })
    .await?;
    wait_until(
        meshed.api::<Service>(),
        "routed",
        "bound",
        SETTLED,
        |service| has_condition(service, "istio.io/WaypointBound", "True"),
    )
    .await?;
    Ok(stage)
}

/// The names of the pods that a selector chooses, those on their way out left aside.
async fn names(pods: &Api<Pod>, selector: &str) -> Result<BTreeSet<String>> {
    let all = pods
        .list(&ListParams::default().labels(selector))
        .await?
        .items;
    let living = all
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(living.filter_map(|pod| pod.metadata.name).collect())
}
