//! Where the signing key comes from, against a scripted API server: one key for all controllers, and no new root while one is
//! published.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::time::Duration;

use controller::ca::store::{SECRET, Store, StoreError};
use futures_util::future::join;
use kubernetes::{Cluster, Fault};
use serde_json::{Value, json};
use tokio::time::Instant;

const NAMESPACE: &str = "ambit-system";
const SECRETS: &str = "/api/v1/namespaces/ambit-system/secrets*";

fn store(cluster: &Cluster, pod: &str) -> Store {
    Store::new(cluster.client(), NAMESPACE, "cluster.local", pod)
}

fn published_roots() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": NAMESPACE, "name": "ambit-ca-root-cert"},
        "data": {"root-cert.pem": "the old one"},
    })
}

#[tokio::test(start_paused = true)]
async fn of_two_controllers_that_start_at_once_both_have_one_key() {
    let cluster = Cluster::new();
    let (a, b) = (store(&cluster, "a"), store(&cluster, "b"));
    let (first, second) = join(a.load(), b.load()).await;
    let roots = first.expect("a key").roots().to_owned();
    assert_eq!(second.expect("a key").roots(), roots);
    assert_eq!(
        store(&cluster, "c").load().await.expect("a key").roots(),
        roots
    );
    assert_eq!(cluster.all("secrets").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_new_root_is_made_while_one_is_published() {
    let cluster = Cluster::new();
    cluster.put(published_roots());
    let error = store(&cluster, "a")
        .load()
        .await
        .expect_err("the key is lost");
    assert!(matches!(error, StoreError::KeyLost(_)), "{error}");
    assert!(cluster.all("secrets").is_empty());
    let text = error.to_string();
    for word in [
        "Secret ambit-ca is missing",
        "Restore",
        "delete ConfigMap ambit-ca-root-cert",
        "restart",
    ] {
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_key_is_told_once_in_an_event_and_waited_for() {
    let cluster = Cluster::new();
    // The key of a mesh, and then only its roots.
    let roots = store(&cluster, "a")
        .load()
        .await
        .expect("a key")
        .roots()
        .to_owned();
    let secret = cluster
        .get("secrets", NAMESPACE, SECRET)
        .expect("the Secret");
    cluster.put(published_roots());
    cluster.remove("secrets", NAMESPACE, SECRET);
    cluster.forget_calls();

    let waiting = tokio::spawn({
        let store = store(&cluster, "b");
        async move { store.wait().await.roots().to_owned() }
    });
    let posts = "/apis/events.k8s.io/*";
    cluster
        .until("it was told again and again", |cluster| {
            cluster.called("POST", posts).len() >= 5
        })
        .await;
    let made = cluster.called("POST", SECRETS);
    assert!(made.is_empty(), "{made:?}");
    let told = cluster.called("POST", posts);
    let names: Vec<_> = told
        .iter()
        .map(|call| call.body["metadata"]["name"].as_str())
        .collect();
    let first = names.first().copied().flatten();
    assert!(
        first.is_some() && names.iter().all(|name| *name == first),
        "{names:?}: one Event"
    );
    let Some(event) = told.first().map(|call| &call.body) else {
        panic!("nothing was told")
    };
    assert_eq!(event["reason"], "SigningKeyMissing");
    assert_eq!(event["regarding"]["name"], "ambit-ca-root-cert");
    assert!(
        event["note"]
            .as_str()
            .is_some_and(|note| note.len() <= 1024)
    );

    // Somebody restores it.
    cluster.put(secret);
    assert_eq!(waiting.await.expect("it ran"), roots);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_refuses_or_is_away_is_asked_again() {
    for fault in [Fault::Refuse(403, "Forbidden"), Fault::Cut, Fault::Busy(1)] {
        let cluster = Cluster::new();
        cluster.spoil_times(3, "*", SECRETS, fault.clone());
        let begun = Instant::now();
        store(&cluster, "a").wait().await;
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(60), "{fault:?}: {waited:?}");
        assert_eq!(cluster.all("secrets").len(), 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_no_key_is_named_and_not_replaced() {
    let cluster = Cluster::new();
    let made = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"namespace": NAMESPACE, "name": SECRET},
        "data": {"ca-cert.pem": "bm8="},
    });
    cluster.put(made);
    let error = store(&cluster, "a").load().await.expect_err("no key");
    assert_eq!(error.to_string(), "Secret ambit-ca: it has no ca-key.pem");
    assert!(cluster.called("POST", SECRETS).is_empty());
}
