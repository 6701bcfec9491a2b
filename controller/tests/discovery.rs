//! The real server against mesh's real clients, in one process: only Kubernetes is made up.

#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use controller::discovery::authenticate::{Authenticate, AuthenticateError, Caller};
use controller::discovery::snapshot::Snapshot;
use controller::index::Input;
use controller::index::names::Key;
use controller::metrics::Metrics;
use hbone::SpiffeId;
use mesh::ca::{CaError, Caller as Asks, CertificateClient, obtain};
use mesh::control::Control;
use mesh::proto::certificate::IstioCertificateRequest;
use mesh::proto::certificate::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh::proto::node::{EnrolmentReport, enrolment_report::State};
use mesh::world::{World as Mesh, world};
use mesh::xds::client::{Client, Config};
use mesh::xds::node::NodeInfo;
use mesh::xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, ROUTE_TYPE, Update};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use server::{Parts, Served};
use support::{World, gateway, namespace, our_class, pod, route, service, waypoint};

const LONG: Duration = Duration::from_secs(10);

/// Tokens that are names.
struct Tokens(HashMap<&'static str, Caller>);

#[tonic::async_trait]
impl Authenticate for Tokens {
    async fn whose(&self, token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
        self.0
            .get(token)
            .cloned()
            .ok_or_else(|| AuthenticateError::Refused("unknown token".to_owned()))
    }
}

/// A server, the world it serves, and what proxies said to it.
struct Controller {
    world: World,
    snapshots: watch::Sender<Arc<Snapshot>>,
    said: mpsc::Receiver<Input>,
    served: Served,
}

impl Controller {
    async fn start() -> Self {
        let caller = |namespace: &str, account: &str, pod: Option<&str>| Caller {
            account: Key::new(namespace, account),
            pod: pod.map(Into::into),
            node: None,
        };
        let tokens = HashMap::from([
            ("ztunnel-n1", caller("ambit-system", "ztunnel", Some("zt1"))),
            ("ztunnel-n2", caller("ambit-system", "ztunnel", Some("zt2"))),
            ("waypoint", caller("shop", "gate", Some("gate-0"))),
            ("cart", caller("shop", "default", Some("a"))),
            ("loose", caller("ambit-system", "ztunnel", None)),
        ]);
        let authenticate: Arc<dyn Authenticate> = Arc::new(Tokens(tokens));
        let (snapshots, seen) = watch::channel(Arc::new(Snapshot::default()));
        let (index, said) = mpsc::channel(64);
        let parts = Parts {
            authenticate,
            snapshots: seen,
            index,
            metrics: Metrics::default(),
        };
        let served = parts.serve().await.expect("served");
        let mut controller = Self {
            world: World::new(),
            snapshots,
            said,
            served,
        };
        let mut ztunnels = [
            pod("ambit-system", "zt1", "10.0.9.1", json!({})),
            pod("ambit-system", "zt2", "10.0.9.2", json!({})),
        ];
        for ztunnel in &mut ztunnels {
            ztunnel["spec"]["serviceAccountName"] = json!("ztunnel");
            ztunnel["metadata"]["ownerReferences"] = json!([
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "zt", "controller": true}
            ]);
        }
        ztunnels[1]["spec"]["nodeName"] = json!("n2");
        controller.apply(ztunnels);
        controller
    }

    fn apply(&mut self, objects: impl IntoIterator<Item = serde_json::Value>) {
        let changes = self.world.apply(objects);
        let mut snapshot = (**self.snapshots.borrow()).clone();
        snapshot.apply(&changes);
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    fn control(&self, token: &str) -> Control {
        self.served.control(token).expect("a file")
    }

    /// A proxy that says what it is told.
    fn proxy(
        &self,
        token: &str,
        types: &[&'static str],
    ) -> (mpsc::UnboundedReceiver<Update>, mesh::xds::client::Handle) {
        let (tell, told) = mpsc::unbounded_channel();
        let node = NodeInfo {
            kind: "ztunnel".to_owned(),
            pod: "p".to_owned(),
            namespace: "ambit-system".to_owned(),
            node_name: "whatever it says counts for nothing".to_owned(),
            ip: [127, 0, 0, 1].into(),
            cluster: "Kubernetes".to_owned(),
            metadata: Default::default(),
        };
        let config = Config {
            control: self.control(token),
            node,
            types: types.to_vec(),
        };
        let (client, handle) = Client::new(config, move |update: &Update| {
            // The test may have ended.
            let _ = tell.send(update.clone());
            Ok(())
        });
        tokio::spawn(client.run());
        (told, handle)
    }
}

async fn next(
    told: &mut mpsc::UnboundedReceiver<Update>,
) -> (&'static str, Vec<String>, Vec<String>) {
    let update = timeout(LONG, told.recv())
        .await
        .expect("in time")
        .expect("an update");
    let names = update.updated.into_iter().map(|(name, _)| name).collect();
    (update.type_url, names, update.removed)
}

#[tokio::test]
async fn a_node_sees_the_mesh_and_its_own_pods() {
    let mut controller = Controller::start().await;
    controller.apply([
        namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})),
        pod("shop", "a", "10.0.0.1", json!({})),
    ]);
    let (mut told, _handle) = controller.proxy(
        "ztunnel-n2",
        &[ADDRESS_TYPE, ENROLMENT_TYPE, ENROLLED_NAMESPACE_TYPE],
    );
    let mut first = HashMap::new();
    for _ in 0..3 {
        let (kind, names, _) = next(&mut told).await;
        first.insert(kind, names);
    }
    assert_eq!(
        first[ENROLMENT_TYPE],
        ["zt2"],
        "the pods of its node and no others"
    );
    assert_eq!(first[ENROLLED_NAMESPACE_TYPE], ["shop"]);
    assert!(first[ADDRESS_TYPE].contains(&"Kubernetes//Pod/shop/a".to_owned()));

    let mut moved = pod("shop", "b", "10.0.0.2", json!({}));
    moved["spec"]["nodeName"] = json!("n2");
    controller.apply([moved]);
    let changes = [next(&mut told).await, next(&mut told).await];
    assert!(
        changes.contains(&(ENROLMENT_TYPE, vec!["b".to_owned()], vec![])),
        "{changes:?}"
    );
    assert!(
        changes.contains(&(
            ADDRESS_TYPE,
            vec!["Kubernetes//Pod/shop/b".to_owned()],
            vec![]
        )),
        "{changes:?}"
    );
}

#[tokio::test]
async fn a_nodes_report_reaches_the_index_under_its_own_name() {
    let mut controller = Controller::start().await;
    let (mut told, handle) = controller.proxy("ztunnel-n1", &[ENROLMENT_TYPE]);
    next(&mut told).await;
    handle.report(EnrolmentReport {
        uid: "a".to_owned(),
        state: State::Enrolled.into(),
        ..Default::default()
    });
    let said = timeout(LONG, controller.said.recv())
        .await
        .expect("in time");
    let Some(Input::Report { node, report }) = said else {
        panic!("{said:?}")
    };
    assert_eq!(
        (&*node, &*report.uid, report.state()),
        ("n1", "a", State::Enrolled)
    );
}

#[tokio::test]
async fn a_waypoint_sees_its_own_routes_and_no_pods_of_nodes() {
    let mut controller = Controller::start().await;
    let [gate, gate_pod, set, deployment] = waypoint("shop", "gate");
    controller.apply([
        namespace("shop", json!({})),
        our_class(),
        gateway("shop", "gate"),
        gate,
        gate_pod,
        set,
        deployment,
        service(
            "shop",
            "cart",
            "10.96.0.1",
            "cart",
            json!({"istio.io/use-waypoint": "gate"}),
        ),
        service("shop", "plain", "10.96.0.2", "plain", json!({})),
        route(
            "shop",
            "mine",
            json!([{"group": "", "kind": "Service", "name": "cart"}]),
            json!([{}]),
        ),
        route(
            "shop",
            "other",
            json!([{"group": "", "kind": "Service", "name": "plain"}]),
            json!([{}]),
        ),
    ]);
    let (mut told, _handle) = controller.proxy("waypoint", &[ROUTE_TYPE, ENROLMENT_TYPE]);
    let mut first = HashMap::new();
    for _ in 0..2 {
        let (kind, names, _) = next(&mut told).await;
        first.insert(kind, names);
    }
    assert_eq!(first[ROUTE_TYPE], ["shop/mine"]);
    assert!(first[ENROLMENT_TYPE].is_empty());

    controller.apply([service("shop", "cart", "10.96.0.1", "cart", json!({}))]);
    assert_eq!(
        next(&mut told).await,
        (ROUTE_TYPE, vec![], vec!["shop/mine".to_owned()])
    );
}

#[tokio::test]
async fn what_a_waypoint_asks_for_is_in_its_world_until_it_is_given_up() {
    let mut controller = Controller::start().await;
    controller.apply([
        namespace("shop", json!({})),
        our_class(),
        gateway("shop", "gate"),
        service(
            "shop",
            "cart",
            "10.96.0.1",
            "cart",
            json!({"istio.io/use-waypoint": "gate"}),
        ),
        pod("shop", "client", "10.0.0.3", json!({})),
        pod("shop", "unasked", "10.0.0.5", json!({})),
    ]);
    controller.apply(waypoint("shop", "gate"));
    let (mut told, handle) = controller.proxy("waypoint", &[ADDRESS_TYPE, ROUTE_TYPE]);
    let (mut writer, world) = world();
    let mut changed = async |world: &Mesh| {
        let update = timeout(LONG, told.recv()).await.expect("in time");
        writer.apply(&update.expect("an update")).expect("readable");
        let at = |last: u8| {
            world.look(|world| Some(world.workload_at([10, 0, 0, last].into())?.uid.clone()))
        };
        [3, 4, 5].map(|last| at(last).map(|uid| uid.to_string()))
    };
    let uid = |name: &str| Some(format!("Kubernetes//Pod/shop/{name}"));
    for _ in [ADDRESS_TYPE, ROUTE_TYPE] {
        let nobody = [None, None, None];
        assert_eq!(changed(&world).await, nobody, "no client is in its scope");
    }

    handle.ask_address("/10.0.0.3");
    assert_eq!(changed(&world).await, [uid("client"), None, None]);
    let client = world.look(|world| world.workload_at([10, 0, 0, 3].into()).cloned());
    let id = client.map(|client| client.identity().to_string());
    assert_eq!(
        id.as_deref(),
        Some("spiffe://cluster.local/ns/shop/sa/default")
    );

    // Nobody has it, which is no change of the world; then somebody does.
    handle.ask_address("/10.0.0.4");
    controller.apply([pod("shop", "late", "10.0.0.4", json!({}))]);
    assert_eq!(changed(&world).await, [uid("client"), uid("late"), None]);

    handle.forget_address("/10.0.0.3");
    assert_eq!(changed(&world).await, [None, uid("late"), None]);
    let vip = SocketAddr::from(([10, 96, 0, 1], 80));
    let cart = world.look(|world| world.service_at(vip).map(|service| service.name.clone()));
    assert_eq!(cart.as_deref(), Some("cart"), "what is bound stays");
}

#[tokio::test]
async fn strangers_are_told_why_not() {
    let mut controller = Controller::start().await;
    controller.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    for (token, code, reason) in [
        (
            "cart",
            tonic::Code::PermissionDenied,
            "shop/default is neither a ztunnel's nor a waypoint's",
        ),
        ("loose", tonic::Code::PermissionDenied, "bound to its pod"),
        (
            "stolen",
            tonic::Code::Unauthenticated,
            "not accepted: unknown token",
        ),
    ] {
        let control = controller.control(token);
        let channel = control.connect().await.expect("connected");
        let mut request = tonic::Request::new(tokio_stream::once(DeltaDiscoveryRequest::default()));
        let header = control.authorization().expect("a token").expect("a token");
        request.metadata_mut().insert("authorization", header);
        let refused = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(request)
            .await;
        let status = refused.expect_err("refused");
        assert_eq!(status.code(), code, "{token}: {status}");
        assert!(status.message().contains(reason), "{token}: {status}");
    }
}

#[tokio::test]
async fn certificates_go_to_those_who_may_have_them() {
    let mut controller = Controller::start().await;
    let [gate, gate_pod, set, deployment] = waypoint("shop", "gate");
    controller.apply([
        namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})),
        pod("shop", "a", "10.0.0.1", json!({})),
        our_class(),
        gateway("shop", "gate"),
        gate,
        gate_pod,
        set,
        deployment,
    ]);
    let id = |text: &str| -> SpiffeId { text.parse().expect("an identity") };
    let cart = id("spiffe://cluster.local/ns/shop/sa/default");
    let client =
        |token: &str, asks| CertificateClient::new(controller.control(token), "Kubernetes", asks);

    let refused = obtain(&client("ztunnel-n2", Asks::Node), &cart)
        .await
        .expect_err("it runs on n1");
    let CaError::Refused { code, message } = refused else {
        panic!("{refused}")
    };
    assert_eq!(code, tonic::Code::PermissionDenied);
    assert_eq!(
        message,
        "no pod with identity spiffe://cluster.local/ns/shop/sa/default that is in the mesh runs on node n2"
    );

    let identity = obtain(&client("ztunnel-n1", Asks::Node), &cart)
        .await
        .expect("signed");
    assert_eq!(*identity.id(), cart);
    let left = identity
        .not_after()
        .duration_since(std::time::SystemTime::now())
        .expect("in the future");
    assert!(
        left > Duration::from_secs(23 * 3600) && left <= Duration::from_secs(24 * 3600),
        "{left:?}"
    );

    let own = id("spiffe://cluster.local/ns/shop/sa/gate");
    obtain(&client("waypoint", Asks::Workload), &own)
        .await
        .expect("its own");
    let refused = obtain(&client("waypoint", Asks::Node), &cart)
        .await
        .expect_err("not its own");
    assert!(
        refused.to_string().contains("is no node proxy"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_request_that_contradicts_its_sender_is_refused() {
    let mut controller = Controller::start().await;
    controller.apply([our_class(), gateway("shop", "gate")]);
    controller.apply(waypoint("shop", "gate"));
    let control = controller.control("waypoint");
    let mut client =
        IstioCertificateServiceClient::new(control.connect().await.expect("connected"));
    let csr = |uri: &str, algorithm| {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().expect("ascii"))];
        params
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .expect("a request")
    };
    let own = "spiffe://cluster.local/ns/shop/sa/gate";
    for (csr, reason) in [
        (
            csr(
                "spiffe://cluster.local/ns/shop/sa/default",
                &rcgen::PKCS_ECDSA_P256_SHA256,
            ),
            "not the identity that was asked",
        ),
        (csr(own, &rcgen::PKCS_ED25519), "not ECDSA P-256"),
        ("garbage".to_owned(), "cannot be read"),
    ] {
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            ..Default::default()
        });
        let header = control.authorization().expect("a token").expect("a token");
        request.metadata_mut().insert("authorization", header);
        let status = client.create_certificate(request).await.expect_err(reason);
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
}
