//! What comes out of the index: resources for the proxies, and how Kubernetes should be.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use mesh::xds::Encoded;
use serde_json::{Value, json};

pub use super::condition::Condition;
pub use super::kinds::Kind;
use super::names::Key;
pub use super::placement::{PodPlacement, Role};
use crate::index::desired::{Entry, Item};

/// Everything that became different since the last time.
#[derive(Debug, Default)]
pub struct Changes {
    /// For the proxies.
    pub resources: Vec<ResourceChange>,
    /// How Kubernetes should be; `None` takes back what is no longer wanted, or has come about.
    pub desired: Vec<(Item, Option<Arc<Entry>>)>,
    /// Which pods run where, by UID; `None`: no longer.
    pub placements: Vec<(Arc<str>, Option<Arc<PodPlacement>>)>,
}

/// Who gets a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Every proxy: workloads and services.
    Addresses,
    /// Every node: the namespaces whose pods are enrolled.
    Namespaces,
    /// Every node: the state of the mesh as a whole.
    Nodes,
    /// The ztunnel of one node: its pods.
    Node(Arc<str>),
    /// One waypoint: its routes.
    Waypoint(Key),
}

/// A resource that came, changed or went (`None`).
#[derive(Debug, Clone)]
pub struct ResourceChange {
    /// Who gets it.
    pub scope: Scope,
    /// Its name there.
    pub name: Arc<str>,
    /// Its content.
    pub resource: Option<Encoded>,
}

/// An object whose status we write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub key: Key,
}

/// A change to one object's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Apply: the fields that are ours. Merge: over the version that was read, for lists that have several owners.
    pub how: How,
    /// The patch, without the conditions.
    pub body: Value,
    /// The conditions that go into it.
    pub conditions: Vec<ConditionsAt>,
    /// What people are told when it is written.
    pub notices: Vec<Notice>,
}

/// The conditions at one place of a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionsAt {
    /// JSON pointer to what has them: `/status`.
    pub within: String,
    /// All that stand there, in this order.
    pub conditions: Vec<Condition>,
}

/// The ways to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Server-side apply of our fields.
    Apply,
    /// The same for a pod, whose condition `ambit.mesh/InMesh` was seen to be this, or null. Whoever has not heard the
    /// pod's node itself writes over nothing else.
    ApplyOver(Value),
    /// Merge patch that fails when the object has moved on.
    Merge,
}

/// An Event on an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// About what.
    pub target: Target,
    /// Its UID.
    pub uid: Arc<str>,
    /// Something is wrong.
    pub warning: bool,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub note: String,
}

/// What to run for one Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaypointPlan {
    /// The Gateway's UID: its children name it as their owner.
    pub uid: Arc<str>,
    /// Its class.
    pub class: Arc<str>,
    /// Labels to pass on.
    pub labels: BTreeMap<String, String>,
    /// Annotations to pass on.
    pub annotations: BTreeMap<String, String>,
    /// The kinds of what runs already and has lost our label, so that writing it may be refused. Nothing made of the plan
    /// depends on it; but a plan that differs is tried at once, and so is one whose label is back.
    pub unlabelled: Vec<&'static str>,
}

/// What proxies are told because of one object, ordered by who gets it and its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Resources(Vec<Resource>);

type Resource = (Scope, Arc<str>, Encoded);

// === impl Resources ===

impl Resources {
    /// One that had the same name there is replaced.
    pub(super) fn insert(&mut self, scope: Scope, name: Arc<str>, resource: Encoded) {
        match self.find(&scope, &name) {
            Ok(at) => self.0[at].2 = resource,
            Err(at) => self.0.insert(at, (scope, name, resource)),
        }
    }

    /// Where it is, or would be.
    pub(super) fn find(&self, scope: &Scope, name: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|(at, called, _)| (at, &**called).cmp(&(scope, name)))
    }

    /// In order.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Resource> {
        self.0.iter()
    }
}

impl IntoIterator for Resources {
    type Item = Resource;
    type IntoIter = std::vec::IntoIter<Resource>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

// === impl Target ===

impl Target {
    pub(super) fn new(kind: Kind, key: &Key) -> Self {
        Self {
            kind,
            key: key.clone(),
        }
    }

    /// A patch of this object, and of no other that may come to have its name, with an empty status.
    pub(super) fn patch(&self, uid: &str) -> Value {
        let mut metadata = json!({"name": &*self.key.name, "uid": uid});
        if !self.key.namespace.is_empty() {
            metadata["namespace"] = json!(&*self.key.namespace);
        }
        let api = self.kind.api();
        json!({"apiVersion": api.api_version(), "kind": api.kind, "metadata": metadata, "status": {}})
    }
}

// === impl ConditionsAt ===

impl ConditionsAt {
    /// Those of the object itself.
    pub(super) fn status(conditions: Vec<Condition>) -> Self {
        Self {
            within: "/status".to_owned(),
            conditions,
        }
    }
}

// === impl Write ===

impl Write {
    /// The patch, with the time of what flips.
    pub fn patch(&self, now: Timestamp) -> Value {
        let mut body = self.body.clone();
        for ConditionsAt { within, conditions } in &self.conditions {
            let json = conditions.iter().map(|one| one.json(now));
            if let Some(place) = body.pointer_mut(within) {
                place["conditions"] = json.collect();
            }
        }
        body
    }
}
