//! What every stream reads: one published version of the mesh, whole and shared.

use std::sync::Arc;

use imbl::{HashMap, OrdMap};
use mesh::xds::{
    ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, MESH_STATE_TYPE, ROUTE_TYPE, Resources,
};

use crate::index::changes::{Changes, PodPlacement, Role, Scope};
use crate::index::names::Key;
use crate::position::Positions;

/// What a request has besides names.
const REQUEST_BASE: usize = 1 << 20;
/// The longest name of a resource (namespace, kind and name of an object) and its version.
const REQUEST_NAME: usize = 512;

/// The mesh at one moment. A clone costs a few pointers.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    addresses: Resources,
    namespaces: Resources,
    /// The state of the mesh as a whole.
    mesh: Resources,
    nodes: HashMap<Arc<str>, Resources>,
    waypoints: HashMap<Key, Resources>,
    pods: HashMap<Arc<str>, PodPlacement>,
    /// How many pods of a service account a node was told to capture.
    accounts: OrdMap<(Arc<str>, Key), usize>,
    positions: Positions,
}

/// Who asks, and so what may be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Viewer {
    /// The ztunnel of this node.
    Node(Arc<str>),
    /// The waypoint of this Gateway.
    Waypoint(Key),
}

// === impl Snapshot ===

impl Snapshot {
    /// Takes in what the index says is different.
    pub fn apply(&mut self, changes: &Changes) {
        for change in &changes.resources {
            match &change.scope {
                Scope::Addresses => put(&mut self.addresses, change),
                Scope::Namespaces => put(&mut self.namespaces, change),
                Scope::Nodes => put(&mut self.mesh, change),
                Scope::Node(node) => put_in(&mut self.nodes, node, change),
                Scope::Waypoint(gateway) => put_in(&mut self.waypoints, gateway, change),
            }
        }
        for (uid, placement) in &changes.placements {
            if let Some(before) = self.pods.remove(uid) {
                self.count(&before, false);
            }
            if let Some(placement) = placement {
                self.count(placement, true);
                self.pods.insert(uid.clone(), placement.clone());
            }
        }
    }

    fn count(&mut self, placement: &PodPlacement, more: bool) {
        let captured = placement.captured && placement.role == Role::Application;
        let Some(account) = placement.account().filter(|_| captured) else {
            return;
        };
        let entry = (placement.node.clone(), account);
        let count = self.accounts.get(&entry).copied().unwrap_or(0);
        match if more {
            count + 1
        } else {
            count.saturating_sub(1)
        } {
            0 => self.accounts.remove(&entry),
            count => self.accounts.insert(entry, count),
        };
    }

    /// What this viewer may see of a type; nothing of types that are not served.
    pub fn resources(&self, viewer: &Viewer, type_url: &str) -> Resources {
        match (type_url, viewer) {
            (ADDRESS_TYPE, _) => self.addresses.clone(),
            (ENROLLED_NAMESPACE_TYPE, Viewer::Node(_)) => self.namespaces.clone(),
            (MESH_STATE_TYPE, Viewer::Node(_)) => self.mesh.clone(),
            (ENROLMENT_TYPE, Viewer::Node(node)) => {
                self.nodes.get(node).cloned().unwrap_or_default()
            }
            (ROUTE_TYPE, Viewer::Waypoint(gateway)) => {
                self.waypoints.get(gateway).cloned().unwrap_or_default()
            }
            _ => Resources::default(),
        }
    }

    /// How far the watches are from which all this was made.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Takes in how far the watches are, together with what they changed: say it before the snapshot is published.
    pub fn at(&mut self, positions: Positions) {
        self.positions = positions;
    }

    /// How long a request of this viewer may be: a stream that resumes names all it knows, twice as much as there is now
    /// if much has gone meanwhile, and a client that has nothing may still say what it wants.
    pub fn longest_request(&self, viewer: &Viewer) -> usize {
        let most = [
            ADDRESS_TYPE,
            ENROLMENT_TYPE,
            ENROLLED_NAMESPACE_TYPE,
            ROUTE_TYPE,
        ]
        .map(|type_url| self.resources(viewer, type_url).len())
        .into_iter()
        .fold(0, usize::max);
        REQUEST_BASE + 2 * most * REQUEST_NAME
    }

    /// The pod with this UID, while it runs.
    pub fn pod(&self, uid: &str) -> Option<&PodPlacement> {
        self.pods.get(uid)
    }

    /// Whether this node was told to capture a pod of this service account.
    pub fn captures(&self, node: &str, account: &Key) -> bool {
        self.accounts
            .contains_key(&(Arc::from(node), account.clone()))
    }
}

fn put(resources: &mut Resources, change: &crate::index::changes::ResourceChange) {
    match &change.resource {
        Some(resource) => resources.insert(change.name.clone(), resource.clone()),
        None => resources.remove(&change.name),
    };
}

fn put_in<K: Clone + Eq + std::hash::Hash>(
    all: &mut HashMap<K, Resources>,
    of: &K,
    change: &crate::index::changes::ResourceChange,
) {
    let mut resources = all.get(of).cloned().unwrap_or_default();
    put(&mut resources, change);
    if resources.is_empty() {
        all.remove(of);
    } else {
        all.insert(of.clone(), resources);
    }
}
