//! Finds pods by what they say.

use std::sync::Arc;

use super::super::addresses::ByAddress;
use super::super::binding::asks_for;
use super::super::cluster::At;
use super::super::lookup::Lookup;
use super::super::names::Key;
use super::super::tables::SecondaryIndex;
use super::Pod;

/// Finds pods.
#[derive(Debug, Default)]
pub(in crate::index) struct PodLookup {
    uids: Lookup<Arc<str>>,
    addresses: ByAddress,
    nodes: Lookup<Arc<str>>,
    /// By the Gateway whose waypoint their labels say they are.
    instances: Lookup<Key>,
    /// By the Gateway that their own labels ask for.
    asking: Lookup<Key>,
}

// === impl PodLookup ===

impl PodLookup {
    /// The pod with this UID.
    pub(in crate::index) fn with_uid(&self, uid: &str) -> Option<&Key> {
        self.uids.get(uid).next()
    }

    /// The pods that name an address.
    pub(in crate::index) fn at(&self, address: impl Into<At>) -> impl Iterator<Item = &Key> {
        self.addresses.at(address.into())
    }

    /// The pods that run on a node.
    pub(in crate::index) fn on_node(&self, node: &str) -> impl Iterator<Item = &Key> {
        self.nodes.get(node)
    }

    /// The pods that say they are a Gateway's waypoint.
    pub(in crate::index) fn instances(&self, gateway: &Key) -> impl Iterator<Item = &Key> {
        self.instances.get(gateway)
    }

    /// The pods whose own labels ask for a Gateway.
    pub(in crate::index) fn asking(&self, gateway: &Key) -> impl Iterator<Item = &Key> {
        self.asking.get(gateway)
    }
}

impl SecondaryIndex<Pod> for PodLookup {
    fn add(&mut self, key: &Key, pod: &Pod) {
        self.uids.insert(pod.uid.clone(), key);
        self.addresses.add(key, pod);
        if !pod.node.is_empty() {
            self.nodes.insert(pod.node.clone(), key);
        }
        if let Some(gateway) = pod.instance_of(key) {
            self.instances.insert(gateway, key);
        }
        if let Some(gateway) = asks_for(&key.namespace, pod.labels()) {
            self.asking.insert(gateway, key);
        }
    }

    fn remove(&mut self, key: &Key, pod: &Pod) {
        self.uids.take(&pod.uid, key);
        self.addresses.remove(key, pod);
        self.nodes.take(&pod.node, key);
        if let Some(gateway) = pod.instance_of(key) {
            self.instances.take(&gateway, key);
        }
        if let Some(gateway) = asks_for(&key.namespace, pod.labels()) {
            self.asking.take(&gateway, key);
        }
    }

    fn pack(&mut self) {
        self.uids.pack();
        self.nodes.pack();
        SecondaryIndex::<Pod>::pack(&mut self.addresses);
    }
}
