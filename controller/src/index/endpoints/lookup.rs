//! Finds EndpointSlices by what they name, and counts what each brings.

use std::net::IpAddr;

use super::super::addresses::{Addressed, ByAddress};
use super::super::cluster::At;
use super::super::lookup::{Lookup, Says};
use super::super::names::Key;
use super::super::share::Shares;
use super::super::tables::SecondaryIndex;
use super::{MAX_ENDPOINTS, Slice};

/// Finds EndpointSlices.
#[derive(Debug, Default)]
pub(in crate::index) struct SliceLookup {
    /// Only of Services without a selector: nobody looks for the others.
    addresses: ByAddress,
    services: Lookup<Key>,
    /// Of endpoints that are listed by address alone.
    pub(super) shares: Shares<MAX_ENDPOINTS>,
}

// === impl SliceLookup ===

impl SliceLookup {
    /// The slices of Services without a selector that name an address.
    pub(in crate::index) fn at(&self, address: impl Into<At>) -> impl Iterator<Item = &Key> {
        self.addresses.at(address.into())
    }

    /// Whether a slice is found by the addresses that it names.
    pub(super) fn find_by_address(&mut self, key: &Key, slice: &Slice, found: bool) {
        match found {
            true => self.addresses.add(key, slice),
            false => self.addresses.remove(key, slice),
        }
    }

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
        self.addresses.remove(key, slice);
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

impl Addressed for Slice {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.keys().copied()
    }
}
