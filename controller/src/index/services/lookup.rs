//! Finds Services by what they say.

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

    /// The Services that name an address beside their cluster IPs.
    pub(in crate::index) fn naming(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        self.claimants.at(address)
    }

    /// The Services whose own labels ask for a Gateway.
    pub(in crate::index) fn asking(&self, gateway: &Key) -> impl Iterator<Item = &Key> {
        self.asking.get(gateway)
    }

    /// The Services of a namespace that may select a pod with these labels, each once.
    pub(in crate::index) fn selecting<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Key> {
        let pairs = labels.pairs().iter();
        pairs.flat_map(|pair| self.selecting.get(&(namespace.clone(), pair.clone())))
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
}
