//! What a watch on the scripted Kubernetes says, in short.
//!
//! A test file takes it with `#[path = "support/watching.rs"] mod watching;`, beside `mod kubernetes;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::ops::ControlFlow;
use std::time::Duration;

use controller::kubernetes::DeadlineLayer;
use controller::watch::{WatchEvent, Watched, watch};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tower::Layer;

use crate::kubernetes::{Cluster, End};

pub const PODS: &str = "/api/v1/pods";

/// What a watch says, in short: `begin`, `=a` an item, `?a` one that cannot be read, `end`, `+a`, `-a`, `@` for progress, `absent`.
pub struct Heard {
    pub said: mpsc::UnboundedReceiver<String>,
    pub task: AbortHandle,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heard {
    pub fn of<K>(api: Api<K>, watched: Watched) -> Self
    where
        K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let (say, said) = mpsc::unbounded_channel();
        let on = move |event: WatchEvent<K>| {
            let said = say.send(short(&event));
            async move {
                match said {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            }
        };
        let task = tokio::spawn(watch(watched, api, on)).abort_handle();
        Self { said, task }
    }

    pub fn pods(cluster: &Cluster) -> Self {
        Self::of(Api::<Pod>::all(client(cluster)), Watched::all("pods"))
    }

    /// The next that is no progress.
    pub async fn next(&mut self) -> String {
        loop {
            let wait = tokio::time::timeout(Duration::from_secs(3600), self.said.recv());
            let said = wait.await.expect("something is said").expect("it lives");
            if said != "@" {
                return said;
            }
        }
    }

    pub async fn expect(&mut self, all: &[&str]) {
        for one in all {
            assert_eq!(self.next().await, *one);
        }
    }

    /// The version is forgotten, and everything is listed anew.
    pub async fn expect_relist(&mut self, cluster: &Cluster, items: &[&str]) {
        self.expect_relist_begins(cluster).await;
        self.expect(items).await;
        self.expect(&["end"]).await;
    }

    pub async fn expect_relist_begins(&mut self, cluster: &Cluster) {
        cluster.silence();
        cluster.pass();
        cluster.compact();
        cluster.cut();
        self.expect(&["begin"]).await;
    }

    /// Nothing but progress for so long.
    pub async fn quiet(&mut self, time: Duration) {
        let wait = tokio::time::timeout(time, self.next()).await;
        assert!(wait.is_err(), "said {wait:?}");
    }
}

pub fn short<K: Resource>(event: &WatchEvent<K>) -> String {
    let name = |object: &K| object.meta().name.clone().expect("a name");
    match event {
        WatchEvent::Begin => "begin".to_owned(),
        WatchEvent::Item(object) => format!("={}", name(object)),
        WatchEvent::Kept { key } => format!("?{}", key.name),
        WatchEvent::End { .. } => "end".to_owned(),
        WatchEvent::Apply(object) => format!("+{}", name(object)),
        WatchEvent::Delete { key, .. } => format!("-{}", key.name),
        WatchEvent::Progress { .. } => "@".to_owned(),
        WatchEvent::Absent => "absent".to_owned(),
    }
}

/// As the controller makes it, above the network.
pub fn client(cluster: &Cluster) -> Client {
    let service = DeadlineLayer::default().layer(cluster.service());
    Client::new(service, "default")
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": {}})
}

/// A cluster with one pod, that is watched.
pub async fn watched() -> (Cluster, Heard) {
    let cluster = Cluster::new();
    cluster.put(pod("a"));
    let mut heard = Heard::pods(&cluster);
    heard.expect(&["begin", "=a", "end"]).await;
    let open = |cluster: &Cluster| {
        let calls = cluster.called("WATCH", PODS);
        calls
            .last()
            .is_some_and(|call| call.end == End::Answered(200))
    };
    cluster.until("it is watched", open).await;
    (cluster, heard)
}

pub fn count(cluster: &Cluster, verb: &str) -> usize {
    cluster.called(verb, PODS).len()
}

/// How large the pages were that were asked for.
pub fn limits(cluster: &Cluster) -> Vec<String> {
    let limits = cluster.called("LIST", PODS).into_iter().map(|call| {
        let limit = call.query.into_iter().find(|(name, _)| name == "limit");
        limit.expect("a limit").1
    });
    limits.collect()
}
