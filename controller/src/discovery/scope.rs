//! Which addresses a waypoint must know: what is bound to it, what its routes name, and the workloads behind these.
//!
//! Kept up to date by what changes: nothing here looks at more than what a change touches. Everything is derived from
//! the resources themselves, so that it cannot differ from what proxies are told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};
use mesh::names::Network;
use mesh::proto::waypoint::{Route, backend};
use mesh::proto::workload::{Address, GatewayAddress, NetworkMode, address, gateway_address};
use mesh::xds::{Encoded, Resources, View};

use super::snapshot::packed_set;
use crate::index::names::Key;

/// What each waypoint sees of the addresses of the mesh. A clone costs a few pointers.
#[derive(Debug, Clone, Default)]
pub(super) struct Scopes {
    /// Whose addresses can be asked for.
    network: Network,
    views: HashMap<Key, View>,
    /// By resource: the waypoints that need it, and for how many reasons.
    needs: HashMap<Arc<str>, OrdMap<Key, u32>>,
    /// By service: the workloads that serve it.
    behind: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    /// Who has an address, by its resource. For a moment that may be two.
    claims: OrdSet<(IpAddr, Arc<str>)>,
}

/// What an address says of others.
#[derive(Debug, Default, PartialEq, Eq)]
struct Links {
    /// The services that a workload serves.
    services: BTreeSet<Arc<str>>,
    /// Its waypoint, and that waypoint's service.
    waypoint: Option<(Key, Arc<str>)>,
    /// Those of our network.
    addresses: BTreeSet<IpAddr>,
}

// === impl Scopes ===

impl Scopes {
    /// Of a mesh in this network that nobody sees anything of yet.
    pub(super) fn new(network: Network) -> Self {
        Self {
            network,
            ..Self::default()
        }
    }

    /// The network whose addresses can be asked for.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// What this waypoint sees without asking.
    pub(super) fn view(&self, waypoint: &Key) -> View {
        self.views.get(waypoint).cloned().unwrap_or_default()
    }

    /// To be kept for long.
    pub(super) fn pack(&mut self) {
        self.claims = packed_set(&self.claims);
        let behind = self.behind.iter();
        let behind = behind.map(|(service, workloads)| (service.clone(), packed_set(workloads)));
        self.behind = behind.collect();
    }

    /// The resource that has this address: of two claims a pod's.
    pub(super) fn at(&self, ip: IpAddr) -> Option<&Arc<str>> {
        let first: (IpAddr, Arc<str>) = (ip, Arc::from(""));
        self.claims
            .range(first..)
            .take_while(|(claimed, _)| *claimed == ip)
            .map(|(_, name)| name)
            .min_by_key(|name| !name.contains("//Pod/"))
    }

    /// One address came, changed or went; `all` has it as it is now.
    pub(super) fn address(
        &mut self,
        name: &Arc<str>,
        before: Option<&Encoded>,
        now: Option<&Encoded>,
        all: &Resources,
    ) {
        let links = |encoded| Links::of(encoded, &self.network);
        let (was, is) = (links(before), links(now));
        for ip in was.addresses.difference(&is.addresses) {
            self.claims.remove(&(*ip, name.clone()));
        }
        for ip in is.addresses.difference(&was.addresses) {
            self.claims.insert((*ip, name.clone()));
        }
        for service in is.services.difference(&was.services) {
            let behind = self.behind.entry(service.clone()).or_default();
            behind.insert(name.clone());
            for waypoint in self.needed_by(service) {
                self.need(&waypoint, name, all);
            }
        }
        for service in was.services.difference(&is.services) {
            if let Some(behind) = self.behind.get_mut(service) {
                behind.remove(name);
                if behind.is_empty() {
                    self.behind.remove(service);
                }
            }
            for waypoint in self.needed_by(service) {
                self.release(&waypoint, name);
            }
        }
        if was.waypoint != is.waypoint {
            if let Some((waypoint, own)) = &is.waypoint {
                self.need_service(waypoint, name, all);
                self.need_service(waypoint, own, all);
            }
            if let Some((waypoint, own)) = &was.waypoint {
                self.release_service(waypoint, name);
                self.release_service(waypoint, own);
            }
        }
        for waypoint in self.needed_by(name) {
            self.show(&waypoint, name, now);
        }
    }

    /// One route of a waypoint came, changed or went.
    pub(super) fn route(
        &mut self,
        waypoint: &Key,
        before: Option<&Encoded>,
        now: Option<&Encoded>,
        all: &Resources,
    ) {
        let (was, is) = (named(before), named(now));
        for service in is.difference(&was) {
            self.need_service(waypoint, service, all);
        }
        for service in was.difference(&is) {
            self.release_service(waypoint, service);
        }
    }

    fn needed_by(&self, name: &str) -> Vec<Key> {
        let needs = self.needs.get(name).into_iter();
        needs.flat_map(|needs| needs.keys().cloned()).collect()
    }

    /// A service (or a workload that is bound itself), and all that serve it.
    fn need_service(&mut self, waypoint: &Key, name: &Arc<str>, all: &Resources) {
        if self.need(waypoint, name, all) {
            for workload in self.behind.get(name).cloned().unwrap_or_default() {
                self.need(waypoint, &workload, all);
            }
        }
    }

    fn release_service(&mut self, waypoint: &Key, name: &Arc<str>) {
        if self.release(waypoint, name) {
            for workload in self.behind.get(name).cloned().unwrap_or_default() {
                self.release(waypoint, &workload);
            }
        }
    }

    /// One more reason. True: it is the first.
    fn need(&mut self, waypoint: &Key, name: &Arc<str>, all: &Resources) -> bool {
        let needs = self.needs.entry(name.clone()).or_default();
        let reasons = needs.get(waypoint).copied().unwrap_or(0);
        needs.insert(waypoint.clone(), reasons + 1);
        if reasons == 0 {
            self.show(waypoint, name, all.get(name));
        }
        reasons == 0
    }

    /// One reason less. True: it was the last.
    fn release(&mut self, waypoint: &Key, name: &Arc<str>) -> bool {
        let Some(needs) = self.needs.get_mut(name) else {
            return false;
        };
        match needs.get(waypoint).copied() {
            None => return false,
            Some(reasons) if reasons > 1 => {
                needs.insert(waypoint.clone(), reasons - 1);
                return false;
            }
            Some(_) => needs.remove(waypoint),
        };
        if needs.is_empty() {
            self.needs.remove(name);
        }
        self.show(waypoint, name, None);
        true
    }

    /// Puts into a waypoint's view what is there now.
    fn show(&mut self, waypoint: &Key, name: &Arc<str>, now: Option<&Encoded>) {
        let mut view = self.view(waypoint);
        match now {
            Some(now) if view.get(name) != Some(now) => {
                view.edit().insert(name.clone(), now.clone());
            }
            None if view.contains_key(name) => {
                view.edit().remove(name);
            }
            Some(_) | None => return,
        }
        match view.is_empty() {
            true => self.views.remove(waypoint),
            false => self.views.insert(waypoint.clone(), view),
        };
    }
}

// === impl Links ===

impl Links {
    fn of(encoded: Option<&Encoded>, network: &Network) -> Self {
        // What the index has just encoded can be decoded.
        let address = encoded.and_then(|encoded| encoded.decode::<Address>().ok());
        match address.and_then(|address| address.r#type) {
            None => Self::default(),
            Some(address::Type::Service(service)) => Self {
                services: BTreeSet::new(),
                waypoint: service.waypoint.as_ref().and_then(waypoint),
                addresses: service
                    .addresses
                    .iter()
                    .filter(|at| at.network == network.as_str())
                    .filter_map(|at| ip(&at.address))
                    .collect(),
            },
            Some(address::Type::Workload(workload)) => {
                // The address of a node is no pod's, and that of another network another one.
                let own = workload.network_mode() != NetworkMode::HostNetwork
                    && workload.network == network.as_str();
                let addresses = workload.addresses.iter().filter(|_| own);
                Self {
                    waypoint: workload.waypoint.as_ref().and_then(waypoint),
                    addresses: addresses.filter_map(|at| ip(at)).collect(),
                    services: workload.services.into_keys().map(Arc::from).collect(),
                }
            }
        }
    }
}

// === free ===

/// The addresses of a resource in this network, as they can be asked for.
pub(super) fn addresses(encoded: Option<&Encoded>, network: &Network) -> BTreeSet<IpAddr> {
    Links::of(encoded, network).addresses
}

/// A waypoint's Service has the name of its Gateway.
fn waypoint(address: &GatewayAddress) -> Option<(Key, Arc<str>)> {
    let Some(gateway_address::Destination::Hostname(at)) = &address.destination else {
        return None;
    };
    let gateway = at.hostname.split('.').next().unwrap_or_default();
    let key = Key::new(&at.namespace, gateway);
    Some((key, format!("{}/{}", at.namespace, at.hostname).into()))
}

/// The services that a route names: those it is attached to, and those it sends to.
fn named(encoded: Option<&Encoded>) -> BTreeSet<Arc<str>> {
    let route = encoded.and_then(|encoded| encoded.decode::<Route>().ok());
    let Some(route) = route else {
        return BTreeSet::new();
    };
    let parents = route.parents.iter();
    let parents = parents.map(|parent| (&parent.namespace, &parent.hostname));
    let backends = route.rules.iter().flat_map(|rule| &rule.backends);
    let backends = backends.filter_map(|backend| match &backend.to {
        Some(backend::To::Service(service)) => Some((&service.namespace, &service.hostname)),
        Some(backend::To::Invalid(_)) | None => None,
    });
    parents
        .chain(backends)
        .map(|(namespace, hostname)| format!("{namespace}/{hostname}").into())
        .collect()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(v6).to_canonical())
}
