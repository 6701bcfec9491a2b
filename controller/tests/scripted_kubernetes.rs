//! The scripted Kubernetes is as the real one where tests lean on it.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
    WatchParams,
};
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};

use self::kubernetes::{Cluster, End, Fault};

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": {}})
}

fn condition(type_: &str, status: &str) -> Value {
    json!({"type": type_, "status": status, "reason": "Because", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn conditions(of: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "status": {"conditions": of}})
}

fn code<T>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("no answer: {error}"),
        Ok(_) => 200,
    }
}

fn types(pod: &Value) -> Vec<&str> {
    let all = pod["status"]["conditions"].as_array();
    let types = all.into_iter().flatten().map(|one| one["type"].as_str());
    types.map(Option::unwrap_or_default).collect()
}

#[tokio::test(start_paused = true)]
async fn versions_and_preconditions() {
    let cluster = Cluster::new();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "shop");
    let made = cluster.put(pod("a"));
    let version = made["metadata"]["resourceVersion"].as_str().expect("one");
    assert_eq!(made["metadata"]["generation"], 1);

    // What changes nothing is no event and no version.
    assert_eq!(cluster.put(pod("a")), made);
    let how = PatchParams::default();
    let moved = json!({"metadata": {"resourceVersion": version}, "spec": {"nodeName": "n1"}});
    let patched = pods
        .patch("a", &how, &Patch::Merge(&moved))
        .await
        .expect("in time");
    assert_eq!(patched.metadata.generation, Some(2));
    let stale = pods.patch("a", &how, &Patch::Merge(&moved)).await;
    assert_eq!(code(stale), 409);
    let other = json!({"metadata": {"uid": "another"}, "status": {"phase": "Running"}});
    assert_eq!(
        code(pods.patch_status("a", &how, &Patch::Merge(&other)).await),
        409
    );
    assert_eq!(
        code(pods.patch_status("b", &how, &Patch::Merge(&other)).await),
        404
    );
    let twice: Pod = serde_json::from_value(pod("a")).expect("a pod");
    assert_eq!(code(pods.create(&PostParams::default(), &twice).await), 409);
    let uid = Some("another".to_owned());
    let only = DeleteParams::default().preconditions(Preconditions {
        uid,
        resource_version: None,
    });
    assert_eq!(code(pods.delete("a", &only).await), 409);
    assert_eq!(code(pods.delete("a", &DeleteParams::default()).await), 200);
    assert!(cluster.get("pods", "shop", "a").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_holds_what_is_deleted() {
    let cluster = Cluster::new();
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "shop", "finalizers": ["x/y"]}});
    cluster.put(account.clone());
    cluster.remove("serviceaccounts", "shop", "a");
    let held = cluster.get("serviceaccounts", "shop", "a").expect("held");
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), "shop");
    let none = json!({"metadata": {"finalizers": []}});
    accounts
        .patch_metadata("a", &PatchParams::default(), &Patch::Merge(none))
        .await
        .expect("let go");
    assert!(cluster.get("serviceaccounts", "shop", "a").is_none());
    account["metadata"]["finalizers"] = json!([]);
    cluster.put(account);
}

#[tokio::test(start_paused = true)]
async fn applied_conditions_are_by_type_and_by_manager() {
    let cluster = Cluster::new();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "shop");
    let mut made = pod("a");
    made["status"] = json!({"conditions": [condition("Ready", "True")]});
    cluster.put(made);
    let ours = PatchParams::apply("ours");
    let theirs = PatchParams::apply("theirs");
    let one = conditions(&[condition("Meshed", "True")]);
    let apply = async |how: &PatchParams, body: &Value| {
        let patched = pods.patch_status("a", how, &Patch::Apply(body)).await;
        code(patched)
    };
    assert_eq!(apply(&ours, &one).await, 200);
    let version = cluster.version();
    assert_eq!(apply(&ours, &one).await, 200);
    assert_eq!(cluster.version(), version, "the same again changes nothing");
    let now = |cluster: &Cluster| cluster.get("pods", "shop", "a").expect("a pod");
    assert_eq!(types(&now(&cluster)), ["Ready", "Meshed"]);

    // Another manager may not say otherwise, unless by force; then ours is theirs.
    let other = conditions(&[condition("Meshed", "False")]);
    assert_eq!(apply(&theirs, &other).await, 409);
    assert_eq!(apply(&theirs.clone().force(), &other).await, 200);
    assert_eq!(apply(&ours, &conditions(&[])).await, 200);
    assert_eq!(types(&now(&cluster)), ["Ready", "Meshed"]);
    assert_eq!(now(&cluster)["status"]["conditions"][1]["status"], "False");
    assert_eq!(apply(&theirs, &conditions(&[])).await, 200);
    assert_eq!(types(&now(&cluster)), ["Ready"], "what nobody applies goes");
}

#[tokio::test(start_paused = true)]
async fn pages_are_of_one_version_and_metadata_alone() {
    let cluster = Cluster::new();
    for name in ["a", "b", "c"] {
        cluster.put(pod(name));
    }
    let pods: Api<PartialObjectMeta<Pod>> = Api::all(cluster.client());
    let first = pods
        .list(&ListParams::default().limit(2))
        .await
        .expect("a page");
    assert_eq!(first.items.len(), 2);
    let token = first.metadata.continue_.expect("more");
    cluster.remove("pods", "shop", "c");
    cluster.put(pod("d"));
    let next = ListParams::default().limit(2).continue_token(&token);
    let second = pods.list(&next).await.expect("the rest");
    assert_eq!(second.items[0].metadata.name.as_deref(), Some("c"));
    assert_eq!(second.items.len(), 1);
    assert_eq!(
        second.metadata.resource_version,
        first.metadata.resource_version
    );
    cluster.compact();
    assert_eq!(code(pods.list(&next).await), 410);
}

#[tokio::test(start_paused = true)]
async fn watches_go_on_from_a_version() {
    let cluster = Cluster::new();
    let version = cluster.put(pod("a"))["metadata"]["resourceVersion"].clone();
    let version = version.as_str().expect("a version").to_owned();
    let pods: Api<Pod> = Api::all(cluster.client());
    let mut labelled = pod("b");
    labelled["metadata"]["labels"] = json!({"app": "shop"});
    cluster.put(labelled);
    let params = WatchParams::default().labels("app=shop");
    let mut events = pods
        .watch(&params, &version)
        .await
        .expect("a watch")
        .boxed();
    let said = async |events: &mut futures_util::stream::BoxStream<
        '_,
        kube::Result<WatchEvent<Pod>>,
    >| {
        match events.try_next().await.expect("no error") {
            Some(WatchEvent::Added(pod)) => format!("+{}", pod.metadata.name.expect("a name")),
            Some(WatchEvent::Deleted(pod)) => format!("-{}", pod.metadata.name.expect("a name")),
            Some(WatchEvent::Bookmark(mark)) => format!("@{}", mark.metadata.resource_version),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(said(&mut events).await, "+b");
    // What no longer matches is gone for whoever asked for it.
    cluster.edit("pods", "shop", "b", |pod| {
        pod["metadata"]["labels"] = json!({});
    });
    assert_eq!(said(&mut events).await, "-b");
    let version = cluster.version();
    assert_eq!(said(&mut events).await, format!("@{version}"));

    cluster.pass();
    cluster.compact();
    let mut late = pods.watch(&params, "1").await.expect("a watch").boxed();
    match late.try_next().await {
        Ok(Some(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
    cluster.silence();
    cluster.put(pod("c"));
    let silent = tokio::time::timeout(Duration::from_secs(900), events.try_next()).await;
    assert!(silent.is_err(), "{silent:?}");
}

#[tokio::test(start_paused = true)]
async fn faults_are_by_rule_and_counted() {
    let cluster = Cluster::new();
    cluster.put(pod("a"));
    let pods: Api<Pod> = Api::all(cluster.client());
    let path = "/api/v1/namespaces/shop/pods/*";
    let pods_of = Api::<Pod>::namespaced(cluster.client(), "shop");
    cluster.spoil_times(1, "GET", path, Fault::Refuse(403, "Forbidden"));
    assert_eq!(code(pods_of.get("a").await), 403);
    assert_eq!(code(pods_of.get("a").await), 200);
    assert_eq!(code(pods_of.get("b").await), 404);
    cluster.spoil("GET", path, Fault::Hang);
    let get = |api: Api<Pod>| async move {
        tokio::time::timeout(Duration::from_secs(60), api.get("a")).await
    };
    assert!(get(pods_of.clone()).await.is_err());
    assert_eq!(
        cluster.called("GET", path).last().map(|call| call.end),
        Some(End::GivenUp)
    );
    cluster.heal();
    cluster.freeze();
    assert!(
        tokio::time::timeout(Duration::from_secs(60), pods.list(&ListParams::default()))
            .await
            .is_err()
    );
    let waiting = tokio::spawn(get(pods_of));
    cluster
        .until("a call waits", |cluster| cluster.in_flight("GET", "*") == 1)
        .await;
    cluster.thaw();
    assert!(matches!(waiting.await, Ok(Ok(Ok(_)))));
    cluster.install("gateways", false);
    let missing = kube::api::ApiResource {
        group: "gateway.networking.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        kind: "Gateway".to_owned(),
        plural: "gateways".to_owned(),
    };
    let gateways = Api::<kube::api::DynamicObject>::all_with(cluster.client(), &missing);
    assert_eq!(code(gateways.list(&ListParams::default()).await), 404);
}
