//! Watches what was made, so that what somebody changes or deletes is made again at once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use kube::api::Api;
use kube::core::{NamespaceResourceScope, ObjectMeta, PartialObjectMeta};
use kube::{Client, Resource};
use mesh::process::shutdown::Supervisor;
use tokio::sync::mpsc;

use crate::ca::roots::CONFIG_MAP;
use crate::index::names::{Key, MANAGED, MANAGED_BY_US};
use crate::watch::{WatchEvent, Watched, watch};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// To something that was made for this Gateway.
    Child(Key),
    /// To the roots in this namespace.
    Roots(Arc<str>),
}

/// Starts every watch. Each must live.
pub fn all(client: &Client, to: &mpsc::Sender<Seen>, tasks: &mut Supervisor) {
    let labels = format!("{MANAGED}={MANAGED_BY_US}");
    let made = |kind| Watched::all(kind).labels(&labels);
    tasks.must_live(
        "watch own deployments",
        of::<Deployment>(client, made("deployments"), Seen::Child, to),
    );
    tasks.must_live(
        "watch own services",
        of::<Service>(client, made("services"), Seen::Child, to),
    );
    tasks.must_live(
        "watch own accounts",
        of::<ServiceAccount>(client, made("serviceaccounts"), Seen::Child, to),
    );
    let roots = Watched::all("configmaps").fields(&format!("metadata.name={CONFIG_MAP}"));
    tasks.must_live(
        "watch roots",
        of::<ConfigMap>(client, roots, |key| Seen::Roots(key.namespace), to),
    );
}

/// Says what happens to objects of one kind, unless only their status changes.
fn of<K>(
    client: &Client,
    watched: Watched,
    seen: fn(Key) -> Seen,
    to: &mpsc::Sender<Seen>,
) -> impl Future<Output = ()> + Send + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(client.clone());
    let to = to.clone();
    let mut known: HashMap<Key, u64> = HashMap::new();
    watch(
        watched,
        api,
        move |event: WatchEvent<PartialObjectMeta<K>>| {
            let changed = match event {
                WatchEvent::Item(object) | WatchEvent::Apply(object) => {
                    let key = Key::of(&object.metadata);
                    let now = fingerprint(&object.metadata);
                    (known.insert(key.clone(), now) != Some(now)).then_some(key)
                }
                WatchEvent::Delete { key, .. } => {
                    known.remove(&key);
                    Some(key)
                }
                // What a new list no longer has is found when it is looked at next.
                _ => None,
            };
            let to = to.clone();
            async move {
                if let Some(key) = changed
                    && to.send(seen(key)).await.is_err()
                {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            }
        },
    )
}

/// What is different when something else than the status is. Kinds without a generation have no status.
fn fingerprint(meta: &ObjectMeta) -> u64 {
    let mut hasher = DefaultHasher::new();
    meta.uid.hash(&mut hasher);
    meta.labels.hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    for owner in meta.owner_references.iter().flatten() {
        owner.uid.hash(&mut hasher);
    }
    match meta.generation {
        Some(generation) => generation.hash(&mut hasher),
        None => meta.resource_version.hash(&mut hasher),
    }
    hasher.finish()
}
