//! Finds EndpointSlices by their Service, and counts what each brings.

use super::super::lookup::{Lookup, Says};
use super::super::names::Key;
use super::super::share::Shares;
use super::super::tables::SecondaryIndex;
use super::{MAX_ENDPOINTS, Slice};

/// Finds EndpointSlices.
#[derive(Debug, Default)]
pub(in crate::index) struct SliceLookup {
    services: Lookup<Key>,
    /// Of endpoints that are listed by address alone.
    pub(super) shares: Shares<MAX_ENDPOINTS>,
}

// === impl SliceLookup ===

impl SliceLookup {
    /// The slices of a Service.
    pub(in crate::index) fn of_service(&self, service: &Key) -> impl Iterator<Item = &Key> {
        self.services.get(service)
    }
}

impl SecondaryIndex<Slice> for SliceLookup {
    fn add(&mut self, key: &Key, slice: &Slice) {
        self.services.add(key, slice);
        self.shares.set(key, slice.counted());
    }

    fn remove(&mut self, key: &Key, slice: &Slice) {
        self.services.remove(key, slice);
        self.shares.unset(key);
    }

    fn pack(&mut self) {
        self.services.pack();
    }
}

impl Says<Key> for Slice {
    /// The Service that it is of.
    fn says(&self, key: &Key) -> impl Iterator<Item = Key> {
        std::iter::once(self.service_key(key))
    }
}
