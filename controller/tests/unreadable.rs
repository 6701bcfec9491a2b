//! An object that cannot be decoded has an Event that says where, whoever of the replicas reads it and however many there are.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/replica.rs"]
mod replica;

use std::time::Duration;

use serde_json::{Value, json};

use self::kubernetes::Cluster;
use self::replica::Replica;

/// A pod whose list of containers is none.
fn unreadable(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": "none"},
    })
}

/// The Events of a namespace about what cannot be read.
fn told(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    let mut events = cluster.all("events");
    events.retain(|event| {
        event["reason"] == "Unreadable" && event["metadata"]["namespace"] == namespace
    });
    events
}

#[tokio::test(start_paused = true)]
async fn it_says_where_and_only_once() {
    let cluster = Cluster::new();
    let pod = cluster.put(unreadable("shop", "a"));
    let _replicas = ["controller-0", "controller-1"].map(|name| Replica::start(&cluster, name));
    cluster
        .until("both have told it", |cluster| {
            cluster.called("POST", "*/shop/events").len() == 2
        })
        .await;
    let events = told(&cluster, "shop");
    let [event] = &events[..] else {
        panic!("one Event: {events:?}");
    };
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "Unreadable");
    assert_eq!(event["regarding"]["kind"], "Pod");
    assert_eq!(event["regarding"]["name"], "a");
    assert_eq!(event["regarding"]["uid"], pod["metadata"]["uid"]);
    let note = event["note"].as_str().expect("a note");
    assert!(note.starts_with("spec.containers: invalid type"), "{note}");

    // Whoever changes it and leaves it as wrong as it was hears nothing new.
    cluster.edit("pods", "shop", "a", |pod| {
        pod["metadata"]["labels"] = json!({"app": "a"});
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(told(&cluster, "shop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_namespaces_many_keep_no_other_from_its_own() {
    let cluster = Cluster::new();
    for pod in 0..200 {
        cluster.put(unreadable("many", &format!("p{pod}")));
    }
    cluster.put(unreadable("one", "a"));
    let _replica = Replica::start(&cluster, "controller-0");
    cluster
        .until("the other's", |cluster| told(cluster, "one").len() == 1)
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let many = told(&cluster, "many").len();
    assert!(
        (100..=120).contains(&many),
        "{many}: its burst and its rate"
    );
}
