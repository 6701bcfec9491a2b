//! DECISION: which EndpointSlices count at an address that many of them list?
//!
//! Of each namespace the first by name that there is room for: a pod is announced with what they bring, and looks at each of
//! them whenever it changes. What one namespace brings takes nothing from another. Only slices of Services without a
//! selector are known here: what others list is said by their Service's selector.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::cluster::At;
use super::super::names::Key;
use super::super::room::Room;
use super::super::services::MAX_SERVICE_PORTS;

/// The slices that list an address, by namespace.
#[derive(Debug, Default)]
pub(in crate::index) struct Claims(HashMap<At, BTreeMap<Arc<str>, Namespace>>);

/// The slices of one namespace that list an address, with the number of their ports.
type Namespace = BTreeMap<Key, usize>;

/// EndpointSlices of one namespace that count at an address, each for another Service or family.
pub(super) const MAX_SLICES: usize = 32;
/// The ports of all of them: as many as one Service may have.
pub(super) const MAX_PORTS_AT_ADDRESS: usize = MAX_SERVICE_PORTS;

// === impl Claims ===

impl Claims {
    /// A slice lists an address, and brings so many ports there. Returned are the others that count from now on, or no more.
    pub(super) fn put(&mut self, at: At, slice: &Key, ports: usize) -> Vec<Key> {
        let namespaces = self.0.entry(at).or_default();
        let slices = namespaces.entry(slice.namespace.clone()).or_default();
        change(slices, slice, |slices| {
            slices.insert(slice.clone(), ports);
        })
    }

    /// The slice lists the address no more. Returned as in [`Self::put`].
    pub(super) fn take(&mut self, at: At, slice: &Key) -> Vec<Key> {
        let Some(namespaces) = self.0.get_mut(&at) else {
            return Vec::new();
        };
        let Some(slices) = namespaces.get_mut(&slice.namespace) else {
            return Vec::new();
        };
        let changed = change(slices, slice, |slices| {
            slices.remove(slice);
        });
        if slices.is_empty() {
            namespaces.remove(&slice.namespace);
        }
        if namespaces.is_empty() {
            self.0.remove(&at);
        }
        changed
    }

    /// The slices that count at an address, in the order of their keys.
    pub(in crate::index) fn at(&self, address: impl Into<At>) -> impl Iterator<Item = &Key> {
        let namespaces = self.0.get(&address.into()).into_iter().flatten();
        namespaces.flat_map(|(_, slices)| counting(slices))
    }

    /// Whether a slice that lists an address counts there.
    pub(super) fn counts(&self, address: impl Into<At>, slice: &Key) -> bool {
        let namespaces = self.0.get(&address.into());
        let slices = namespaces.and_then(|namespaces| namespaces.get(&slice.namespace));
        slices.is_some_and(|slices| counting(slices).any(|counts| counts == slice))
    }
}

fn counting(slices: &Namespace) -> impl Iterator<Item = &Key> {
    let mut room = Room::new(MAX_SLICES, MAX_PORTS_AT_ADDRESS);
    let counting = slices
        .iter()
        .take_while(move |(_, ports)| room.takes(**ports));
    counting.map(|(key, _)| key)
}

/// Changes one slice, and says which others that makes count or not.
fn change(slices: &mut Namespace, slice: &Key, how: impl FnOnce(&mut Namespace)) -> Vec<Key> {
    let before: BTreeSet<Key> = counting(slices).cloned().collect();
    how(slices);
    let now: BTreeSet<Key> = counting(slices).cloned().collect();
    let changed = before.symmetric_difference(&now);
    changed.filter(|key| *key != slice).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn at() -> At {
        IpAddr::from([10, 0, 0, 1]).into()
    }

    fn slice(number: usize) -> Key {
        Key::new("shop", &format!("s{number:03}"))
    }

    fn standing(claims: &Claims) -> Vec<Key> {
        claims.at(at()).cloned().collect()
    }

    #[test]
    fn the_first_slices_of_each_namespace_count_whatever_others_bring() {
        let mut claims = Claims::default();
        let other = Key::new("till", "a");
        claims.put(at(), &other, MAX_PORTS_AT_ADDRESS);
        for number in (0..100).rev() {
            claims.put(at(), &slice(number), 1);
        }
        let first = (0..MAX_SLICES).map(slice);
        let expected: Vec<Key> = first.chain([other.clone()]).collect();
        assert_eq!(standing(&claims), expected);
        for number in 0..100 {
            let counts = claims.counts(at(), &slice(number));
            assert_eq!(counts, number < MAX_SLICES, "{number}");
        }
        assert!(claims.counts(at(), &other));
        // Who goes makes room for the next.
        assert_eq!(claims.take(at(), &slice(3)), [slice(MAX_SLICES)]);
        assert_eq!(claims.put(at(), &slice(3), 1), [slice(MAX_SLICES)]);
        assert!(claims.take(at(), &slice(50)).is_empty());
    }

    #[test]
    fn the_ports_of_all_are_bounded_too() {
        let mut claims = Claims::default();
        for number in 0..5 {
            claims.put(at(), &slice(number), MAX_PORTS_AT_ADDRESS / 4);
        }
        assert_eq!(standing(&claims), [0, 1, 2, 3].map(slice));
        let gone = claims.put(at(), &slice(1), MAX_PORTS_AT_ADDRESS);
        assert_eq!(gone, [2, 3].map(slice));
        assert_eq!(standing(&claims), [slice(0)]);
        let back = claims.put(at(), &slice(1), 1);
        assert_eq!(back, [2, 3].map(slice));
        for number in 0..5 {
            claims.take(at(), &slice(number));
        }
        assert!(claims.0.is_empty());
    }
}
