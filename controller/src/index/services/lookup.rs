//! Finds Services by what they say.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::addresses::ByAddress;
use super::super::cluster::At;
use super::super::labels::{Labels, Pair};
use super::super::lookup::Lookup;
use super::super::names::Key;
use super::super::share::Shares;
use super::super::tables::SecondaryIndex;
use super::super::vips::{Claimants, MAX_OF_NAMESPACE};
use super::Service;

/// Finds Services.
#[derive(Debug, Default)]
pub(in crate::index) struct ServiceLookup {
    addresses: ByAddress,
    /// By the addresses that they name beside their cluster IPs.
    pub(in crate::index) claimants: Claimants,
    /// Of those addresses.
    pub(in crate::index) shares: Shares<MAX_OF_NAMESPACE>,
    /// By the Gateway that their own labels ask for.
    asking: Lookup<Key>,
    /// By their namespace and one pair of their selector: the one that the fewest others there are found by.
    selecting: Lookup<(Arc<str>, Pair)>,
}

// === impl ServiceLookup ===

impl ServiceLookup {
    /// The Services that have an address as their cluster IP.
    pub(in crate::index) fn at(&self, address: impl Into<At>) -> impl Iterator<Item = &Key> {
        self.addresses.at(address.into())
    }

    /// The Services that name an address beside their cluster IPs, as far as their namespace's bound lets them name any.
    pub(in crate::index) fn naming(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        let claimants = self.claimants.at(address);
        claimants.filter(|key| self.shares.allowance(key) > 0)
    }

    /// The Services whose own labels ask for a Gateway.
    pub(in crate::index) fn asking(&self, gateway: &Key) -> impl Iterator<Item = &Key> {
        self.asking.get(gateway)
    }

    /// The Services of a namespace that may select a pod with these labels, each once, in the order of their names: whoever
    /// wants only the first of them takes as many steps.
    pub(in crate::index) fn selecting(
        &self,
        namespace: &Arc<str>,
        labels: &Labels,
    ) -> impl Iterator<Item = &Key> {
        let pairs = labels.pairs().iter();
        let said = pairs.map(|pair| (namespace.clone(), pair.clone()));
        let mut found: Vec<_> = said.map(|said| self.selecting.get(&said)).collect();
        let firsts = found.iter_mut().enumerate();
        let firsts = firsts.filter_map(|(at, keys)| Some(Reverse((keys.next()?, at))));
        let mut next: BinaryHeap<_> = firsts.collect();
        std::iter::from_fn(move || {
            let Reverse((key, at)) = next.pop()?;
            next.extend(found[at].next().map(|key| Reverse((key, at))));
            Some(key)
        })
    }
}

impl SecondaryIndex<Service> for ServiceLookup {
    fn add(&mut self, key: &Key, service: &Service) {
        self.addresses.add(key, service);
        self.claimants.add(key, service);
        self.shares.set(key, service.further.count());
        self.asking.add(key, service);
        let rarest = said(key, service).min_by_key(|said| self.selecting.count(said));
        if let Some(said) = rarest {
            self.selecting.insert(said, key);
        }
    }

    fn remove(&mut self, key: &Key, service: &Service) {
        self.addresses.remove(key, service);
        self.claimants.remove(key, service);
        self.shares.unset(key);
        self.asking.remove(key, service);
        for said in said(key, service) {
            self.selecting.take(&said, key);
        }
    }

    fn pack(&mut self) {
        SecondaryIndex::<Service>::pack(&mut self.addresses);
        self.selecting.pack();
    }
}

fn said(key: &Key, service: &Service) -> impl Iterator<Item = (Arc<str>, Pair)> {
    let pairs = service
        .selector
        .iter()
        .flat_map(|selector| selector.pairs());
    pairs.map(|pair| (key.namespace.clone(), pair.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::kinds::Watched;
    use super::*;

    fn service(selector: &serde_json::Value) -> Service {
        let object = json!({"metadata": {"name": "s"}, "spec": {"selector": selector}});
        let object = serde_json::from_value(object).expect("a Service");
        Service::parse(&object).expect("kept")
    }

    fn labels(labels: serde_json::Value) -> Labels {
        let labels = serde_json::from_value(labels).expect("labels");
        Labels::of(Some(&labels))
    }

    #[test]
    fn services_are_found_by_what_sets_them_apart() {
        let mut lookup = ServiceLookup::default();
        let name = |number: usize| Key::new("shop", &format!("s{number}"));
        let selector = |number: usize| json!({"all": "same", "app": format!("a{number}")});
        for number in 0..100 {
            lookup.add(&name(number), &service(&selector(number)));
        }
        lookup.add(&Key::new("till", "s7"), &service(&selector(7)));
        let (shop, pod) = (Arc::from("shop"), labels(selector(7)));
        let found: Vec<&Key> = lookup.selecting(&shop, &pod).collect();
        assert!(found.contains(&&name(7)) && found.len() <= 2, "{found:?}");
        for number in 0..100 {
            lookup.remove(&name(number), &service(&selector(number)));
        }
        assert_eq!(lookup.selecting(&shop, &pod).count(), 0);
    }

    #[test]
    fn whoever_is_beyond_the_bound_on_addresses_is_not_asked_about_them() {
        let mut lookup = ServiceLookup::default();
        let object = json!({
            "spec": {"clusterIPs": ["10.96.0.1"], "externalIPs": ["203.0.113.1"]},
        });
        let object = serde_json::from_value(object).expect("a Service");
        let naming = Service::parse(&object).expect("kept");
        for number in 0..2 * MAX_OF_NAMESPACE {
            lookup.add(&Key::new("evil", &format!("s{number:03}")), &naming);
        }
        lookup.add(&Key::new("shop", "front"), &naming);
        let named = lookup.naming([203, 0, 113, 1].into());
        assert_eq!(named.count(), MAX_OF_NAMESPACE + 1);
    }

    #[test]
    fn services_are_found_in_the_order_of_their_names() {
        let mut lookup = ServiceLookup::default();
        let name = |number: usize| Key::new("shop", &format!("s{number:02}"));
        let pairs = [("a", "1"), ("b", "2"), ("c", "3")];
        for number in (0..30).rev() {
            let (label, value) = pairs[number % 3];
            lookup.add(&name(number), &service(&json!({label: value})));
        }
        let (shop, pod) = (
            Arc::from("shop"),
            labels(json!({"a": "1", "b": "2", "d": "4"})),
        );
        let found: Vec<Key> = lookup.selecting(&shop, &pod).cloned().collect();
        let expected = (0..30).filter(|number| number % 3 != 2).map(name);
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
