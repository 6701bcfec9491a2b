//! How many endpoints a namespace may bring that are no pods of its own: every proxy of the mesh remembers each of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::addresses::{Addressed, ByAddress};
use super::super::cluster::At;
use super::super::lookup::{Lookup, Says};
use super::super::names::Key;
use super::super::tables::SecondaryIndex;
use super::Slice;

/// Endpoints per namespace that are listed by address alone.
pub(super) const MAX_ENDPOINTS: usize = 1000;

/// Finds EndpointSlices by address, and counts what each brings.
#[derive(Debug, Default)]
pub(in crate::index) struct SliceLookup {
    addresses: ByAddress,
    services: Lookup<Key>,
    namespaces: HashMap<Arc<str>, Share>,
}

/// What the slices of one namespace bring, by name; those that bring nothing are left out.
#[derive(Debug, Default)]
struct Share {
    slices: BTreeMap<Arc<str>, usize>,
    total: usize,
}

// === impl SliceLookup ===

impl SliceLookup {
    /// The slices that name an address.
    pub(in crate::index) fn at(&self, address: impl Into<At>) -> impl Iterator<Item = &Key> {
        self.addresses.at(address.into())
    }

    /// The slices of a Service.
    pub(in crate::index) fn of_service(&self, service: &Key) -> impl Iterator<Item = &Key> {
        self.services.get(service)
    }

    /// How many of a slice's endpoints are taken: slices in the order of their names, endpoints in that of their addresses.
    pub(super) fn allowance(&self, slice: &Key) -> usize {
        let Some(share) = self.namespaces.get(&slice.namespace) else {
            return MAX_ENDPOINTS;
        };
        let mut left = MAX_ENDPOINTS;
        for (name, count) in &share.slices {
            // As many slices before it bring at least as many endpoints: the walk is as short as the bound.
            if left == 0 || *name >= slice.name {
                break;
            }
            left = left.saturating_sub(*count);
        }
        left
    }

    /// The slices of a namespace whose part may change with one of them; none while everything fits.
    pub(super) fn contested(&self, namespace: &Arc<str>) -> Vec<Key> {
        let Some(share) = self.namespaces.get(namespace) else {
            return Vec::new();
        };
        // One more than can have a part: the last may just have lost its own.
        let first = share.slices.keys().take(MAX_ENDPOINTS + 1);
        first
            .map(|name| Key {
                namespace: namespace.clone(),
                name: name.clone(),
            })
            .collect()
    }

    /// How much the namespace's slices bring together.
    pub(super) fn total(&self, namespace: &Arc<str>) -> usize {
        self.namespaces
            .get(namespace)
            .map_or(0, |share| share.total)
    }
}

impl SecondaryIndex<Slice> for SliceLookup {
    fn add(&mut self, key: &Key, slice: &Slice) {
        self.addresses.add(key, slice);
        self.services.add(key, slice);
        let count = slice.counted();
        if count > 0 {
            let share = self.namespaces.entry(key.namespace.clone()).or_default();
            share.total += count;
            share.slices.insert(key.name.clone(), count);
        }
    }

    fn remove(&mut self, key: &Key, slice: &Slice) {
        self.addresses.remove(key, slice);
        self.services.remove(key, slice);
        if let Some(share) = self.namespaces.get_mut(&key.namespace)
            && let Some(count) = share.slices.remove(&key.name)
        {
            share.total -= count;
            if share.slices.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
    }
}

impl Says<Key> for Slice {
    /// The Service that it is of.
    fn says(&self, key: &Key) -> impl Iterator<Item = Key> {
        std::iter::once(self.service_key(key))
    }
}

impl Addressed for Slice {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.keys().copied()
    }
}
