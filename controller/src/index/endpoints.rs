//! EndpointSlices: endpoints that somebody chose, of pods or of things outside the cluster.

mod claims;
mod lookup;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use mesh::proto::workload::{
    self as wire, NetworkMode, PortList, WorkloadStatus, WorkloadType, address,
};
use mesh::xds::{ADDRESS_TYPE, Encoded};

pub(super) use self::claims::Claims;
use self::claims::{MAX_PORTS_AT_ADDRESS, MAX_SLICES};
pub(super) use self::lookup::SliceLookup;
use super::State;
use super::addresses::{Owner, parse};
use super::changes::{Notice, Resources, Scope, Target};
use super::common::Common;
use super::kinds::{ApiKind, Kind, Watched};
use super::names::{Key, SERVICE_NAME};
use super::output::Output;
use super::pods::{Pod, wire_port};
use super::services::{Service, ServicePort, octets};

/// What matters of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    uid: Arc<str>,
    /// The Service's name, in the same namespace.
    pub(super) service: Arc<str>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Port names and numbers. Each name stands there once.
    ports: Box<[(Arc<str>, u16)]>,
    /// Kubernetes' own controller writes it: for a Service with a selector it says what the pods say.
    of_selector: bool,
}

/// What an endpoint of a slice is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// This pod.
    Pod(Key),
    /// A pod that is not there.
    Absent,
    /// Something on a node.
    Host,
    /// Something outside the cluster, or at least no pod.
    Outside,
    /// Another's own address: nothing of this slice's.
    Taken(Owner),
    /// An address where slices that go before have taken the room.
    BeyondBound,
}

/// On an EndpointSlice: who writes it.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Kubernetes' own writer of the slices of Services that have a selector.
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Endpoints per namespace that are listed by address alone: every proxy of the mesh remembers each of them.
const MAX_ENDPOINTS: usize = 1000;
/// Events on one slice.
const MAX_NOTICES: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoint {
    /// It says that it is this pod of the slice's own namespace: the rest is what the pod says.
    Pod {
        name: Box<str>,
        ready: bool,
    },
    Bare(Bare),
}

/// An endpoint that is listed by address alone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bare {
    ready: bool,
    node: Arc<str>,
}

// === impl Slice ===

impl Watched for Slice {
    type Object = discovery::EndpointSlice;
    const API: ApiKind = ApiKind::of_group("discovery.k8s.io", "EndpointSlice", "endpointslices");

    /// `None`: it belongs to no Service, or names its endpoints by DNS name.
    fn parse(object: &discovery::EndpointSlice) -> Option<Self> {
        let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        if object.address_type == "FQDN" {
            return None;
        }
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let ports = object.ports.iter().flatten();
        let ports = ports
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| {
                Some((
                    port.name.as_deref().unwrap_or_default().into(),
                    u16::try_from(port.port?).ok()?,
                ))
            });
        // Of several ports of one name the last counts.
        let ports: BTreeMap<Arc<str>, u16> = ports.collect();
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            service: service.as_str().into(),
            endpoints: object
                .endpoints
                .iter()
                .filter_map(|endpoint| Endpoint::parse(endpoint, namespace))
                .collect(),
            ports: ports.into_iter().collect(),
            of_selector: object.metadata.labels.as_ref().is_some_and(|labels| {
                labels
                    .get(MANAGED_BY)
                    .is_some_and(|by| by == SLICE_CONTROLLER)
            }),
        })
    }

    fn share(&mut self, common: &mut Common) {
        common.text(&mut self.service);
        for (name, _) in &mut self.ports {
            common.text(name);
        }
        for endpoint in self.endpoints.values_mut() {
            if let Endpoint::Bare(bare) = endpoint {
                common.text(&mut bare.node);
            }
        }
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        for slice in [before, now].into_iter().flatten() {
            state.touch_slice_targets(slice);
        }
        let listing = |slice: &&Self| state.listing(key, slice).is_some();
        let (listed, lists) = (before.filter(listing), now.filter(listing));
        state.relist(key, listed, lists);
        let count = |slice: Option<&Self>| slice.map_or(0, Self::counted);
        state.touch_share(key, count(before), count(now));
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        let notices = state.slice_notices(key);
        output.events(Target::new(Kind::EndpointSlice, key), notices);
    }

    fn resources(state: &State, key: &Key) -> Resources {
        state.slice_resources(key)
    }
}

impl Slice {
    pub(super) fn service_key(&self, slice: &Key) -> Key {
        Key::within(slice.namespace.clone(), &self.service)
    }

    fn port(&self, name: &str) -> Option<u16> {
        let mut ports = self.ports.iter();
        Some(ports.find(|(one, _)| **one == *name)?.1)
    }

    /// How many endpoints it lists by address alone.
    fn counted(&self) -> usize {
        self.endpoints
            .values()
            .filter(|endpoint| endpoint.is_bare())
            .count()
    }

    /// The endpoints that are taken, while so many are that are listed by address alone.
    fn taken(&self, allowance: usize) -> impl Iterator<Item = (IpAddr, &Endpoint)> {
        let mut left = allowance;
        let taken = self.endpoints.iter().filter(move |(_, endpoint)| {
            let taken = !endpoint.is_bare() || left > 0;
            if endpoint.is_bare() {
                left = left.saturating_sub(1);
            }
            taken
        });
        taken.map(|(address, endpoint)| (*address, endpoint))
    }

    /// The endpoint at an address, if it is one of those.
    fn taken_at(&self, address: IpAddr, allowance: usize) -> Option<&Endpoint> {
        let endpoint = self.endpoints.get(&address)?;
        if !endpoint.is_bare() || allowance == usize::MAX {
            return Some(endpoint);
        }
        if allowance == 0 {
            return None;
        }
        // Of one slice in a namespace only a part is taken.
        let mut taken = self.taken(allowance);
        let (_, endpoint) = taken.find(|(one, _)| *one == address)?;
        Some(endpoint)
    }
}

impl Endpoint {
    /// An endpoint of a slice of this namespace. A reference to a pod of another namespace says no more than the address.
    /// Addresses beyond the first have no meaning in Kubernetes, and kube-proxy does not look at them: the API server's
    /// bound of 1000 endpoints in a slice is one of addresses, too.
    fn parse(endpoint: &discovery::Endpoint, namespace: &str) -> Option<(IpAddr, Self)> {
        let address = parse(endpoint.addresses.first()?)?;
        let conditions = endpoint.conditions.as_ref();
        let pod = endpoint.target_ref.as_ref().filter(|target| {
            let own = target
                .namespace
                .as_deref()
                .is_none_or(|one| one == namespace);
            target.kind.as_deref() == Some("Pod") && own
        });
        // Absent means ready.
        let ready = conditions.and_then(|conditions| conditions.ready);
        let ready = ready.unwrap_or(true);
        let parsed = match pod.and_then(|pod| pod.name.as_deref()) {
            Some(name) => Self::Pod {
                name: name.into(),
                ready,
            },
            None => Self::Bare(Bare {
                ready,
                node: endpoint.node_name.as_deref().unwrap_or_default().into(),
            }),
        };
        Some((address, parsed))
    }

    fn is_bare(&self) -> bool {
        matches!(self, Self::Bare(_))
    }
}

// === impl State ===

impl State {
    /// The Service whose endpoints the slice lists: one without a selector, or any where Kubernetes' own controller did not
    /// write the slice. Endpoints of several slices add up.
    fn listing(&self, key: &Key, slice: &Slice) -> Option<&Arc<Service>> {
        let service = self.tables.services.get(&slice.service_key(key))?;
        service.takes(slice).then_some(service)
    }

    /// What an endpoint of a slice that lists endpoints is.
    fn meaning(&self, key: &Key, address: IpAddr, endpoint: &Endpoint) -> Meaning {
        if !self.slice_claims.counts(address, key) {
            return Meaning::BeyondBound;
        }
        if let Endpoint::Pod { name, .. } = endpoint {
            let pod = self.tables.pods.named(&key.namespace, name);
            // It may be on the host's network, where its address is not its own.
            if pod.is_some_and(|pod| !pod.finished && pod.ips.contains(&address)) {
                return Meaning::Pod(Key::within(key.namespace.clone(), name));
            }
        }
        match (self.owner(address), endpoint) {
            // To name a pod frees an endpoint from the namespace's bound, so that it brings that pod or nothing.
            (Some(Owner::Pod(other)), Endpoint::Pod { .. }) => Meaning::Taken(Owner::Pod(other)),
            // The pod that it names is not seen yet, or no more.
            (_, Endpoint::Pod { .. }) => Meaning::Absent,
            (Some(Owner::Pod(pod)), Endpoint::Bare(_)) => Meaning::Pod(pod),
            (Some(Owner::Service(service)), Endpoint::Bare(_)) => {
                Meaning::Taken(Owner::Service(service))
            }
            (Some(Owner::Node(_)), Endpoint::Bare(_)) => Meaning::Host,
            (None, Endpoint::Bare(_)) => Meaning::Outside,
        }
    }

    /// How many endpoints of a slice that are listed by address alone are taken at most.
    fn allowance(&self, key: &Key) -> usize {
        self.tables.slices.lookup().shares.allowance(key)
    }

    /// The ports of services whose slices list this pod, of whatever namespace they are: to them it is
    /// an endpoint like any other, with its identity, its policies and its tunnel.
    pub(super) fn slice_ports_of(&self, key: &Key, pod: &Pod) -> Vec<(Key, ServicePort, u16)> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for address in pod.ips.iter() {
            for slice_key in self.slice_claims.at(*address) {
                let Some(slice) = self.tables.slices.get(slice_key) else {
                    continue;
                };
                let Some(endpoint) = slice.taken_at(*address, self.allowance(slice_key)) else {
                    continue;
                };
                if self.meaning(slice_key, *address, endpoint) != Meaning::Pod(key.clone()) {
                    continue;
                }
                let Some(service) = self.listing(slice_key, slice) else {
                    continue;
                };
                // It is an endpoint of others, and may be one of this Service's another time.
                if matches!(endpoint, Endpoint::Pod { ready: false, .. }) {
                    continue;
                }
                let service_key = slice.service_key(slice_key);
                for (port, target) in service.ports_in(slice) {
                    // A dual-stack service has a slice for each family.
                    if seen.insert((service_key.clone(), port.port)) {
                        found.push((service_key.clone(), port.clone(), target));
                    }
                }
            }
        }
        found
    }

    /// Endpoints that are no pods are workloads of their own.
    fn slice_resources(&self, key: &Key) -> Resources {
        let mut out = Resources::default();
        let Some(slice) = self.tables.slices.get(key) else {
            return out;
        };
        let Some(service) = self.listing(key, slice) else {
            return out;
        };
        let service_name = self.service_name(&slice.service_key(key));
        let ports: Vec<_> = service
            .ports_in(slice)
            .map(|(port, target)| wire_port(port, target))
            .collect();
        for (address, endpoint) in slice.taken(self.allowance(key)) {
            let Endpoint::Bare(bare) = endpoint else {
                continue;
            };
            let network = match self.meaning(key, address, endpoint) {
                Meaning::Outside => NetworkMode::Standard,
                // To dial the node itself is not to dial this endpoint.
                Meaning::Host => NetworkMode::HostNetwork,
                Meaning::Pod(_) | Meaning::Absent | Meaning::Taken(_) | Meaning::BeyondBound => {
                    continue;
                }
            };
            let mut workload = self.slice_workload(key, slice, address, bare);
            workload.network_mode = network.into();
            let ports = PortList {
                ports: ports.clone(),
            };
            workload.services = BTreeMap::from([(service_name.clone(), ports)]);
            let name = workload.uid.as_str().into();
            let address = wire::Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            let resource = Encoded::new(ADDRESS_TYPE, &address);
            out.insert(Scope::Addresses, name, resource);
        }
        out
    }

    fn slice_workload(
        &self,
        key: &Key,
        slice: &Slice,
        address: IpAddr,
        bare: &Bare,
    ) -> wire::Workload {
        let health = if bare.ready {
            WorkloadStatus::Healthy
        } else {
            WorkloadStatus::Unhealthy
        };
        wire::Workload {
            uid: self.settings.cluster_id.endpoint(key, address).to_string(),
            name: format!("{}-{address}", key.name),
            namespace: key.namespace.to_string(),
            addresses: vec![octets(address).into()],
            trust_domain: self.elided_trust_domain(),
            node: bare.node.to_string(),
            canonical_name: slice.service.to_string(),
            canonical_revision: "latest".to_owned(),
            workload_type: WorkloadType::Pod.into(),
            workload_name: key.name.to_string(),
            status: health.into(),
            cluster_id: self.settings.cluster_id.to_string(),
            network: self.settings.network.to_string(),
            ..Default::default()
        }
    }

    /// What people are told on a slice of which not everything is taken.
    fn slice_notices(&self, key: &Key) -> Vec<Notice> {
        let slice = self.tables.slices.get(key);
        let Some(slice) = slice.filter(|slice| self.listing(key, slice).is_some()) else {
            return Vec::new();
        };
        let mut notices = Vec::new();
        let mut say = |reason: &str, note: String| {
            notices.push(Notice {
                target: Target::new(Kind::EndpointSlice, key),
                uid: slice.uid.clone(),
                warning: true,
                reason: reason.to_owned(),
                note,
            });
        };
        let allowance = self.allowance(key);
        let mut beyond = 0;
        for (address, endpoint) in slice.taken(allowance) {
            match self.meaning(key, address, endpoint) {
                Meaning::Taken(owner) => say(
                    "AddressTaken",
                    format!("address {address} is that of {owner}: it is no endpoint in the mesh"),
                ),
                Meaning::BeyondBound => beyond += 1,
                Meaning::Pod(_) | Meaning::Absent | Meaning::Host | Meaning::Outside => {}
            }
        }
        if beyond > 0 {
            say(
                "TooManySlices",
                format!(
                    "at one address at most {MAX_SLICES} EndpointSlices of a namespace count, with together {MAX_PORTS_AT_ADDRESS} ports, the first by name: not known to the mesh are of this one: {beyond}"
                ),
            );
        }
        let cut = slice.counted().saturating_sub(allowance);
        if cut > 0 {
            say(
                "TooManyEndpoints",
                format!(
                    "a namespace brings at most {MAX_ENDPOINTS} endpoints that are listed by address alone: not known to the mesh are of this one: {cut}"
                ),
            );
        }
        notices.truncate(MAX_NOTICES);
        notices
    }

    /// Marks the pods whose addresses a slice names.
    pub(super) fn touch_slice_targets(&mut self, slice: &Slice) {
        let pods = &self.tables.pods;
        let named = slice.endpoints.keys();
        let named = named.flat_map(|address| pods.lookup().at(*address).cloned());
        let named: Vec<Key> = named.collect();
        self.tables.pods.mark_each(named);
    }

    /// A slice lists addresses for a Service without a selector now, and did before. Marks the slices that count there from
    /// now on, or no more; the pods there are marked by whoever knows of the change.
    pub(super) fn relist(&mut self, key: &Key, before: Option<&Slice>, now: Option<&Slice>) {
        let listed = before.into_iter().flat_map(|slice| slice.endpoints.keys());
        for address in listed {
            if now.is_none_or(|now| !now.endpoints.contains_key(address)) {
                let others = self.slice_claims.take((*address).into(), key);
                self.tables.slices.mark_each(others);
            }
        }
        if let Some(slice) = now {
            for address in slice.endpoints.keys() {
                let ports = slice.ports.len();
                let others = self.slice_claims.put((*address).into(), key, ports);
                self.tables.slices.mark_each(others);
            }
        }
    }

    /// Marks the slices of which more or less is taken since this one brings so much instead of so much.
    fn touch_share(&mut self, key: &Key, was: usize, is: usize) {
        let shares = &self.tables.slices.lookup().shares;
        for key in shares.contested(key, was, is) {
            if let Some(slice) = self.tables.slices.get(&key).cloned() {
                self.touch_slice_targets(&slice);
                self.tables.slices.mark(key);
            }
        }
    }
}

impl Service {
    /// Whether its endpoints are, or are among others, what the slice lists.
    pub(super) fn takes(&self, slice: &Slice) -> bool {
        self.is_listed() || !self.alias && !slice.of_selector
    }

    /// The slice's ports that are the service's, by name.
    fn ports_in<'a>(&'a self, slice: &'a Slice) -> impl Iterator<Item = (&'a ServicePort, u16)> {
        let served = self.ports.served().iter();
        served.filter_map(|port| Some((port, slice.port(&port.name)?)))
    }
}
