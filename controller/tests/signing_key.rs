//! Where the signing key comes from, against a scripted API server: one key for all controllers, no new root while one is
//! published, and none that signs without its root being published.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use controller::ca::store::{SECRET, Store, StoreError};
use futures_util::future::join;
use kubernetes::{Cluster, Fault};
use serde_json::{Value, json};
use tokio::time::Instant;

const NAMESPACE: &str = "ambit-system";
const SECRETS: &str = "/api/v1/namespaces/ambit-system/secrets*";
const EVENTS: &str = "/apis/events.k8s.io/*";

fn store(cluster: &Cluster, pod: &str) -> Store {
    Store::new(cluster.client(), NAMESPACE, "cluster.local", pod)
}

/// As a reconciler publishes them.
fn roots_in(namespace: &str, roots: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "namespace": namespace, "name": "ambit-ca-root-cert",
            "labels": {"app.kubernetes.io/managed-by": "ambit"},
        },
        "data": {"root-cert.pem": roots},
    })
}

fn published_roots() -> Value {
    roots_in(NAMESPACE, "the old one")
}

/// The Secret of another mesh.
async fn another() -> Value {
    let elsewhere = Cluster::new();
    store(&elsewhere, "a").load().await.expect("a key");
    let made = elsewhere.get("secrets", NAMESPACE, SECRET);
    let mut made = made.expect("the Secret");
    made["metadata"] = json!({"namespace": NAMESPACE, "name": SECRET});
    made
}

fn part(secret: &Value, name: &str) -> String {
    let text = secret["data"][name].as_str().expect("a part");
    String::from_utf8(BASE64.decode(text).expect("base64")).expect("text")
}

/// The key of `secret`, under these roots.
fn under(secret: &Value, roots: &[&Value]) -> Value {
    let roots: String = roots.iter().map(|one| part(one, "ca-cert.pem")).collect();
    let mut secret = secret.clone();
    secret["data"]["root-cert.pem"] = json!(BASE64.encode(roots));
    secret
}

fn signed_by(leaf: &[u8], issuer: &str) -> bool {
    let (_, issuer) = x509_parser::pem::parse_x509_pem(issuer.as_bytes()).expect("PEM");
    let issuer = issuer.parse_x509().expect("a certificate");
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).expect("a certificate");
    leaf.verify_signature(Some(issuer.public_key())).is_ok()
}

#[tokio::test(start_paused = true)]
async fn of_two_controllers_that_start_at_once_both_have_one_key() {
    let cluster = Cluster::new();
    let (a, b) = (store(&cluster, "a"), store(&cluster, "b"));
    let (first, second) = join(a.load(), b.load()).await;
    let roots = first.expect("a key").roots();
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
    let roots = store(&cluster, "a").load().await.expect("a key").roots();
    let secret = cluster
        .get("secrets", NAMESPACE, SECRET)
        .expect("the Secret");
    cluster.put(roots_in(NAMESPACE, &roots));
    cluster.remove("secrets", NAMESPACE, SECRET);
    cluster.forget_calls();

    let waiting = tokio::spawn({
        let store = store(&cluster, "b");
        async move { store.wait().await.roots() }
    });
    cluster
        .until("it was told again and again", |cluster| {
            cluster.called("POST", EVENTS).len() >= 5
        })
        .await;
    let made = cluster.called("POST", SECRETS);
    assert!(made.is_empty(), "{made:?}");
    let told = cluster.called("POST", EVENTS);
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

#[tokio::test(start_paused = true)]
async fn no_new_root_is_made_while_one_is_published_in_another_namespace() {
    let cluster = Cluster::new();
    // Our own namespace was deleted by force and made anew.
    let long = "x".repeat(55);
    for shop in 0..20 {
        let namespace = format!("shop-{shop:02}-{long}");
        cluster.put(roots_in(&namespace, "the old one"));
    }
    let error = store(&cluster, "a").load().await.expect_err("it is lost");
    assert!(matches!(error, StoreError::KeyLost(_)), "{error}");
    assert!(cluster.all("secrets").is_empty());
    let text = error.to_string();
    for word in ["is missing", "shop-00", "shop-01", "and others"] {
        assert!(text.contains(word), "{text}");
    }
    let lists = cluster.called("LIST", "/api/v1/configmaps");
    let [list] = lists.as_slice() else {
        panic!("{lists:?}")
    };
    let asked = |name: &str| list.query.iter().find(|(key, _)| key == name);
    assert!(asked("limit").is_some(), "{list:?}");
    // What the controller's role lets it list.
    let field = asked("fieldSelector").expect("by name");
    assert_eq!(field.1, "metadata.name=ambit-ca-root-cert");

    let waiting = tokio::spawn({
        let store = store(&cluster, "b");
        async move { store.wait().await }
    });
    cluster
        .until("it is told", |cluster| {
            !cluster.called("POST", EVENTS).is_empty()
        })
        .await;
    let event = &cluster.called("POST", EVENTS)[0].body;
    assert_eq!(event["reason"], "SigningKeyMissing");
    assert_eq!(event["metadata"]["namespace"], NAMESPACE);
    assert_eq!(event["regarding"]["name"], SECRET);
    let note = event["note"].as_str().expect("a note");
    assert!(note.len() <= 1024, "{}", note.len());
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_config_map_that_we_did_not_make_holds_up_no_first_install() {
    let cluster = Cluster::new();
    let mut theirs = roots_in("shop", "theirs");
    theirs["metadata"]["labels"] = json!({});
    cluster.put(theirs);
    store(&cluster, "a").load().await.expect("a key");
}

#[tokio::test(start_paused = true)]
async fn a_key_under_no_published_root_signs_nothing_until_one_is_its() {
    let (ours, theirs) = (another().await, another().await);
    for namespace in [NAMESPACE, "shop"] {
        let cluster = Cluster::new();
        cluster.put(roots_in(namespace, &part(&ours, "ca-cert.pem")));
        cluster.put(theirs.clone());
        let error = store(&cluster, "a").load().await.expect_err("not its root");
        assert!(matches!(error, StoreError::Untrusted(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(namespace), "{text}");
        let waiting = tokio::spawn({
            let store = store(&cluster, "b");
            async move { store.wait().await.roots() }
        });
        cluster
            .until("it is told", |cluster| {
                !cluster.called("POST", EVENTS).is_empty()
            })
            .await;
        let event = &cluster.called("POST", EVENTS)[0].body;
        assert_eq!(event["reason"], "SigningKeyUntrusted");
        assert!(
            event["note"]
                .as_str()
                .is_some_and(|note| note.len() <= 1024)
        );
        assert!(!waiting.is_finished());
        cluster.put(under(&ours, &[&ours, &theirs]));
        let roots = waiting.await.expect("it ran");
        assert!(roots.contains(&part(&theirs, "ca-cert.pem")));
    }
}

#[tokio::test(start_paused = true)]
async fn roots_that_somebody_says_he_has_stop_no_key_whose_root_ours_is() {
    let cluster = Cluster::new();
    let ours = another().await;
    cluster.put(ours.clone());
    cluster.put(roots_in("a-tenant", "forged"));
    cluster.put(roots_in("shop", &part(&ours, "ca-cert.pem")));
    store(&cluster, "a").load().await.expect("ours");
    // Our own namespace is believed before any other.
    cluster.remove("configmaps", "shop", "ambit-ca-root-cert");
    cluster.put(roots_in(NAMESPACE, &part(&ours, "ca-cert.pem")));
    store(&cluster, "a").load().await.expect("ours");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_its_own_roots_do_not_lead_to_is_none() {
    let cluster = Cluster::new();
    let (ours, theirs) = (another().await, another().await);
    cluster.put(under(&ours, &[&theirs]));
    let error = store(&cluster, "a").load().await.expect_err("rootless");
    assert!(matches!(error, StoreError::Unusable(_)), "{error}");
}

/// The way from one key to another that the README tells, seen by a replica that runs all the time.
#[tokio::test(start_paused = true)]
async fn a_replica_that_runs_takes_another_key_over_once_its_root_is_published() {
    let cluster = Cluster::new();
    let store = store(&cluster, "a");
    let authority = Arc::new(store.load().await.expect("a key"));
    let old = cluster.get("secrets", NAMESPACE, SECRET).expect("made");
    let new = another().await;
    cluster.put(roots_in(NAMESPACE, &authority.roots()));
    let mut roots = authority.watch_roots();
    tokio::spawn({
        let authority = authority.clone();
        async move { store.keep(&authority).await }
    });

    // At once: nobody has its root.
    cluster.put(new.clone());
    let told = |cluster: &Cluster| cluster.called("POST", EVENTS);
    cluster
        .until("it is told", |cluster| !told(cluster).is_empty())
        .await;
    assert_eq!(told(&cluster)[0].body["reason"], "SigningKeyUntrusted");
    assert_eq!(authority.roots(), part(&old, "ca-cert.pem"));

    // Gone: it is missed, and the mesh goes on.
    cluster.remove("secrets", NAMESPACE, SECRET);
    cluster
        .until("it is told", |cluster| {
            let mut told = told(cluster).into_iter();
            told.any(|call| call.body["reason"] == "SigningKeyMissing")
        })
        .await;
    assert_eq!(authority.roots(), part(&old, "ca-cert.pem"));

    // The new root beside the old one, then the new key, then without the old root.
    let begun = Instant::now();
    for (key, under_these) in [
        (&old, vec![&old, &new]),
        (&new, vec![&old, &new]),
        (&new, vec![&new]),
    ] {
        roots.borrow_and_update();
        cluster.put(under(key, &under_these));
        roots.changed().await.expect("it keeps the key");
        let published = roots.borrow().clone();
        cluster.put(roots_in(NAMESPACE, &published));
        let server = authority.server(&["a".to_owned()]).expect("signed");
        assert!(signed_by(&server.chain[0], &part(key, "ca-cert.pem")));
    }
    assert!(begun.elapsed() <= Duration::from_secs(3 * 60));
    assert_eq!(authority.roots(), part(&new, "ca-cert.pem"));
}
