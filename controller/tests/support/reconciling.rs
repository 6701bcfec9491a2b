//! A reconciler at work on the scripted Kubernetes, and what it may be asked to bring about.
//!
//! A test file takes it with `#[path = "support/reconciling.rs"] mod reconciling;`, beside `mod kubernetes;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use controller::index::changes::{
    Condition, ConditionsAt, How, Kind, Notice, Target, WaypointPlan, Write,
};
use controller::index::desired::{DesiredState, Entry, Item, Wanted};
use controller::index::names::Key;
use controller::kubernetes::DeadlineLayer;
use controller::lease::Term;
use controller::metrics::Metrics;
use controller::reconcile::seen::Seen;
use controller::reconcile::{Inputs, Reconciler, Settings};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tower::Layer as _;

use crate::kubernetes::Cluster;

/// A reconciler at work, and the table that it reads.
pub struct Reconciling {
    pub roots: watch::Sender<String>,
    pub table: watch::Sender<DesiredState>,
    pub seen: mpsc::Sender<Seen>,
    pub notices: mpsc::Sender<Notice>,
    pub task: JoinHandle<()>,
}

impl Reconciling {
    /// Alone, and so the leader.
    pub fn start(cluster: &Cluster) -> Self {
        Self::with(cluster, Term::always())
    }

    pub fn with(cluster: &Cluster, term: Term) -> Self {
        Self::publishing(cluster, term, None)
    }

    /// With a file of revocation lists.
    pub fn publishing(cluster: &Cluster, term: Term, revocations: Option<PathBuf>) -> Self {
        let roots = watch::Sender::new("the roots".to_owned());
        let settings = Settings {
            client: kube::Client::new(DeadlineLayer::default().layer(cluster.service()), "default"),
            instance: "controller-0".to_owned(),
            namespace: "ambit-system".to_owned(),
            mesh: settings::waypoints(),
            roots: roots.subscribe(),
            revocations,
        };
        let table = watch::Sender::new(DesiredState::default());
        let (seen, happened) = mpsc::channel(16);
        let (notices, noticed) = mpsc::channel(16);
        let inputs = Inputs {
            desired: table.subscribe(),
            term: term.clone(),
            seen: happened,
            notices: noticed,
        };
        let reconciler = Reconciler::new(settings, term, Metrics::default());
        let task = tokio::spawn(reconciler.run(inputs));
        Self {
            roots,
            table,
            seen,
            notices,
            task,
        }
    }

    pub fn want(&self, item: Item, entry: Entry) {
        self.table.send_modify(|table| {
            table.insert(item, Arc::new(entry));
        });
    }

    pub fn want_pod(&self, cluster: &Cluster, namespace: &str, name: &str, reason: &str) {
        let (item, entry) = pod_status(cluster, namespace, name, reason);
        self.want(item, entry);
    }

    pub fn want_gateway(&self, namespace: &str, name: &str) {
        let plan = WaypointPlan {
            uid: format!("gw-{namespace}-{name}").into(),
            class: "ambit-waypoint".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            unlabelled: Vec::new(),
        };
        let item = Item::Waypoint(Key::new(namespace, name));
        self.want(item, Entry::leader(Wanted::Waypoint(plan)));
    }

    pub fn forget(&self, item: &Item) {
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

pub fn put_pod(cluster: &Cluster, namespace: &str, name: &str) {
    cluster.put(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {},
    }));
}

pub fn put_pods(cluster: &Cluster, namespace: &str, count: usize) {
    for pod in 0..count {
        put_pod(cluster, namespace, &format!("p{pod}"));
    }
}

pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().expect("a UID")
}

pub fn pod_status(cluster: &Cluster, namespace: &str, name: &str, reason: &str) -> (Item, Entry) {
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

pub fn reason(cluster: &Cluster, namespace: &str, name: &str) -> Option<String> {
    let pod = cluster.get("pods", namespace, name)?;
    let conditions = pod["status"]["conditions"].as_array()?;
    let ours = conditions
        .iter()
        .find(|one| one["type"] == "ambit.mesh/InMesh")?;
    Some(ours["reason"].as_str()?.to_owned())
}

/// As the index writes it: over what it sees now.
pub fn over_what_is_seen(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    reason: &str,
) -> (Item, Entry) {
    let (item, mut entry) = pod_status(cluster, namespace, name, reason);
    let pod = cluster.get("pods", namespace, name).expect("a pod");
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let seen = conditions.find(|one| one["type"] == "ambit.mesh/InMesh");
    if let Wanted::Status(write) = &mut entry.wanted {
        write.how = How::ApplyOver(seen.cloned().unwrap_or_default());
    }
    (item, entry)
}

pub fn at(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{name}/status")
}

pub fn events(cluster: &Cluster) -> Vec<Value> {
    cluster
        .all("events")
        .into_iter()
        .filter(|event| event["apiVersion"] == "events.k8s.io/v1")
        .collect()
}

pub async fn deployed(cluster: &Cluster, namespace: &str, name: &str) {
    cluster
        .until(&format!("{namespace}/{name} deployed"), |cluster| {
            ["serviceaccounts", "services", "deployments"]
                .iter()
                .all(|plural| cluster.get(plural, namespace, name).is_some())
        })
        .await;
}

/// Time passes while everything that is due happens.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
