//! What is seen of things that were made: every change but that of their status, and nothing of other people's.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::time::Duration;

use controller::index::names::Key;
use controller::reconcile::seen::{self, Seen};
use mesh::process::shutdown::Supervisor;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::kubernetes::Cluster;

const KINDS: [(&str, &str, &str); 3] = [
    ("apps/v1", "Deployment", "deployments"),
    ("v1", "Service", "services"),
    ("v1", "ServiceAccount", "serviceaccounts"),
];

fn made(api: &str, kind: &str, name: &str, by: &str) -> Value {
    json!({
        "apiVersion": api,
        "kind": kind,
        "metadata": {"namespace": "shop", "name": name, "labels": {"gateway.istio.io/managed": by}},
        "spec": {},
    })
}

fn map(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": "shop", "name": name},
        "data": {"root-cert.pem": "x"},
    })
}

/// What is seen until nothing more is.
async fn all(seen: &mut mpsc::Receiver<Seen>) -> Vec<Seen> {
    let mut all = Vec::new();
    while let Ok(Some(one)) = timeout(Duration::from_secs(5), seen.recv()).await {
        all.push(one);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn every_change_of_what_was_made_is_seen_but_that_of_its_status() {
    let cluster = Cluster::new();
    let (to, mut happened) = mpsc::channel(64);
    let mut tasks = Supervisor::new();
    for (api, kind, _) in KINDS {
        cluster.put(made(api, kind, "gate", "ambit.mesh-waypoint-controller"));
        cluster.put(made(api, kind, "theirs", "somebody"));
    }
    seen::all(&cluster.client(), &to, &mut tasks);
    let gate = Seen::Child(Key::new("shop", "gate"));
    let one = std::slice::from_ref(&gate);
    assert_eq!(all(&mut happened).await, vec![gate.clone(); 3], "listed");
    for (_, _, plural) in KINDS {
        let change = |with: fn(&mut Value)| {
            cluster.edit(plural, "shop", "gate", with);
            cluster.edit(plural, "shop", "theirs", with);
        };
        if plural != "serviceaccounts" {
            change(|object| object["status"] = json!({"replicas": 7}));
            assert!(all(&mut happened).await.is_empty(), "{plural}: its status");
        }
        let changes: [fn(&mut Value); 4] = [
            |object| object["spec"] = json!({"x": 1}),
            |object| object["metadata"]["labels"]["x"] = json!("y"),
            |object| object["metadata"]["annotations"] = json!({"x": "y"}),
            |object| {
                object["metadata"]["ownerReferences"] =
                    json!([{"uid": "u", "kind": "K", "name": "n", "apiVersion": "v1"}]);
            },
        ];
        for (number, with) in changes.into_iter().enumerate() {
            change(with);
            assert_eq!(all(&mut happened).await, one, "{plural}: {number}");
        }
        cluster.remove(plural, "shop", "gate");
        assert_eq!(all(&mut happened).await, one, "{plural}: gone");
    }
}

#[tokio::test(start_paused = true)]
async fn roots_are_seen_by_their_name_wherever_they_are() {
    let cluster = Cluster::new();
    let (to, mut happened) = mpsc::channel(64);
    let mut tasks = Supervisor::new();
    seen::all(&cluster.client(), &to, &mut tasks);
    assert!(all(&mut happened).await.is_empty());
    cluster.put(map("other"));
    cluster.put(map("ambit-ca-root-cert"));
    let roots = [Seen::Roots("shop".into())];
    assert_eq!(all(&mut happened).await, roots);
    cluster.edit("configmaps", "shop", "ambit-ca-root-cert", |map| {
        map["data"]["root-cert.pem"] = json!("forged");
    });
    assert_eq!(all(&mut happened).await, roots);
    cluster.remove("configmaps", "shop", "ambit-ca-root-cert");
    assert_eq!(all(&mut happened).await, roots);
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_while_nobody_watched_is_seen_by_the_next_list() {
    let cluster = Cluster::new();
    let (to, mut happened) = mpsc::channel(64);
    let mut tasks = Supervisor::new();
    for name in ["gate", "stays"] {
        cluster.put(made(
            "apps/v1",
            "Deployment",
            name,
            "ambit.mesh-waypoint-controller",
        ));
    }
    seen::all(&cluster.client(), &to, &mut tasks);
    let seen_of = |name: &str| Seen::Child(Key::new("shop", name));
    assert_eq!(all(&mut happened).await, ["gate", "stays"].map(seen_of));
    cluster.cut();
    cluster.remove("deployments", "shop", "gate");
    cluster.pass();
    cluster.compact();
    assert_eq!(all(&mut happened).await, [seen_of("gate")]);
}
