//! EndpointSlices: endpoints that somebody else chose, of pods or of things outside the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use mesh::proto::workload::{
    self as wire, NetworkMode, PortList, WorkloadStatus, WorkloadType, address,
};
use mesh::xds::{ADDRESS_TYPE, Encoded};

use super::State;
use super::changes::{Resources, Scope};
use super::kinds::{ApiKind, Watched};
use super::names::{Key, SERVICE_NAME};
use super::pods::{Pod, wire_port};
use super::services::{Service, ServicePort, octets};

/// What matters of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    /// The Service's name, in the same namespace.
    pub(super) service: Arc<str>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Port number by port name.
    ports: BTreeMap<String, u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    ready: bool,
    pod: Option<Arc<str>>,
    node: String,
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
        let ports = object.ports.iter().flatten();
        let ports = ports
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| {
                Some((
                    port.name.clone().unwrap_or_default(),
                    u16::try_from(port.port?).ok()?,
                ))
            });
        Some(Self {
            service: service.as_str().into(),
            endpoints: object.endpoints.iter().flat_map(Endpoint::parse).collect(),
            ports: ports.collect(),
        })
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        for slice in [before, now].into_iter().flatten() {
            state.touch_slice_targets(key, slice);
        }
    }

    fn resources(state: &State, key: &Key) -> Resources {
        state.slice_resources(key)
    }
}

impl Slice {
    pub(super) fn has_any(&self, ips: &[IpAddr]) -> bool {
        ips.iter().any(|ip| self.endpoints.contains_key(ip))
    }
}

impl Endpoint {
    fn parse(endpoint: &discovery::Endpoint) -> Vec<(IpAddr, Self)> {
        let conditions = endpoint.conditions.as_ref();
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"));
        let parsed = Self {
            // Absent means ready.
            ready: conditions
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true),
            pod: pod.and_then(|pod| pod.name.as_deref()).map(Into::into),
            node: endpoint.node_name.clone().unwrap_or_default(),
        };
        let addresses = endpoint
            .addresses
            .iter()
            .filter_map(|address| address.parse().ok());
        addresses.map(|address| (address, parsed.clone())).collect()
    }
}

// === impl State ===

impl State {
    /// The ports of services without a selector whose slices name this pod or one of its addresses.
    pub(super) fn slice_ports_of<'a>(
        &'a self,
        key: &'a Key,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a Key, &'a ServicePort, u16)> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for (_, slice) in self
            .tables
            .slices
            .within(&key.namespace)
            .filter(|(_, slice)| slice.has_any(&pod.ips))
        {
            let service = Key {
                namespace: key.namespace.clone(),
                name: slice.service.clone(),
            };
            if self.selectorless(&service).is_none() {
                continue;
            }
            let Some((service, spec)) = self
                .tables
                .services
                .within(&key.namespace)
                .find(|(key, _)| **key == service)
            else {
                continue;
            };
            for (port, target) in spec.ports_in(slice) {
                // A dual-stack service has a slice for each family.
                if seen.insert((service, port.port)) {
                    found.push((service, port, target));
                }
            }
        }
        found.into_iter()
    }

    /// Endpoints that are no pods are workloads of their own.
    fn slice_resources(&self, key: &Key) -> Resources {
        let mut out = Resources::default();
        let Some(slice) = self.tables.slices.get(key) else {
            return out;
        };
        let service_key = Key {
            namespace: key.namespace.clone(),
            name: slice.service.clone(),
        };
        let Some(service) = self.selectorless(&service_key) else {
            return out;
        };
        let ports: Vec<_> = service
            .ports_in(slice)
            .map(|(port, target)| wire_port(port, target))
            .collect();
        for (ip, endpoint) in &slice.endpoints {
            if endpoint.pod.is_some() || self.pod_at(&key.namespace, *ip) {
                continue;
            }
            let uid = format!(
                "{}/discovery.k8s.io/EndpointSlice/{}/{}/{ip}",
                self.settings.cluster_id, key.namespace, key.name
            );
            let health = if endpoint.ready {
                WorkloadStatus::Healthy
            } else {
                WorkloadStatus::Unhealthy
            };
            let of_node = self
                .tables
                .nodes
                .iter()
                .any(|(_, node)| node.addresses.contains(ip));
            let network = if of_node {
                NetworkMode::HostNetwork
            } else {
                NetworkMode::Standard
            };
            let workload = wire::Workload {
                uid: uid.clone(),
                name: format!("{}-{ip}", key.name),
                namespace: key.namespace.to_string(),
                addresses: vec![octets(*ip).into()],
                trust_domain: self.elided_trust_domain(),
                node: endpoint.node.clone(),
                canonical_name: slice.service.to_string(),
                canonical_revision: "latest".to_owned(),
                workload_type: WorkloadType::Pod.into(),
                workload_name: key.name.to_string(),
                services: BTreeMap::from([(
                    self.service_name(&service_key),
                    PortList {
                        ports: ports.clone(),
                    },
                )]),
                status: health.into(),
                cluster_id: self.settings.cluster_id.clone(),
                network_mode: network.into(),
                ..Default::default()
            };
            let address = wire::Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            let resource = Encoded::new(ADDRESS_TYPE, &address);
            out.insert(Scope::Addresses, uid.into(), resource);
        }
        out
    }

    /// Marks the pods whose addresses a slice without a selector names.
    pub(super) fn touch_slice_targets(&mut self, key: &Key, slice: &Slice) {
        let service = Key {
            namespace: key.namespace.clone(),
            name: slice.service.clone(),
        };
        if self
            .tables
            .services
            .get(&service)
            .is_some_and(|service| service.selector.is_some())
        {
            return;
        }
        let pods: Vec<Key> = self
            .tables
            .pods
            .within(&key.namespace)
            .filter(|(_, pod)| slice.has_any(&pod.ips))
            .map(|(key, _)| key.clone())
            .collect();
        self.tables.pods.mark_each(pods);
    }

    fn pod_at(&self, namespace: &str, ip: IpAddr) -> bool {
        self.tables
            .pods
            .within(namespace)
            .any(|(_, pod)| !pod.finished && !pod.host_network && pod.ips.contains(&ip))
    }
}

impl Service {
    /// The slice's ports that are the service's, by name.
    fn ports_in<'a>(&'a self, slice: &'a Slice) -> impl Iterator<Item = (&'a ServicePort, u16)> {
        self.ports
            .iter()
            .filter_map(|port| Some((port, *slice.ports.get(&port.name)?)))
    }
}
