//! The reconciler against a Kubernetes that hangs, refuses, loses objects, and is changed by others.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use controller::desired::{DesiredState, Entry, Item, Wanted, Writer};
use controller::index::changes::{
    Condition, ConditionsAt, How, Kind, Notice, Target, WaypointPlan, Write,
};
use controller::index::names::Key;
use controller::kubernetes::DeadlineLayer;
use controller::lease::Term;
use controller::metrics::Metrics;
use controller::reconcile::seen::Seen;
use controller::reconcile::{Inputs, Reconciler, Settings};
use controller::waypoint::render::Mesh;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::Layer as _;

use self::kubernetes::{Cluster, End, Fault};

/// A reconciler at work, and the table that it reads.
struct Reconciling {
    table: watch::Sender<DesiredState>,
    seen: mpsc::Sender<Seen>,
    task: JoinHandle<()>,
}

fn mesh() -> Mesh {
    Mesh {
        image: "ambit/waypoint:test".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        xds_address: "ambit-controller.ambit-system.svc:15012".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        log_format: "text".to_owned(),
    }
}

impl Reconciling {
    /// Alone, and so the leader.
    fn start(cluster: &Cluster) -> Self {
        Self::with(cluster, Term::always())
    }

    fn with(cluster: &Cluster, term: Term) -> Self {
        let settings = Settings {
            client: kube::Client::new(DeadlineLayer::default().layer(cluster.service()), "default"),
            instance: "controller-0".to_owned(),
            namespace: "ambit-system".to_owned(),
            mesh: mesh(),
            roots: "the roots".to_owned(),
        };
        let table = watch::Sender::new(DesiredState::default());
        let (seen, happened) = mpsc::channel(16);
        let inputs = Inputs {
            desired: table.subscribe(),
            term: term.clone(),
            seen: happened,
        };
        let reconciler = Reconciler::new(settings, term, Metrics::default());
        let task = tokio::spawn(reconciler.run(inputs));
        Self { table, seen, task }
    }

    fn want(&self, item: Item, entry: Entry) {
        self.table.send_modify(|table| {
            table.insert(item, Arc::new(entry));
        });
    }

    fn want_pod(&self, cluster: &Cluster, namespace: &str, name: &str, reason: &str) {
        let (item, entry) = pod_status(cluster, namespace, name, reason);
        self.want(item, entry);
    }

    fn want_gateway(&self, namespace: &str, name: &str) {
        let plan = WaypointPlan {
            uid: format!("gw-{namespace}-{name}").into(),
            class: "ambit-waypoint".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        let item = Item::Waypoint(Key::new(namespace, name));
        self.want(item, Entry::leader(Wanted::Waypoint(plan)));
    }

    fn forget(&self, item: &Item) {
        self.table.send_modify(|table| {
            table.remove(item);
        });
    }
}

impl Drop for Reconciling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn put_pod(cluster: &Cluster, namespace: &str, name: &str) {
    cluster.put(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {},
    }));
}

fn put_pods(cluster: &Cluster, namespace: &str, count: usize) {
    for pod in 0..count {
        put_pod(cluster, namespace, &format!("p{pod}"));
    }
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().expect("a UID")
}

fn pod_status(cluster: &Cluster, namespace: &str, name: &str, reason: &str) -> (Item, Entry) {
    let pod = cluster.get("pods", namespace, name).expect("a pod");
    let target = Target {
        kind: Kind::Pod,
        key: Key::new(namespace, name),
    };
    let body = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": uid(&pod)},
        "status": {},
    });
    let condition = Condition {
        kind: "ambit.mesh/InMesh",
        on: false,
        reason: reason.to_owned().into(),
        message: String::new(),
        generation: None,
        since: None,
    };
    let notice = Notice {
        target: target.clone(),
        uid: uid(&pod).into(),
        warning: true,
        reason: reason.to_owned(),
        note: format!("{reason}\nforged"),
    };
    let write = Write {
        how: How::Apply,
        body,
        conditions: vec![ConditionsAt {
            within: "/status".to_owned(),
            conditions: vec![condition],
        }],
        notices: vec![notice],
    };
    (Item::Status(target), Entry::leader(Wanted::Status(write)))
}

fn reason(cluster: &Cluster, namespace: &str, name: &str) -> Option<String> {
    let pod = cluster.get("pods", namespace, name)?;
    let conditions = pod["status"]["conditions"].as_array()?;
    let ours = conditions
        .iter()
        .find(|one| one["type"] == "ambit.mesh/InMesh")?;
    Some(ours["reason"].as_str()?.to_owned())
}

fn at(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}/status")
}

fn events(cluster: &Cluster) -> Vec<Value> {
    cluster
        .all("events")
        .into_iter()
        .filter(|event| event["apiVersion"] == "events.k8s.io/v1")
        .collect()
}

async fn deployed(cluster: &Cluster, namespace: &str, name: &str) {
    cluster
        .until(&format!("{namespace}/{name} deployed"), |cluster| {
            ["serviceaccounts", "services", "deployments"]
                .iter()
                .all(|plural| cluster.get(plural, namespace, name).is_some())
        })
        .await;
}

/// Time passes while everything that is due happens.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn sixteen_hung_patches_of_one_namespace_do_not_stop_anothers() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 1100);
    put_pod(&cluster, "other", "a");
    cluster.spoil("PATCH", "/api/v1/namespaces/shop/*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    for pod in 0..1100 {
        reconciling.want_pod(&cluster, "shop", &format!("p{pod}"), "Pending");
    }
    cluster
        .until("16 hang", |cluster| {
            cluster.in_flight("PATCH", "*/shop/*") == 16
        })
        .await;
    let began = Instant::now();
    reconciling.want_pod(&cluster, "other", "a", "Pending");
    cluster
        .until("another's is written", |cluster| {
            reason(cluster, "other", "a").is_some()
        })
        .await;
    assert_eq!(began.elapsed(), Duration::ZERO, "at once");
    assert_eq!(cluster.in_flight("PATCH", "*/shop/*"), 16);
}

#[tokio::test(start_paused = true)]
async fn a_seventeenth_patch_of_the_same_namespace_is_tried_within_a_minute() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 17);
    cluster.spoil_times(16, "PATCH", "/api/v1/namespaces/shop/*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    let began = Instant::now();
    for pod in 0..17 {
        reconciling.want_pod(&cluster, "shop", &format!("p{pod}"), "Pending");
    }
    cluster
        .until("all are written, also those that hung", |cluster| {
            (0..17).all(|pod| reason(cluster, "shop", &format!("p{pod}")).is_some())
        })
        .await;
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    let given_up = cluster.called("PATCH", "*").into_iter();
    let given_up = given_up.filter(|call| call.end == End::GivenUp);
    assert_eq!(given_up.count(), 16, "each hung call has ended");
}

#[tokio::test(start_paused = true)]
async fn an_object_is_written_by_one_at_a_time_and_the_newest_wins() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    cluster.spoil("PATCH", "*", Fault::Delay(Duration::from_secs(1)));
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "First");
    cluster
        .until("the first is on its way", |cluster| {
            cluster.in_flight("PATCH", "*") == 1
        })
        .await;
    for reason in ["Second", "Third", "Fourth"] {
        reconciling.want_pod(&cluster, "shop", "a", reason);
        pass(Duration::from_millis(10)).await;
        assert_eq!(cluster.in_flight("PATCH", "*"), 1);
    }
    cluster
        .until("the last is written", |cluster| {
            reason(cluster, "shop", "a").as_deref() == Some("Fourth")
        })
        .await;
    let (item, _) = pod_status(&cluster, "shop", "a", "Fourth");
    reconciling.forget(&item);
    pass(Duration::from_secs(600)).await;
    let patches = cluster.called("PATCH", "*");
    assert_eq!(
        patches.len(),
        2,
        "what was wanted in between is not written"
    );
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_another_now_or_gone_is_left_to_the_index() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    put_pod(&cluster, "shop", "b");
    let stale = pod_status(&cluster, "shop", "a", "NoNetns");
    let gone = pod_status(&cluster, "shop", "b", "NoNetns");
    cluster.remove("pods", "shop", "a");
    cluster.remove("pods", "shop", "b");
    put_pod(&cluster, "shop", "a");
    let reconciling = Reconciling::start(&cluster);
    reconciling.want(stale.0.clone(), stale.1);
    reconciling.want(gone.0.clone(), gone.1);
    pass(Duration::from_secs(10)).await;
    let answers: BTreeSet<String> = cluster
        .called("PATCH", "*")
        .iter()
        .map(|call| format!("{} {:?}", call.path, call.end))
        .collect();
    let expected = [
        format!("{} {:?}", at("shop", "a"), End::Answered(409)),
        format!("{} {:?}", at("shop", "b"), End::Answered(404)),
    ];
    assert_eq!(answers, expected.into());
    assert_eq!(cluster.called("PATCH", "*").len(), 2, "once each");
    assert_eq!(reason(&cluster, "shop", "a"), None);
    // The watch has shown them: the new one gets what is its own.
    reconciling.forget(&gone.0);
    reconciling.want_pod(&cluster, "shop", "a", "Fresh");
    cluster
        .until("the new one is written", |cluster| {
            reason(cluster, "shop", "a").as_deref() == Some("Fresh")
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn each_refusal_has_its_consequence() {
    let cluster = Cluster::new();
    let waits = [
        ("busy", Fault::Busy(7), 7..9),
        ("refused", Fault::Refuse(422, "Invalid"), 150..301),
        ("forbidden", Fault::Refuse(403, "Forbidden"), 0..1),
        ("broken", Fault::Refuse(500, "InternalError"), 0..1),
        ("cut", Fault::Cut, 0..1),
    ];
    let reconciling = Reconciling::start(&cluster);
    for (name, fault, _) in &waits {
        put_pod(&cluster, name, "a");
        cluster.spoil_times(1, "PATCH", &at(name, "a"), fault.clone());
        reconciling.want_pod(&cluster, name, "a", "Pending");
    }
    for (name, _, seconds) in waits {
        cluster
            .until(name, |cluster| reason(cluster, name, "a").is_some())
            .await;
        let calls = cluster.called("PATCH", &at(name, "a"));
        let waited = calls[1].at - calls[0].at;
        assert!(seconds.contains(&waited.as_secs()), "{name}: {waited:?}");
    }
    let refused: Vec<Value> = events(&cluster)
        .into_iter()
        .filter(|event| event["reason"] == "StatusRefused")
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0]["regarding"]["namespace"], "refused");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_lasts_is_met_ever_more_rarely() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    cluster.spoil("PATCH", "*", Fault::Refuse(500, "InternalError"));
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "Pending");
    pass(Duration::from_secs(3600)).await;
    let calls = cluster.called("PATCH", "*").len();
    assert!((20..45).contains(&calls), "{calls} in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_somebody_took_back_unseen_is_made_again() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "Pending");
    cluster
        .until("written", |cluster| reason(cluster, "shop", "a").is_some())
        .await;
    cluster.edit("pods", "shop", "a", |pod| pod["status"] = json!({}));
    pass(Duration::from_secs(40)).await;
    assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("Pending"));
}

#[tokio::test(start_paused = true)]
async fn a_condition_flips_when_it_is_first_written_whatever_happens_to_the_write() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let begun = jiff::Timestamp::now().as_second();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "Failed");
    cluster
        .until("written", |cluster| reason(cluster, "shop", "a").is_some())
        .await;
    // Somebody takes it back, unseen: it is written again.
    cluster.edit("pods", "shop", "a", |pod| pod["status"] = json!({}));
    pass(Duration::from_secs(40)).await;
    let writes = cluster.called("PATCH", &at("shop", "a"));
    let since = |call: &kubernetes::Call| {
        let since = &call.body["status"]["conditions"][0]["lastTransitionTime"];
        since.as_str().expect("a time").to_owned()
    };
    assert!(writes.len() > 1, "{writes:?}");
    assert_eq!(since(&writes[0]), since(&writes[1]));
    let time: jiff::Timestamp = since(&writes[0]).parse().expect("a time");
    assert!((begun..begun + 60).contains(&time.as_second()), "{time}");
}

#[tokio::test(start_paused = true)]
async fn people_are_told_once_in_one_line() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let standing = Notice {
        target: Target {
            kind: Kind::HttpRoute,
            key: Key::new("shop", "r"),
        },
        uid: "route".into(),
        warning: true,
        reason: "UnsupportedValue".to_owned(),
        note: "x".repeat(4096),
    };
    for replica in ["first", "second"] {
        let reconciling = Reconciling::start(&cluster);
        reconciling.want(
            Item::Events(standing.target.clone()),
            Entry::leader(Wanted::Events(vec![standing.clone()])),
        );
        if replica == "first" {
            reconciling.want_pod(&cluster, "shop", "a", "Pending");
        }
        pass(Duration::from_secs(20)).await;
    }
    let events = events(&cluster);
    let notes: Vec<&str> = events
        .iter()
        .map(|event| event["note"].as_str().expect("a note"))
        .collect();
    assert_eq!(notes.len(), 2, "{events:?}");
    assert!(notes.contains(&"Pending\\nforged"), "{notes:?}");
    assert!(notes.contains(&&*"x".repeat(1024)));
}

#[tokio::test(start_paused = true)]
async fn events_of_one_namespace_are_bounded_and_others_have_theirs() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 200);
    put_pod(&cluster, "other", "a");
    let reconciling = Reconciling::start(&cluster);
    for pod in 0..200 {
        reconciling.want_pod(&cluster, "shop", &format!("p{pod}"), "Failed");
    }
    cluster
        .until("all are written", |cluster| {
            (0..200).all(|pod| reason(cluster, "shop", &format!("p{pod}")).is_some())
        })
        .await;
    reconciling.want_pod(&cluster, "other", "a", "Failed");
    pass(Duration::from_secs(5)).await;
    let by = |namespace: &str| {
        let of = |event: &&Value| event["metadata"]["namespace"] == namespace;
        events(&cluster).iter().filter(of).count()
    };
    assert!((100..130).contains(&by("shop")), "{}", by("shop"));
    assert_eq!(by("other"), 1);
}

#[tokio::test(start_paused = true)]
async fn one_gateway_that_cannot_be_deployed_delays_no_other() {
    let cluster = Cluster::new();
    cluster.put(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "bad", "name": "gate"},
        "spec": {},
    }));
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("bad", "gate");
    for tenant in 0..100 {
        reconciling.want_gateway(&format!("tenant{tenant}"), "gate");
    }
    let began = Instant::now();
    for tenant in 0..100 {
        deployed(&cluster, &format!("tenant{tenant}"), "gate").await;
    }
    assert!(began.elapsed() < Duration::from_secs(1));

    pass(Duration::from_secs(1200)).await;
    let looks = cluster.called("GET", "*/bad/services/gate").len();
    assert!((10..30).contains(&looks), "{looks} tries in 20 minutes");
    assert!(
        cluster.called("PATCH", "*/bad/*").is_empty(),
        "it is not ours"
    );
    let told: Vec<Value> = events(&cluster)
        .into_iter()
        .filter(|event| event["reason"] == "DeploymentFailed")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0]["note"]
            .as_str()
            .expect("a note")
            .contains("a Service of this name")
    );

    // Its name is free: the next try succeeds, or a change of the Gateway.
    cluster.remove("services", "bad", "gate");
    pass(Duration::from_secs(310)).await;
    deployed(&cluster, "bad", "gate").await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_gateways_that_hang_stop_nobody_elses() {
    let cluster = Cluster::new();
    cluster.spoil("*", "*/bad/*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    for gateway in 0..100 {
        reconciling.want_gateway("bad", &format!("gate{gateway}"));
    }
    pass(Duration::from_secs(60)).await;
    let began = Instant::now();
    reconciling.want_gateway("good", "gate");
    deployed(&cluster, "good", "gate").await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn replicas_are_said_once_and_are_whoevers_who_scales() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    let replicas = |cluster: &Cluster| {
        let deployment = cluster.get("deployments", "shop", "gate")?;
        deployment["spec"]["replicas"].as_i64()
    };
    cluster
        .until("two of them", |cluster| replicas(cluster) == Some(2))
        .await;
    cluster.edit("deployments", "shop", "gate", |deployment| {
        deployment["spec"]["replicas"] = json!(7);
    });
    cluster.forget_calls();
    pass(Duration::from_secs(900)).await;
    let patches = cluster.called("PATCH", "*/deployments/gate");
    assert!(!patches.is_empty(), "it is looked after");
    for patch in patches {
        assert!(patch.body["spec"]["replicas"].is_null(), "{:?}", patch.body);
    }
    assert_eq!(replicas(&cluster), Some(7));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_deletes_or_changes_is_made_again() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    deployed(&cluster, "shop", "gate").await;
    pass(Duration::from_secs(1)).await;
    cluster.remove("services", "shop", "gate");
    cluster.edit("deployments", "shop", "gate", |deployment| {
        deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil");
    });
    let seen = Seen::Child(Key::new("shop", "gate"));
    reconciling.seen.send(seen).await.expect("it listens");
    pass(Duration::from_secs(1)).await;
    deployed(&cluster, "shop", "gate").await;
    let deployment = cluster.get("deployments", "shop", "gate").expect("there");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "ambit/waypoint:test");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_wanted_is_taken_away_if_the_gateway_owns_it() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    deployed(&cluster, "shop", "gate").await;
    cluster.edit("services", "shop", "gate", |service| {
        service["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    });
    let item = Item::Waypoint(Key::new("shop", "gate"));
    let gone = Wanted::NoWaypoint {
        gateway_uid: "gw-shop-gate".into(),
    };
    reconciling.want(item, Entry::leader(gone));
    pass(Duration::from_secs(1)).await;
    assert!(cluster.get("deployments", "shop", "gate").is_none());
    assert!(cluster.get("serviceaccounts", "shop", "gate").is_none());
    assert!(cluster.get("services", "shop", "gate").is_some());
}

#[tokio::test(start_paused = true)]
async fn roots_classes_and_accepted_generations_are_kept_and_taken_away() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    let roots = Item::Roots("shop".into());
    reconciling.want(roots.clone(), Entry::leader(Wanted::Roots));
    let class = Item::Class("ambit-waypoint".into());
    reconciling.want(class, Entry::leader(Wanted::Class));
    let accepted = Item::Accepted("shop".into());
    let generations = BTreeMap::from([("HTTPRoute.r".to_owned(), "{}".to_owned())]);
    let entry = Entry::leader(Wanted::Accepted(generations));
    reconciling.want(accepted.clone(), entry);
    pass(Duration::from_secs(1)).await;
    let root = |cluster: &Cluster| cluster.get("configmaps", "shop", "ambit-ca-root-cert");
    let map = root(&cluster).expect("the roots");
    assert_eq!(map["data"]["root-cert.pem"], "the roots");
    assert!(
        cluster
            .get("gatewayclasses", "", "ambit-waypoint")
            .is_some()
    );
    let kept = |cluster: &Cluster| cluster.get("configmaps", "ambit-system", "ambit-accepted-shop");
    let map = kept(&cluster).expect("the generations");
    assert_eq!(map["data"]["HTTPRoute.r"], "{}");

    cluster.edit("configmaps", "shop", "ambit-ca-root-cert", |map| {
        map["data"]["root-cert.pem"] = json!("forged");
    });
    let seen = Seen::Roots("shop".into());
    reconciling.seen.send(seen).await.expect("it listens");
    pass(Duration::from_secs(1)).await;
    let map = root(&cluster).expect("the roots");
    assert_eq!(map["data"]["root-cert.pem"], "the roots");

    reconciling.want(roots, Entry::leader(Wanted::NoRoots));
    reconciling.want(accepted, Entry::leader(Wanted::Accepted(BTreeMap::new())));
    pass(Duration::from_secs(1)).await;
    assert_eq!(root(&cluster), None);
    assert_eq!(kept(&cluster), None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_lead_writes_only_what_it_alone_knows() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    put_pod(&cluster, "shop", "b");
    let reconciling = Reconciling::with(&cluster, Term::never());
    reconciling.want_gateway("shop", "gate");
    reconciling.want_pod(&cluster, "shop", "a", "Pending");
    let (item, mut entry) = pod_status(&cluster, "shop", "b", "NoNetns");
    entry.writer = Writer::ThisReplica;
    reconciling.want(item, entry);
    pass(Duration::from_secs(600)).await;
    assert_eq!(reason(&cluster, "shop", "b").as_deref(), Some("NoNetns"));
    assert_eq!(reason(&cluster, "shop", "a"), None);
    assert!(cluster.called("*", "*/deployments/*").is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_leaders_guess_never_goes_over_a_nodes_word() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let (item, guess) = pod_status(&cluster, "shop", "a", "Pending");
    let (_, mut word) = pod_status(&cluster, "shop", "a", "NoNetns");
    word.writer = Writer::ThisReplica;
    let other = Reconciling::with(&cluster, Term::never());
    other.want(item.clone(), word);
    cluster
        .until("the node's word stands there", |cluster| {
            reason(cluster, "shop", "a").is_some()
        })
        .await;
    let leader = Reconciling::start(&cluster);
    leader.want(item, guess);
    pass(Duration::from_secs(120)).await;
    let guesses = cluster.called("PATCH", "*").into_iter();
    let guesses =
        guesses.filter(|call| call.body["status"]["conditions"][0]["reason"] == "Pending");
    assert_eq!(guesses.count(), 0);
    assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("NoNetns"));
}

#[tokio::test(start_paused = true)]
async fn a_guess_is_compared_again_when_the_pod_moves_on() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    cluster.spoil_times(1, "PATCH", "*", Fault::Refuse(409, "Conflict"));
    let leader = Reconciling::start(&cluster);
    leader.want_pod(&cluster, "shop", "a", "Pending");
    pass(Duration::from_secs(1)).await;
    assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("Pending"));
    assert_eq!(cluster.called("PATCH", "*").len(), 2);
}
