//! What every stream reads: one published version of the mesh, whole and shared.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};
use mesh::names::Network;
use mesh::xds::{
    ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, Encoded, MESH_STATE_TYPE, ROUTE_TYPE,
    View,
};

use super::scope::Scopes;
use crate::index::changes::{Changes, PodPlacement, ResourceChange, Role, Scope};
use crate::index::names::Key;
use crate::position::Positions;

/// What a request has besides names.
const REQUEST_BASE: usize = 1 << 20;
/// The longest name of a resource (namespace, kind and name of an object) and its version.
const REQUEST_NAME: usize = 512;

/// A waypoint knows what is bound to it. More than this no honest one has ever known.
const MAX_WAYPOINT_REQUEST: usize = 16 << 20;

/// The mesh at one moment. A clone costs a few pointers.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    addresses: View,
    scopes: Scopes,
    namespaces: View,
    /// The state of the mesh as a whole.
    mesh: View,
    nodes: HashMap<Arc<str>, View>,
    /// Routes.
    waypoints: HashMap<Key, View>,
    pods: OrdSet<ByUid>,
    captured: OrdSet<Captured>,
    positions: Positions,
    token: Arc<str>,
}

/// A pod that runs, in the order of UIDs. A word for each.
#[derive(Debug, Clone)]
struct ByUid(Arc<PodPlacement>);

/// A pod that its node was told to capture, in the order of nodes and accounts. A word for each.
#[derive(Debug, Clone)]
struct Captured(Arc<PodPlacement>);

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
    /// An empty mesh in this network.
    pub fn new(network: Network) -> Self {
        Self {
            scopes: Scopes::new(network),
            ..Self::default()
        }
    }

    /// Takes in what the index says is different.
    pub fn apply(&mut self, changes: &Changes) {
        let first = self.addresses.is_empty();
        for change in &changes.resources {
            self.put(change);
        }
        for (uid, placement) in &changes.placements {
            if let Some(ByUid(before)) = self.pods.remove(&**uid) {
                self.captured.remove(&Captured(before));
            }
            if let Some(placement) = placement {
                if placement.captured && placement.role == Role::Application {
                    self.captured.insert(Captured(placement.clone()));
                }
                self.pods.insert(ByUid(placement.clone()));
            }
        }
        if first {
            self.pack();
        }
    }

    /// What is told first comes in order, and leaves the leaves of trees half empty.
    fn pack(&mut self) {
        self.addresses = View::from(packed(self.addresses.resources()));
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|(node, view)| (node.clone(), packed(view.resources()).into()));
        self.nodes = nodes.collect();
        self.pods = packed_set(&self.pods);
        self.captured = packed_set(&self.captured);
        self.scopes.pack();
    }

    fn put(&mut self, change: &ResourceChange) {
        match &change.scope {
            Scope::Addresses => {
                let before = put(&mut self.addresses, change);
                let (name, now) = (&change.name, change.resource.as_ref());
                let all = self.addresses.resources();
                self.scopes.address(name, before.as_ref(), now, all);
            }
            Scope::Namespaces => drop(put(&mut self.namespaces, change)),
            Scope::Nodes => drop(put(&mut self.mesh, change)),
            Scope::Node(node) => drop(put_in(&mut self.nodes, node, change)),
            Scope::Waypoint(gateway) => {
                let before = put_in(&mut self.waypoints, gateway, change);
                let (now, all) = (change.resource.as_ref(), self.addresses.resources());
                self.scopes.route(gateway, before.as_ref(), now, all);
            }
        }
    }

    /// What this viewer may see of a type without asking for names; nothing of types that are not served.
    ///
    /// The one place where types and viewers meet: another dialect of discovery is more lines here.
    pub fn resources(&self, viewer: &Viewer, type_url: &str) -> View {
        match (type_url, viewer) {
            (ADDRESS_TYPE, Viewer::Node(_)) => self.addresses.clone(),
            (ADDRESS_TYPE, Viewer::Waypoint(gateway)) => self.scopes.view(gateway),
            (ENROLLED_NAMESPACE_TYPE, Viewer::Node(_)) => self.namespaces.clone(),
            (MESH_STATE_TYPE, Viewer::Node(_)) => self.mesh.clone(),
            (ENROLMENT_TYPE, Viewer::Node(node)) => {
                self.nodes.get(node).cloned().unwrap_or_default()
            }
            (ROUTE_TYPE, Viewer::Waypoint(gateway)) => {
                self.waypoints.get(gateway).cloned().unwrap_or_default()
            }
            _ => View::default(),
        }
    }

    /// Every address of the mesh.
    pub(super) fn addresses(&self) -> View {
        self.addresses.clone()
    }

    /// The addresses that a waypoint sees without asking.
    pub(super) fn scope(&self, waypoint: &Key) -> View {
        self.scopes.view(waypoint)
    }

    /// The network whose addresses can be asked for.
    pub fn network(&self) -> &Network {
        self.scopes.network()
    }

    /// The name of the resource that has an address.
    pub(super) fn at(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.scopes.at(ip)
    }

    /// What a proxy that was told all of this knows, for [`Positions::covers`]. Empty: nothing that could be compared.
    pub fn token(&self) -> &Arc<str> {
        &self.token
    }

    /// How far the watches are from which all this was made.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Takes in how far the watches are, together with what they changed: say it before the snapshot is published.
    pub fn set_positions(&mut self, positions: &Positions) {
        if *positions != self.positions {
            self.token = positions.token().into();
            self.positions = positions.clone();
        }
    }

    /// How long a request of this viewer may be: a stream that resumes names all it knows, twice as much as there is now
    /// if much has gone meanwhile, and a client that has nothing may still say what it wants.
    ///
    /// A waypoint of the first release knows all addresses, whatever it sees now; but a waypoint is a tenant's.
    pub fn longest_request(&self, viewer: &Viewer) -> usize {
        let names = self.addresses.len();
        let own = self.resources(viewer, ENROLMENT_TYPE).len();
        let longest = REQUEST_BASE + 2 * names.max(own) * REQUEST_NAME;
        match viewer {
            Viewer::Node(_) => longest,
            Viewer::Waypoint(_) => longest.min(MAX_WAYPOINT_REQUEST),
        }
    }

    /// The pod with this UID, while it runs.
    pub fn pod(&self, uid: &str) -> Option<&PodPlacement> {
        self.pods.get(uid).map(|found| &*found.0)
    }

    /// Whether this node was told to capture a pod of this service account.
    pub fn captures(&self, node: &str, account: &Key) -> bool {
        let first = Captured::first(node, account);
        let next = self.captured.range(first.clone()..).next();
        next.is_some_and(|next| next.order().0 == first.order().0)
    }
}

// === impl ByUid ===

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        &self.0.uid
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid == other.0.uid
    }
}

impl Eq for ByUid {}

impl PartialOrd for ByUid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByUid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.uid.cmp(&other.0.uid)
    }
}

// === impl Captured ===

impl Captured {
    /// What would come before every pod of this account on this node.
    fn first(node: &str, account: &Key) -> Self {
        Self(Arc::new(PodPlacement {
            uid: "".into(),
            pod: Key::new(&account.namespace, ""),
            node: node.into(),
            service_account: Some((*account.name).into()),
            captured: true,
            role: Role::Application,
        }))
    }

    /// Its node and account, and what tells it from others of the same.
    fn order(&self) -> ((&str, &str, Option<&str>), &str) {
        let pod = &self.0.pod;
        let account = self.0.service_account.as_deref();
        ((&self.0.node, &pod.namespace, account), &pod.name)
    }
}

impl PartialEq for Captured {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Captured {}

impl PartialOrd for Captured {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Captured {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

// === free ===

/// The same in full leaves: these are half full of every second one before those between come.
fn packed<K: Clone + Ord, V: Clone>(map: &OrdMap<K, V>) -> OrdMap<K, V> {
    let every_second = |from| {
        let all = map.iter().skip(from).step_by(2);
        all.map(|(key, value)| (key.clone(), value.clone()))
    };
    every_second(0).chain(every_second(1)).collect()
}

/// The same for a set.
pub(super) fn packed_set<T: Clone + Ord>(set: &OrdSet<T>) -> OrdSet<T> {
    let every_second = |from| set.iter().skip(from).step_by(2).cloned();
    every_second(0).chain(every_second(1)).collect()
}

/// Says what was there before.
fn put(view: &mut View, change: &ResourceChange) -> Option<Encoded> {
    match &change.resource {
        Some(resource) => view.edit().insert(change.name.clone(), resource.clone()),
        None => view.edit().remove(&change.name),
    }
}

fn put_in<K: Clone + Eq + std::hash::Hash>(
    all: &mut HashMap<K, View>,
    of: &K,
    change: &ResourceChange,
) -> Option<Encoded> {
    let mut view = all.get(of).cloned().unwrap_or_default();
    let before = put(&mut view, change);
    match view.is_empty() {
        true => all.remove(of),
        false => all.insert(of.clone(), view),
    };
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pod: &str, node: &str, account: &str) -> (Arc<str>, Option<Arc<PodPlacement>>) {
        let placement = PodPlacement {
            uid: pod.into(),
            pod: Key::new("shop", pod),
            node: node.into(),
            service_account: Some(account.into()),
            captured: true,
            role: Role::Application,
        };
        (pod.into(), Some(Arc::new(placement)))
    }

    #[test]
    fn a_node_captures_an_account_as_long_as_one_of_its_pods_is_there() {
        let mut snapshot = Snapshot::default();
        let mut apply = |placements| {
            snapshot.apply(&Changes {
                placements,
                ..Changes::default()
            });
            let captures = |node, name| snapshot.captures(node, &Key::new("shop", name));
            assert!(!captures("n1", "car") && !captures("n1", "carts") && !captures("n2", "cart"));
            captures("n1", "cart")
        };
        assert!(!apply(vec![at("z", "n1", "bill"), at("y", "n0", "cart")]));
        assert!(apply(vec![at("a", "n1", "cart"), at("b", "n1", "cart")]));
        assert!(apply(vec![("a".into(), None)]));
        assert!(!apply(vec![("b".into(), None)]));
    }
}
