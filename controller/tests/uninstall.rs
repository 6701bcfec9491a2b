//! Uninstalling: what is taken back, by whom, and what is left alone.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::time::Duration;

use controller::hub::IndexState;
use controller::kubernetes::DeadlineLayer;
use controller::lease::Term;
use controller::uninstall::withdraw::{NODES_HEAR, Uninstaller, remove_all};
use controller::uninstall::{FINALIZER, Installation};
use kube::Client;
use mesh::xds::client::BACK_WITHIN;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::Layer as _;

use self::kubernetes::{Cluster, Fault};

const MANAGED: &str = "gateway.istio.io/managed";

fn client(cluster: &Cluster) -> Client {
    Client::new(DeadlineLayer::default().layer(cluster.service()), "default")
}

fn child(kind: &str, namespace: &str, owner: Option<&str>) -> Value {
    let api_version = if kind == "Deployment" {
        "apps/v1"
    } else {
        "v1"
    };
    let owner = owner.map(|kind| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": kind,
            "name": "gate",
            "uid": "g1",
            "controller": true,
        })
    });
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "namespace": namespace,
            "name": "gate",
            "labels": {MANAGED: "ambit.mesh-waypoint-controller"},
            "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
        },
        "spec": {},
    })
}

fn class(name: &str, controller: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": name},
        "spec": {"controllerName": controller},
    })
}

fn roots(namespace: &str, ours: bool) -> Value {
    let labels = if ours {
        json!({"app.kubernetes.io/managed-by": "ambit"})
    } else {
        json!({})
    };
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": "ambit-ca-root-cert", "labels": labels},
    })
}

/// A mesh with waypoints in 40 namespaces, and things that look like it.
fn mesh() -> Cluster {
    let cluster = Cluster::new();
    for tenant in 0..40 {
        let namespace = format!("tenant{tenant}");
        for kind in ["Deployment", "Service", "ServiceAccount"] {
            cluster.put(child(kind, &namespace, Some("Gateway")));
        }
        cluster.put(roots(&namespace, true));
    }
    // A tenant's own, with our label.
    cluster.put(child("Deployment", "theirs", None));
    cluster.put(child("Service", "theirs", Some("Operator")));
    cluster.put(roots("theirs", false));
    cluster.put(class("ambit-waypoint", "ambit.mesh/waypoint-controller"));
    cluster.put(class("istio-waypoint", "istio.io/mesh-controller"));
    cluster
}

/// The controller's own account, which somebody has deleted, and which is held back.
fn put_account(cluster: &Cluster) {
    cluster.put(json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "namespace": "ambit-system",
            "name": "ambit-controller",
            "finalizers": [FINALIZER],
        },
    }));
    cluster.remove("serviceaccounts", "ambit-system", "ambit-controller");
}

/// A pod of the mesh's namespace, or one that looks like it.
fn put_pod(cluster: &Cluster, namespace: &str, name: &str, account: &str) {
    cluster.put(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"serviceAccountName": account},
    }));
}

fn left(cluster: &Cluster) -> Vec<String> {
    let kinds = [
        "deployments",
        "services",
        "serviceaccounts",
        "configmaps",
        "gatewayclasses",
    ];
    let objects = kinds.iter().flat_map(|plural| {
        cluster.all(plural).into_iter().map(move |object| {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            format!("{plural} {}/{}", text("namespace"), text("name"))
        })
    });
    objects.collect()
}

const THEIRS: [&str; 4] = [
    "deployments theirs/gate",
    "services theirs/gate",
    "configmaps theirs/ambit-ca-root-cert",
    "gatewayclasses /istio-waypoint",
];

#[tokio::test(start_paused = true)]
async fn what_a_gateway_does_not_own_is_left_alone() {
    let cluster = mesh();
    assert_eq!(remove_all(&client(&cluster)).await, 0);
    assert_eq!(left(&cluster), THEIRS);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_deleted_is_counted_and_the_rest_goes() {
    let cluster = mesh();
    cluster.spoil("DELETE", "*/tenant7/services/*", Fault::Hang);
    cluster.spoil("LIST", "*/deployments", Fault::Refuse(403, "Forbidden"));
    let began = Instant::now();
    assert_eq!(remove_all(&client(&cluster)).await, 2);
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it has a deadline"
    );
    assert!(cluster.get("services", "tenant7", "gate").is_some());
    assert!(cluster.get("services", "tenant8", "gate").is_none());
    assert!(
        cluster
            .get("configmaps", "tenant7", "ambit-ca-root-cert")
            .is_none()
    );
}

/// An uninstaller at work.
struct Running {
    state: watch::Sender<IndexState>,
    done: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(cluster: &Cluster, term: Term) -> Self {
        let (state, index) = watch::channel(IndexState::default());
        let (done, when_done) = watch::channel(false);
        let installation = Installation::new(client(cluster), "ambit-system", "ambit-controller");
        let uninstaller = Uninstaller {
            client: controller::lease::fenced(client(cluster), term.clone()),
            installation: Some(installation),
            state: index,
            term,
            done,
        };
        Self {
            state,
            done: when_done,
            task: tokio::spawn(uninstaller.run()),
        }
    }

    fn uninstall(&self) {
        self.state.send_replace(IndexState {
            synced: true,
            uninstalling: true,
            writes_settled: true,
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn the_leader_takes_everything_back_and_stays_until_nodes_have_heard() {
    let cluster = mesh();
    put_account(&cluster);
    put_pod(&cluster, "ambit-system", "ztunnel-1", "ztunnel");
    let mut leader = Running::start(&cluster, Term::always());
    let mut follower = Running::start(&cluster, Term::never());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(cluster.called("DELETE", "*").is_empty(), "nothing is wrong");

    let began = Instant::now();
    follower.uninstall();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.called("DELETE", "*").is_empty(), "it does not lead");
    leader.uninstall();
    for replica in [&mut leader, &mut follower] {
        let done = replica.done.wait_for(|done| *done);
        tokio::time::timeout(NODES_HEAR + Duration::from_secs(30), done)
            .await
            .expect("in time")
            .expect("it lives");
    }
    // Also those whose streams come back only now, after a long outage.
    assert!(began.elapsed() > BACK_WITHIN);
    assert_eq!(left(&cluster), THEIRS, "the account is let go");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_node_proxies_that_have_all_ended() {
    let cluster = mesh();
    put_account(&cluster);
    put_pod(&cluster, "ambit-system", "controller", "ambit-controller");
    put_pod(&cluster, "theirs", "ztunnel", "ztunnel");
    for name in ["ztunnel-1", "ztunnel-2"] {
        put_pod(&cluster, "ambit-system", name, "ztunnel");
    }
    // Whoever cannot ask waits.
    cluster.spoil_times(1, "LIST", "*/pods", Fault::Refuse(403, "Forbidden"));
    let mut leader = Running::start(&cluster, Term::always());
    let mut follower = Running::start(&cluster, Term::never());
    let began = Instant::now();
    for replica in [&leader, &follower] {
        replica.uninstall();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.remove("pods", "ambit-system", "ztunnel-1");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!*leader.done.borrow() && !*follower.done.borrow());
    cluster.remove("pods", "ambit-system", "ztunnel-2");
    for replica in [&mut leader, &mut follower] {
        let done = replica.done.wait_for(|done| *done);
        tokio::time::timeout(Duration::from_secs(5), done)
            .await
            .expect("in time")
            .expect("it lives");
    }
    assert!(began.elapsed() < BACK_WITHIN);
    assert_eq!(left(&cluster), THEIRS, "the account is let go");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_does_not_hold_the_uninstaller_for_ever() {
    let cluster = mesh();
    cluster.spoil("LIST", "*/deployments", Fault::Hang);
    let mut leader = Running::start(&cluster, Term::always());
    leader.uninstall();
    let done = leader.done.wait_for(|done| *done);
    tokio::time::timeout(Duration::from_secs(300), done)
        .await
        .expect("in time")
        .expect("it lives");
    assert!(cluster.get("services", "tenant8", "gate").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_is_no_sign_that_the_account_was_let_go() {
    const ACCOUNT: &str = "*/serviceaccounts/ambit-controller";
    let poll = Duration::from_secs(1);
    let waits = |times: usize, fault: Fault| async move {
        let cluster = Cluster::new();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ambit-system"}});
        cluster.put(namespace);
        put_account(&cluster);
        cluster.spoil_times(times, "GET", ACCOUNT, fault);
        let installation = Installation::new(client(&cluster), "ambit-system", "ambit-controller");
        let released = installation.released(poll);
        let waited = tokio::time::timeout(Duration::from_secs(60), released).await;
        waited.is_err()
    };
    assert!(waits(0, Fault::Cut).await, "it is held");
    for times in [1, 2] {
        assert!(waits(times, Fault::Refuse(401, "Unauthorized")).await);
    }
    assert!(!waits(3, Fault::Refuse(401, "Unauthorized")).await, "gone");
    assert!(waits(20, Fault::Refuse(403, "Forbidden")).await);
}

#[tokio::test(start_paused = true)]
async fn an_account_without_rights_is_gone_with_its_namespace() {
    let cluster = Cluster::new();
    put_account(&cluster);
    cluster.spoil(
        "GET",
        "*/serviceaccounts/*",
        Fault::Refuse(403, "Forbidden"),
    );
    let installation = Installation::new(client(&cluster), "ambit-system", "ambit-controller");
    let released = installation.released(Duration::from_secs(1));
    let waited = tokio::time::timeout(Duration::from_secs(60), released).await;
    assert!(waited.is_ok());
}

fn installation(cluster: &Cluster) -> Installation {
    Installation::new(client(cluster), "ambit-system", "ambit-controller")
}

/// The mesh's namespace and what it is installed with.
fn put_home(cluster: &Cluster, finalizers: &[&str]) {
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ambit-system", "finalizers": finalizers}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "ambit-system", "name": "ambit-controller"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "ambit-controller"}, "rules": []}),
    ] {
        cluster.put(object);
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_stopped_says_only_what_the_namespace_says() {
    const NAMESPACE: &str = "/api/v1/namespaces/ambit-system";
    let stays = |spoil: fn(&Cluster)| {
        let cluster = Cluster::new();
        put_home(&cluster, &["kubernetes"]);
        spoil(&cluster);
        async move { installation(&cluster).leaving().await }
    };
    assert!(!stays(|_| {}).await, "a restart");
    let account_goes: fn(&Cluster) = |cluster| {
        put_account(cluster);
    };
    assert!(!stays(account_goes).await, "only the account goes");
    let account_gone: fn(&Cluster) =
        |cluster| cluster.remove("serviceaccounts", "ambit-system", "ambit-controller");
    assert!(!stays(account_gone).await, "only the account is gone");
    for fault in [
        Fault::Refuse(401, "Unauthorized"),
        Fault::Refuse(403, "Forbidden"),
        Fault::Refuse(500, "InternalError"),
        Fault::Hang,
        Fault::Cut,
    ] {
        let cluster = Cluster::new();
        cluster.spoil("*", "*", fault.clone());
        assert!(!installation(&cluster).leaving().await, "{fault:?}");
    }
    let absent_twice: fn(&Cluster) =
        |cluster| cluster.spoil_times(2, "GET", NAMESPACE, Fault::Refuse(404, "NotFound"));
    assert!(!stays(absent_twice).await, "an API server that starts");

    let goes: fn(&Cluster) = |cluster| cluster.remove("namespaces", "", "ambit-system");
    assert!(stays(goes).await);
    assert!(installation(&Cluster::new()).leaving().await, "it is gone");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_deleted_alone_may_come_again() {
    let finalizers = |cluster: &Cluster| {
        let account = cluster.get("serviceaccounts", "ambit-system", "ambit-controller");
        account.map(|account| account["metadata"]["finalizers"] == json!([FINALIZER]))
    };
    for (namespace_goes, left) in [(false, None), (true, Some(true))] {
        let cluster = Cluster::new();
        put_home(&cluster, &["kubernetes"]);
        let guard = tokio::spawn(installation(&cluster).guard());
        let held = |cluster: &Cluster| finalizers(cluster) == Some(true);
        cluster.until("the account is held", held).await;
        if namespace_goes {
            cluster.remove("namespaces", "", "ambit-system");
        }
        cluster.remove("serviceaccounts", "ambit-system", "ambit-controller");
        assert_eq!(finalizers(&cluster), Some(true), "held back");
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(
            finalizers(&cluster),
            left,
            "namespace goes: {namespace_goes}"
        );
        guard.abort();
    }
}
