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

/// What is known of the objects of one watch.
#[derive(Debug, Default)]
struct Known {
    objects: HashMap<Key, Held>,
    /// Of the last list that began.
    list: u32,
}

/// What an object was when it was last told of, and the last list that had begun by then.
#[derive(Debug)]
struct Held {
    fingerprint: u64,
    list: u32,
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
        of::<ConfigMap>(client, roots, |key| Seen::Roots(key.namespace.clone()), to),
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
    let mut known = Known::default();
    watch(
        watched,
        api,
        move |event: WatchEvent<PartialObjectMeta<K>>| {
            let changed = known.take(event);
            let to = to.clone();
            async move {
                for key in changed {
                    if to.send(seen(key)).await.is_err() {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            }
        },
    )
}

// === impl Known ===

impl Known {
    /// Takes in what the watch says, and gives what came, changed or went by it.
    fn take<K>(&mut self, event: WatchEvent<PartialObjectMeta<K>>) -> Vec<Key> {
        match event {
            WatchEvent::Begin => self.list = self.list.wrapping_add(1),
            WatchEvent::Item(object) | WatchEvent::Apply(object) => {
                return self.put(&object.metadata).into_iter().collect();
            }
            WatchEvent::Kept { key } => {
                if let Some(held) = self.objects.get_mut(&key) {
                    held.list = self.list;
                }
            }
            WatchEvent::Delete { key, .. } => {
                self.objects.remove(&key);
                return vec![key];
            }
            WatchEvent::End { .. } => return self.sweep(),
            WatchEvent::Progress { .. } | WatchEvent::Absent => {}
        }
        Vec::new()
    }

    fn put(&mut self, meta: &ObjectMeta) -> Option<Key> {
        let (key, fingerprint) = (Key::of(meta), fingerprint(meta));
        let list = self.list;
        let before = self.objects.insert(key.clone(), Held { fingerprint, list });
        let same = before.is_some_and(|before| before.fingerprint == fingerprint);
        (!same).then_some(key)
    }

    /// What the list that has ended does not have any more: it went while nobody watched.
    fn sweep(&mut self) -> Vec<Key> {
        let list = self.list;
        let gone = self.objects.extract_if(|_, held| held.list != list);
        gone.map(|(key, _)| key).collect()
    }
}

// === free ===

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
