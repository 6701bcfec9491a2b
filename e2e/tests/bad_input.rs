//! Bad input is refused with a reason where a user looks, and what worked before goes on.

mod callers;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace, dynamic, label};
use e2e::cluster::Cluster;
use e2e::probe::{PodRef, conditions, eventually, has_condition, wait_until};
use k8s_openapi::api::core::v1::{Event, Namespace as KubeNamespace, Pod, Service};
use kube::api::{Api, ListParams};
use mesh::ca::{Caller, obtain};

use callers::{Controller, identity, is_denied, token, ztunnel_of};

/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(90);
/// What goes over the API server and the controller.
const SOON: Duration = Duration::from_secs(45);
const MODE: &str = "istio.io/dataplane-mode";
const IN_MESH: &str = "ambit.mesh/InMesh";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

const GATEWAY: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

const WRONG_GATEWAY: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wrong}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: web, port: 80, protocol: HTTP}]
";

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: broken}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {value: /nobody}}]
    backendRefs: [{name: nothing, port: 80}]
  - matches: [{path: {value: /no-port}}]
    backendRefs: [{name: web-v1, port: 81}]
  - backendRefs: [{name: web-v1, port: 80}]
"#;

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_label_that_means_nothing() -> Result<()> {
    beside_a_load(async |_, ns, _| {
        Namespace::within(ns.client(), "typo", &[(MODE, "ambiant")], async |typo| {
            let all = Api::<KubeNamespace>::all(typo.client().clone());
            let told = wait_until(all, typo.name(), "refused", SOON, |namespace| {
                refused(namespace, IN_MESH, "UnknownDataplaneMode")
            });
            println!("namespace: {:?}", conditions(&told.await?));
            let events = Api::<Event>::namespaced(typo.client().clone(), "default");
            let about = format!("involvedObject.name={}", typo.name());
            eventually("an Event of the namespace", SOON, async || {
                let all = events.list(&ListParams::default().fields(&about)).await?;
                let reasons: Vec<_> = all.items.into_iter().filter_map(|e| e.reason).collect();
                ensure!(
                    reasons.iter().any(|r| r == "UnknownDataplaneMode"),
                    "{reasons:?}"
                );
                Ok(())
            })
            .await?;
            // Its pods are no worse off for it.
            typo.run(&EchoClient::new("client"), START).await?;
            Ok(())
        })
        .await?;
        let odd = EchoClient::new("odd").label(MODE, "perhaps");
        let odd = ns.start(&odd).await?;
        let told = odd.wait("refused", START, |pod: &Pod| {
            refused(pod, IN_MESH, "UnknownDataplaneMode")
        });
        told.await?;
        ns.wait_event(odd.name(), "UnknownDataplaneMode", SOON)
            .await?;
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_gateway_with_a_wrong_listener() -> Result<()> {
    beside_a_load(async |_, ns, _| {
        ns.apply(WRONG_GATEWAY).await?;
        let gateways = dynamic(ns.client(), GATEWAY_API, "Gateway", Some(ns.name())).await?;
        let told = wait_until(gateways, "wrong", "refused", SOON, |gateway| {
            refused(gateway, "Accepted", "ListenersNotValid")
                && refused(gateway, "Accepted", "UnsupportedProtocol")
                && !has_condition(gateway, "Programmed", "True")
        });
        println!("gateway: {:?}", conditions(&told.await?));
        ns.wait_event("wrong", "ListenersNotValid", SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_route_to_nowhere() -> Result<()> {
    beside_a_load(async |_, ns, client| {
        ns.apply(GATEWAY).await?;
        let gateways = dynamic(ns.client(), GATEWAY_API, "Gateway", Some(ns.name())).await?;
        wait_until(gateways, "waypoint", "programmed", START, |gateway| {
            has_condition(gateway, "Programmed", "True")
        })
        .await?;
        let web = ns.api::<Service>();
        label(&web, "web", "istio.io/use-waypoint", Some("waypoint")).await?;
        wait_until(web, "web", "bound", SOON, |service| {
            has_condition(service, "istio.io/WaypointBound", "True")
        })
        .await?;
        ns.apply(ROUTE).await?;
        let routes = dynamic(ns.client(), GATEWAY_API, "HTTPRoute", Some(ns.name())).await?;
        let told = wait_until(routes, "broken", "partly refused", SOON, |route| {
            refused(route, "ResolvedRefs", "BackendNotFound")
        });
        let told = conditions(&told.await?);
        println!("route: {told:?}");
        let message = told
            .iter()
            .find(|[kind, ..]| kind == "ResolvedRefs")
            .map(|[.., message]| message.clone())
            .unwrap_or_default();
        ensure!(
            message.contains("nothing does not exist") && message.contains("no TCP port 81"),
            "{message}"
        );
        ns.wait_event("broken", "BackendNotFound", SOON).await?;
        for path in ["nobody", "no-port"] {
            let url = format!("http://web/{path}");
            eventually(&url, SOON, async || {
                let answer = client.ask_once(&url).await?;
                ensure!(answer.status == 500, "{answer}");
                Ok(())
            })
            .await?;
        }
        ensure!(client.ask_once("http://web/").await?.status == 200);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn garbage_where_tunnels_are_expected() -> Result<()> {
    beside_a_load(async |_, ns, _| {
        let server = ns.pods("app=web").await?.pop().context("no server")?;
        Namespace::within(ns.client(), "outside", &[], async |outside| {
            let stranger = outside.run(&EchoClient::new("stranger"), START).await?;
            let from = stranger.ips().await?;
            let ztunnel = ztunnel_of(&server).await?;
            for ip in server.ips().await? {
                let at = SocketAddr::new(ip, 15008);
                let output = stranger.exec(&["client", &format!("http://{at}/")]).await?;
                ensure!(output.code == 1, "{at} answered garbage: {output:?}");
            }
            let from: Vec<String> = from.iter().map(ToString::to_string).collect();
            let line = ztunnel.wait_log("the refusal", SOON, |line| {
                from.iter().any(|ip| line.contains(ip)) && line.contains("15008")
            });
            println!("ztunnel: {}", line.await?);
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn tokens_and_identities_that_do_not_fit() -> Result<()> {
    beside_a_load(async |cluster, ns, client| {
        let controller = Controller::reach(cluster, ns.client()).await?;
        let ztunnel = ztunnel_of(client).await?;
        let own = identity(ns.name(), "client")?;
        let others = identity(ns.name(), "web")?;

        // What is asked rightly is given, so the refusals below are for their reasons.
        let node = token(&ztunnel, "ztunnel").await?;
        obtain(&controller.client(&node, Caller::Node)?, &own).await?;
        let workload = token(client, "client").await?;
        let asked = obtain(&controller.client(&workload, Caller::Workload)?, &own).await;
        is_denied(asked, "is no waypoint")?;

        let asked = obtain(&controller.client(&workload, Caller::Node)?, &others).await;
        is_denied(asked, "is no node proxy")?;
        // Nobody of that identity runs on any node.
        let nobody = identity(ns.name(), "nobody")?;
        let asked = obtain(&controller.client(&node, Caller::Node)?, &nobody).await;
        is_denied(asked, "no pod with identity")?;
        // The server runs on the other node only.
        let asked = obtain(&controller.client(&node, Caller::Node)?, &others).await;
        is_denied(asked, "runs on node")?;
        let asked = obtain(&controller.client("nonsense", Caller::Workload)?, &own).await;
        let error = asked.err().context("a certificate for nonsense")?;
        ensure!(error.code() == "unauthenticated", "{error}");

        let log = controller.pod.logs().await?;
        ensure!(
            log.lines().any(|line| line.contains("certificates")
                && line.contains("refused")
                && line.contains(ns.name())),
            "the controller's log names no refusal"
        );
        Ok(())
    })
    .await
}

/// A server on one node and a client on the other, in the mesh, and a load between them that must not notice.
async fn beside_a_load(
    work: impl AsyncFn(&Cluster, &Namespace, &PodRef) -> Result<()>,
) -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "bad", &[(MODE, "ambient")], async |ns| {
        let web = EchoServer::new("web", "v1").on("worker-2");
        ns.deploy(&web).await?;
        let client = ns.start(&EchoClient::new("client").on("worker-1")).await?;
        ns.serve(&web, START).await?;
        for pod in [vec![client.clone()], ns.pods("app=web").await?].concat() {
            pod.wait("in the mesh", START, |pod: &Pod| {
                has_condition(pod, IN_MESH, "True") && has_condition(pod, "Ready", "True")
            })
            .await?;
        }
        eventually("an answer", SOON, async || {
            client.ask_once("http://web/").await
        })
        .await?;
        let load = client.load("http://web/", 50).await?;
        Box::pin(work(&cluster, ns, &client)).await?;
        let load = load.stop().await?;
        println!(
            "beside it: {} requests, {} failed, slowest {:.0} ms",
            load.sent, load.failed, load.latency_max_ms
        );
        ensure!(load.failed == 0 && load.ok == load.sent, "{load:?}");
        Ok(())
    })
    .await
}

/// Is there a condition of this type that is false for this reason?
fn refused<K: serde::Serialize>(object: &K, kind: &str, reason: &str) -> bool {
    conditions(object)
        .iter()
        .any(|[k, status, r, _]| k == kind && status == "False" && r == reason)
}
