//! The hub waits for nobody: whatever hangs behind the table, the proxies are told.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/settings.rs"]
mod settings;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use controller::discovery::snapshot::{Snapshot, Viewer};
use controller::hub::{Hub, IndexState, Outputs};
use controller::index::desired::{DesiredState, Item};
use controller::index::event::ObjectEvent;
use controller::index::kinds::Kind;
use controller::index::{Input, Settings};
use controller::lease::Term;
use controller::metrics::Metrics;
use controller::position::Coverage;
use controller::reconcile::{self, Inputs, Reconciler};
use controller::watch::WatchEvent;
use mesh::process::readiness::Readiness;
use mesh::xds::ADDRESS_TYPE;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use self::kubernetes::{Cluster, Fault};

fn apply(kind: Kind, object: Value) -> Input {
    let event = ObjectEvent::from_json(kind, WatchEvent::Apply(object));
    Input::Object(event.expect("an object"))
}

fn gateway(namespace: &str, name: &str) -> Input {
    apply(
        Kind::Gateway,
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "generation": 1},
            "spec": {
                "gatewayClassName": "ambit-waypoint",
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            },
        }),
    )
}

fn pod(name: &str, ip: &str) -> Input {
    apply(
        Kind::Pod,
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "uid": name},
            "spec": {"nodeName": "n1", "serviceAccountName": "default", "containers": []},
            "status": {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }),
    )
}

/// A hub, what goes in and what comes out.
struct Running {
    events: mpsc::Sender<Input>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    desired: watch::Receiver<DesiredState>,
}

impl Running {
    async fn start() -> Self {
        let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
        let desired = watch::Sender::new(DesiredState::default());
        let (events, told) = mpsc::channel(16);
        let running = Self {
            events,
            snapshots: snapshots.subscribe(),
            desired: desired.subscribe(),
        };
        let out = Outputs {
            snapshots,
            desired,
            state: watch::Sender::new(IndexState::default()),
            summary: Arc::new(ArcSwap::from_pointee(Value::Null)),
        };
        let settings = Settings {
            network: "east".into(),
            ..settings::index()
        };
        let synced = Readiness::new().wait_for("index");
        tokio::spawn(Hub::new(settings, synced, out).run(told));
        for kind in Kind::ALL {
            let absent = ObjectEvent::from_json(*kind, WatchEvent::Absent);
            running.tell(Input::Object(absent.expect("an event"))).await;
        }
        running
    }

    /// With a deadline: a hub that waits for somebody fails the test.
    async fn tell(&self, input: Input) {
        tokio::time::timeout(Duration::from_secs(1), self.events.send(input))
            .await
            .expect("the hub takes it in")
            .expect("the hub lives");
    }

    async fn addresses(&mut self, count: usize) {
        let viewer = Viewer::Node("n1".into());
        let enough =
            |snapshot: &Arc<Snapshot>| snapshot.resources(&viewer, ADDRESS_TYPE).len() >= count;
        tokio::time::timeout(Duration::from_secs(1), self.snapshots.wait_for(enough))
            .await
            .expect("the proxies are told")
            .expect("the hub lives");
    }
}

async fn a_class_and_gateways(hub: &Running, namespaces: usize, each: usize) {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "ambit-waypoint", "uid": "class", "generation": 1},
        "spec": {"controllerName": "ambit.mesh/waypoint-controller"},
    });
    hub.tell(apply(Kind::GatewayClass, class)).await;
    for namespace in 0..namespaces {
        for name in 0..each {
            let gateway = gateway(&format!("tenant{namespace}"), &format!("gate{name}"));
            hub.tell(gateway).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_no_reader_at_all_the_proxies_are_told() {
    let mut hub = Running::start().await;
    a_class_and_gateways(&hub, 11, 100).await;
    hub.tell(pod("a", "10.0.0.1")).await;
    hub.addresses(1).await;
    assert!(
        hub.desired.borrow().len() >= 1100,
        "and the table says it all"
    );
}

#[tokio::test(start_paused = true)]
async fn with_an_api_server_that_answers_nothing_the_proxies_are_told() {
    let cluster = Cluster::new();
    cluster.spoil("*", "*", Fault::Hang);
    let mut hub = Running::start().await;
    let settings = reconcile::Settings {
        client: cluster.client(),
        instance: "controller-0".to_owned(),
        namespace: "ambit-system".to_owned(),
        mesh: settings::waypoints(),
        roots: watch::channel("roots".to_owned()).1,
        revocations: None,
    };
    let (seen, happened) = mpsc::channel(1);
    let (_notices, noticed) = mpsc::channel(1);
    let inputs = Inputs {
        desired: hub.desired.clone(),
        term: Term::always(),
        seen: happened,
        notices: noticed,
    };
    let reconciler = Reconciler::new(settings, Term::always(), Metrics::default());
    let reconciling = tokio::spawn(reconciler.run(inputs));
    a_class_and_gateways(&hub, 11, 100).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(cluster.in_flight("*", "*") > 0, "it tries");
    for pod_number in 1..=20 {
        let ip = format!("10.0.0.{pod_number}");
        hub.tell(pod(&format!("p{pod_number}"), &ip)).await;
        hub.addresses(pod_number).await;
        let child = controller::reconcile::seen::Seen::Roots("shop".into());
        tokio::time::timeout(Duration::from_secs(1), seen.send(child))
            .await
            .expect("the reconciler takes it in")
            .expect("the reconciler lives");
    }
    reconciling.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_of_the_network_in_the_settings() {
    let mut hub = Running::start().await;
    hub.tell(pod("a", "10.0.0.1")).await;
    hub.addresses(1).await;
    assert_eq!(hub.snapshots.borrow().network().as_str(), "east");
}

#[tokio::test(start_paused = true)]
async fn how_far_the_watches_are_reaches_the_streams_though_nothing_else_changes() {
    let mut hub = Running::start().await;
    hub.tell(pod("a", "10.0.0.1")).await;
    hub.addresses(1).await;
    let progress = |version: u64| {
        let version = version.to_string();
        let event = ObjectEvent::from_json(Kind::Service, WatchEvent::Progress { version });
        Input::Object(event.expect("an event"))
    };
    let covers = |snapshot: &Arc<Snapshot>, version: u64| {
        let token = format!("v1;services={version}");
        snapshot.positions().covers(&token) == Coverage::Covered
    };
    hub.snapshots.borrow_and_update();
    let mut published = 0;
    for version in 100..200 {
        hub.tell(progress(version)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        published += usize::from(hub.snapshots.has_changed().expect("the hub lives"));
        hub.snapshots.borrow_and_update();
    }
    // Each wakes every stream: once a second is enough for five seconds of these.
    assert!((3..=6).contains(&published), "{published}");
    let newest = |snapshot: &Arc<Snapshot>| covers(snapshot, 199);
    let last = tokio::time::timeout(Duration::from_secs(2), hub.snapshots.wait_for(newest));
    assert!(last.await.is_ok(), "the last one too");
}

#[tokio::test(start_paused = true)]
async fn a_route_to_a_service_that_does_not_exist_waits_a_moment_and_no_longer() {
    for busy in [false, true] {
        let mut hub = Running::start().await;
        // Nothing waits before something was told.
        hub.tell(pod("a", "10.0.0.1")).await;
        hub.addresses(1).await;
        let version = "10".to_owned();
        let progress = ObjectEvent::from_json(Kind::Service, WatchEvent::Progress { version });
        hub.tell(Input::Object(progress.expect("an event"))).await;
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"namespace": "shop", "name": "r", "uid": "r", "generation": 1, "resourceVersion": "21"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "ghost"}]},
        });
        hub.tell(apply(Kind::HttpRoute, route)).await;
        hub.tell(pod("b", "10.0.0.2")).await;
        hub.addresses(2).await;
        let said = |desired: &DesiredState| {
            let mut items = desired.iter().map(|(item, _)| item);
            items.any(|item| matches!(item, Item::Status(target) if target.kind == Kind::HttpRoute))
        };
        assert!(!said(&hub.desired.borrow()), "it waits");
        let begun = tokio::time::Instant::now();
        // Whether or not there is always something else to take in.
        while busy && !said(&hub.desired.borrow()) && begun.elapsed() < Duration::from_secs(1) {
            hub.tell(pod("a", "10.0.0.1")).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let told = hub.desired.wait_for(said);
        let told = tokio::time::timeout(Duration::from_secs(1), told).await;
        told.expect("in time").expect("the hub lives");
        let waited = begun.elapsed();
        assert!(waited <= Duration::from_millis(250), "{waited:?}");
    }
}
