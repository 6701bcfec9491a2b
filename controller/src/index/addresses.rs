//! DECISION: whose address is this? One owner each: a cluster IP is its Service's; then pods go before nodes.
//!
//! A cluster IP is the API server's own word: nothing that a status or a slice says takes it from its Service, past whose
//! waypoint it would lead. All other addresses are words of whoever may write them. One that a live pod has is that pod's,
//! whatever slices and nodes say, so that nobody takes a pod out of mutual TLS, or speaks in its place, by listing it. Both
//! a pod's status and a Node's are their kubelet's word: one that has fallen may name another node's address for a pod of
//! its own, which stops what listens there, but can take no other node's pod out of the mesh.
//!
//! Pods on the host's network have their node's address and own none. Two pods can name one address (a node that is gone
//! still has pods, or a kubelet lies): one that has an identity goes before one that has none, one inside its own node's
//! pod range before one outside, then the younger, then the greater UID. Each replica comes to the same answer.

use std::net::IpAddr;

use super::State;
use super::changes::{Notice, Target};
use super::cluster::At;
use super::kinds::Kind;
use super::lookup::Lookup;
use super::names::Key;
use super::pods::Pod;
use super::tables::SecondaryIndex;

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Pod(Key),
    Node(Key),
    /// As its cluster IP, which the API server gave out.
    Service(Key),
}

/// The objects of a kind by the addresses that they name.
#[derive(Debug, Default)]
pub(super) struct ByAddress(Lookup<At>);

/// An object that names addresses.
pub(super) trait Addressed {
    fn addresses(&self) -> impl Iterator<Item = IpAddr>;

    /// Where such an address means something.
    fn at(&self, address: IpAddr) -> At {
        address.into()
    }
}

/// A range of addresses: `10.244.1.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    network: IpAddr,
    bits: u32,
}

/// An address as an object writes it. `::ffff:10.0.0.1` is `10.0.0.1` to whoever dials it, so it is the same address here.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    Some(address.to_canonical())
}

// === impl Owner ===

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Node(key) => write!(f, "node {key}"),
            Self::Service(key) => write!(f, "Service {key}"),
        }
    }
}

// === impl ByAddress ===

impl ByAddress {
    /// Who names it, in the order of their keys.
    pub(super) fn at(&self, at: At) -> impl Iterator<Item = &Key> + use<'_> {
        self.0.get(&at)
    }
}

impl<T: Addressed> SecondaryIndex<T> for ByAddress {
    fn add(&mut self, key: &Key, object: &T) {
        for address in object.addresses() {
            self.0.insert(object.at(address), key);
        }
    }

    fn remove(&mut self, key: &Key, object: &T) {
        for address in object.addresses() {
            self.0.take(&object.at(address), key);
        }
    }

    fn pack(&mut self) {
        self.0.pack();
    }
}

// === impl Range ===

impl Range {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (network, bits) = text.split_once('/')?;
        Some(Self {
            network: network.parse().ok()?,
            bits: bits.parse().ok()?,
        })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

// === impl State ===

impl State {
    pub(super) fn owner(&self, address: impl Into<At>) -> Option<Owner> {
        let address = address.into();
        let service = self.service_at(address).map(Owner::Service);
        service
            .or_else(|| self.pod_at(address).map(Owner::Pod))
            .or_else(|| self.node_at(address).cloned().map(Owner::Node))
    }

    /// The Service whose cluster IP it is.
    pub(super) fn service_at(&self, address: impl Into<At>) -> Option<Key> {
        let address = address.into();
        self.tables.services.lookup().at(address).next().cloned()
    }

    fn node_at(&self, address: At) -> Option<&Key> {
        self.tables.nodes.lookup().at(address).next()
    }

    fn pod_at(&self, address: At) -> Option<Key> {
        if self.service_at(address).is_some() {
            return None;
        }
        let named = self.tables.pods.lookup().at(address);
        let claims = named.filter_map(|key| {
            let pod = self.tables.pods.get(key)?;
            if pod.finished || pod.host_network {
                return None;
            }
            Some((key, pod, self.in_range(pod, address.ip())))
        });
        let ranked = claims.max_by_key(|(_, pod, in_range)| {
            let identity = pod.identity().is_some();
            (identity, *in_range, pod.created, pod.uid.clone())
        });
        ranked.map(|(key, ..)| key.clone())
    }

    /// Whether an address is from the pod range that a pod's node was given. That it is not says nothing: some CNIs hand out
    /// addresses of their own.
    fn in_range(&self, pod: &Pod, address: IpAddr) -> bool {
        let node = self.tables.nodes.named("", &pod.node);
        node.is_some_and(|node| node.pod_ranges.iter().any(|range| range.contains(address)))
    }

    /// The addresses under which a pod is known: those of its status that are its own.
    pub(super) fn addresses_of(&self, key: &Key, pod: &Pod) -> Vec<IpAddr> {
        let own = |address: &&IpAddr| {
            pod.host_network || self.pod_at((**address).into()).as_ref() == Some(key)
        };
        pod.ips.iter().filter(own).copied().collect()
    }

    /// What people are told on a pod whose status names addresses that are another's.
    pub(super) fn pod_address_notices(&self, key: &Key) -> Vec<Notice> {
        let Some(pod) = self.tables.pods.get(key) else {
            return Vec::new();
        };
        if pod.finished || pod.host_network {
            return Vec::new();
        }
        self.lost_addresses(
            &Target::new(Kind::Pod, key),
            &pod.uid,
            &pod.ips,
            &Owner::Pod(key.clone()),
        )
    }

    /// The same on a node.
    pub(super) fn node_address_notices(&self, key: &Key) -> Vec<Notice> {
        let Some(node) = self.tables.nodes.get(key) else {
            return Vec::new();
        };
        let target = Target::new(Kind::Node, key);
        self.lost_addresses(
            &target,
            &node.uid,
            &node.addresses,
            &Owner::Node(key.clone()),
        )
    }

    fn lost_addresses(
        &self,
        target: &Target,
        uid: &std::sync::Arc<str>,
        addresses: &[IpAddr],
        me: &Owner,
    ) -> Vec<Notice> {
        let lost = addresses.iter().filter_map(|address| {
            let owner = self.owner(*address).filter(|owner| owner != me)?;
            Some(Notice {
                target: target.clone(),
                uid: uid.clone(),
                warning: true,
                reason: "AddressTaken".to_owned(),
                note: format!("address {address} is that of {owner}: in the mesh it leads there"),
            })
        });
        lost.collect()
    }

    /// Marks everything that depends on who has an address.
    pub(super) fn touch_address(&mut self, address: impl Into<At>) {
        let address = address.into();
        let tables = &mut self.tables;
        let pods: Vec<Key> = tables.pods.lookup().at(address).cloned().collect();
        let nodes: Vec<Key> = tables.nodes.lookup().at(address).cloned().collect();
        let slices: Vec<Key> = self.slice_claims.at(address).cloned().collect();
        let services: Vec<Key> = tables
            .services
            .lookup()
            .naming(address.ip())
            .cloned()
            .collect();
        tables.pods.mark_each(pods);
        tables.nodes.mark_each(nodes);
        tables.slices.mark_each(slices);
        tables.services.mark_each(services);
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::NetworkNumber;
    use super::*;

    struct Elsewhere(IpAddr);

    impl Addressed for Elsewhere {
        fn addresses(&self) -> impl Iterator<Item = IpAddr> {
            [self.0].into_iter()
        }

        fn at(&self, address: IpAddr) -> At {
            At::new(NetworkNumber(1), address)
        }
    }

    #[test]
    fn an_address_of_another_network_is_another_address() {
        let (mut all, key) = (ByAddress::default(), Key::new("shop", "far"));
        let address: IpAddr = [10, 0, 0, 1].into();
        all.add(&key, &Elsewhere(address));
        assert_eq!(all.at(address.into()).count(), 0);
        assert_eq!(all.at(At::new(NetworkNumber(1), address)).count(), 1);
        all.remove(&key, &Elsewhere(address));
        assert_eq!(all.at(At::new(NetworkNumber(1), address)).count(), 0);
    }

    #[test]
    fn a_range_has_what_begins_like_it() {
        let range = Range::parse("10.244.1.0/24").expect("a range");
        let within = |address: &str| range.contains(address.parse().expect("an address"));
        assert!(!within("10.244.2.1") && !within("fd00::1"));
        assert!(within("10.244.1.0") && within("10.244.1.255"));
        assert!(
            Range::parse("0.0.0.0/0")
                .expect("a range")
                .contains([1, 2, 3, 4].into())
        );
        assert!(Range::parse("10.0.0.0").is_none());
    }
}
