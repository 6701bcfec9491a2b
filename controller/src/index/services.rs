//! Services: their addresses, their ports and what is spoken there.

mod lookup;
mod ports;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::workload::load_balancing::{HealthPolicy, Mode, Scope as Near};
use mesh::proto::workload::{self as wire, IpFamilies, LoadBalancing, address};
use mesh::service::session_affinity;
use mesh::xds::{ADDRESS_TYPE, Encoded};

pub(super) use self::lookup::ServiceLookup;
pub(super) use self::ports::{MAX_SERVICE_PORTS, Ports, ServicePort, TargetPort};
use super::State;
use super::addresses::{Addressed, parse};
use super::binding::{Binding, Traffic, asks_for};
use super::changes::{ConditionsAt, How, Notice, Resources, Scope, Target, Write};
use super::common::Common;
use super::condition::{Condition, Conditions};
use super::endpoints::Slice;
use super::kinds::{ApiKind, Kind, Watched};
use super::labels::Labels;
use super::lookup::Says;
use super::names::{Key, MANAGED, MANAGED_BY_US, WAYPOINT_BOUND};
use super::output::Output;
use super::owners::Controller;
use super::routes::ROUTE_KINDS;
use super::vips::FurtherVips;

/// Why a Service has no port in the mesh.
const TOO_MANY_PORTS: &str = "TooManyPorts";

/// What Kubernetes gives session affinity that does not say how long.
const AFFINITY_SECONDS: u64 = 10_800;

/// What matters of a Service.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Service {
    pub(super) uid: Arc<str>,
    pub(super) controller: Option<Box<Controller>>,
    pub(super) labels: Labels,
    /// Absent: endpoints come from EndpointSlices that somebody else writes.
    pub(super) selector: Option<Labels>,
    /// Its cluster IPs.
    pub(super) vips: Vec<IpAddr>,
    pub(super) further: FurtherVips,
    /// No address of its own: `clusterIP: None`, or only an alias (`ExternalName`).
    pub(super) headless: bool,
    pub(super) alias: bool,
    pub(super) ports: Ports,
    families: IpFamilies,
    balancing: Option<LoadBalancing>,
    affinity: Option<Duration>,
    generation: Option<i64>,
    conditions: Conditions,
}

// === impl Service ===

impl Watched for Service {
    type Object = core::Service;
    const API: ApiKind = ApiKind::core("Service", "services");

    fn parse(object: &core::Service) -> Option<Self> {
        let spec = object.spec.clone().unwrap_or_default();
        let conditions = object
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let (balancing, affinity) = (balancing(&spec), affinity(&spec));
        let vips = spec
            .cluster_ips
            .unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
        // "None" stands in the same field.
        let ports = Ports::parse(spec.ports.as_deref().unwrap_or_default());
        let vips: Vec<IpAddr> = vips.iter().filter_map(|vip| parse(vip)).collect();
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            controller: Controller::of(&object.metadata).map(Box::new),
            labels: Labels::of(object.metadata.labels.as_ref()),
            selector: Some(Labels::of(spec.selector.as_ref()))
                .filter(|selector| !selector.is_empty()),
            further: FurtherVips::parse(object, &vips, &ports),
            vips,
            headless: spec.cluster_ip.as_deref() == Some("None"),
            alias: spec.type_.as_deref() == Some("ExternalName"),
            ports,
            families: families(spec.ip_families.as_deref().unwrap_or_default()),
            balancing,
            affinity,
            generation: object.metadata.generation,
            conditions: Conditions::of(&[WAYPOINT_BOUND], conditions.into_iter().flatten()),
        })
    }

    /// While the last change of a route that named it, or one of its ports, may be on its way.
    fn waits_for(state: &State, key: &Key, now: Option<&Self>) -> &'static [Kind] {
        let offers = |port: &ServicePort| now.is_some_and(|now| now.offers(port.port));
        let before = state.tables.services.get(key);
        let goes = before.is_some_and(|before| !before.alias && !before.ports.iter().all(offers));
        match goes && state.is_named_by_routes(key) {
            true => ROUTE_KINDS,
            false => &[],
        }
    }

    fn share(&mut self, common: &mut Common) {
        self.labels.share(common);
        if let Some(selector) = &mut self.selector {
            selector.share(common);
        }
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        state.touch_service(key, before, now);
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        let too_many = state.port_notice(key);
        let addresses = state.further_vip_notices(key);
        let notices = too_many.into_iter().chain(addresses).collect();
        output.events(Target::new(Kind::Service, key), notices);
        // Its waypoint may be another one.
        state.touch_routes_of(key);
    }

    fn resources(state: &State, key: &Key) -> Resources {
        state.service_resources(key)
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        state.service_status(key)
    }
}

impl Service {
    /// Whether a pod with these labels is behind it.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        let selector = self.selector.as_ref();
        selector.is_some_and(|selector| labels.contain(selector))
    }

    /// Whether its endpoints are what EndpointSlices list, whoever writes them.
    pub(super) fn is_listed(&self) -> bool {
        self.selector.is_none() && !self.alias
    }

    /// What its pods say of it: while that is the same they need not be looked at.
    fn to_pods(&self) -> (Option<&Labels>, &Ports, bool, bool) {
        let selector = self.selector.as_ref();
        (selector, &self.ports, self.alias, self.made_by_us())
    }

    /// A waypoint's own, by its label.
    pub(super) fn made_by_us(&self) -> bool {
        self.labels.says(MANAGED, MANAGED_BY_US)
    }

    /// Whether a route may name the port.
    fn offers(&self, port: u16) -> bool {
        !self.alias && self.port(port).is_some()
    }

    pub(super) fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }
}

fn families(families: &[String]) -> IpFamilies {
    let has = |family: &str| families.iter().any(|one| one == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn balancing(spec: &core::ServiceSpec) -> Option<LoadBalancing> {
    let mut balancing = LoadBalancing::default();
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        balancing.set_mode(Mode::Strict);
        balancing.routing_preference = vec![Near::Node.into()];
    } else if let Some(distribution) = spec.traffic_distribution.as_deref() {
        let near = [Near::Network, Near::Region, Near::Zone].map(i32::from);
        balancing.routing_preference = near.into();
        if distribution == "PreferSameNode" {
            balancing
                .routing_preference
                .extend([Near::Subzone, Near::Node].map(i32::from));
        }
        balancing.set_mode(Mode::Failover);
    }
    if spec.publish_not_ready_addresses == Some(true) {
        balancing.set_health_policy(HealthPolicy::AllowAll);
    }
    (balancing != LoadBalancing::default()).then_some(balancing)
}

/// How long a client is remembered, where the Service keeps each at one endpoint.
fn affinity(spec: &core::ServiceSpec) -> Option<Duration> {
    let asked = spec.session_affinity.as_deref() == Some("ClientIP");
    let config = spec.session_affinity_config.as_ref();
    let seconds = config
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok());
    let timeout = Duration::from_secs(seconds.unwrap_or(AFFINITY_SECONDS));
    asked.then_some(timeout)
}

// === impl State ===

impl State {
    /// `name.namespace.svc.<cluster domain>`
    pub(super) fn hostname(&self, key: &Key) -> String {
        format!(
            "{}.{}.svc.{}",
            key.name, key.namespace, self.settings.cluster_domain
        )
    }

    /// The name under which proxies know a service.
    pub(super) fn service_name(&self, key: &Key) -> String {
        format!("{}/{}", key.namespace, self.hostname(key))
    }

    fn network_address(&self, address: IpAddr) -> wire::NetworkAddress {
        wire::NetworkAddress {
            network: self.settings.network.to_string(),
            address: octets(address),
            ..Default::default()
        }
    }

    pub(super) fn service_binding(&self, key: &Key, service: &Service) -> Binding {
        // A waypoint's own Service would lead in a circle; an alias has no traffic of its own.
        if service.alias || service.made_by_us() {
            return Binding::Unasked;
        }
        match self.binding(&key.namespace, &service.labels, Traffic::Service) {
            // Nobody dials it: its pods are dialled, which is no traffic of a service.
            Binding::Bound(gateway) if service.vips.is_empty() => Binding::Refused {
                reason: "NoAddress",
                message: format!(
                    "the Service has no cluster IP, so its traffic goes to the pods themselves and not through waypoint {gateway}"
                ),
            },
            Binding::Bound(gateway) => match service.ports.refusal() {
                Some(refusal) => Binding::Refused {
                    reason: TOO_MANY_PORTS,
                    message: format!("Service {key} {refusal}"),
                },
                None => Binding::Bound(gateway),
            },
            binding => binding,
        }
    }

    /// What people are told on a Service whose ports are refused.
    fn port_notice(&self, key: &Key) -> Option<Notice> {
        let service = self.tables.services.get(key)?;
        let refusal = service.ports.refusal().filter(|_| !service.alias)?;
        Some(Notice {
            target: Target::new(Kind::Service, key),
            uid: service.uid.clone(),
            warning: true,
            reason: TOO_MANY_PORTS.to_owned(),
            note: format!("Service {key} {refusal}"),
        })
    }

    fn service_resources(&self, key: &Key) -> Resources {
        let mut out = Resources::default();
        let Some(service) = self
            .tables
            .services
            .get(key)
            .filter(|service| !service.alias)
        else {
            return out;
        };
        let waypoint = match self.service_binding(key, service) {
            Binding::Bound(gateway) => Some(self.waypoint_address(&gateway)),
            _ => None,
        };
        let message = wire::Service {
            name: key.name.to_string(),
            namespace: key.namespace.to_string(),
            hostname: self.hostname(key),
            addresses: service
                .vips
                .iter()
                .copied()
                // Behind the cluster IPs: by their place proxies know which is which.
                .chain(self.further_vips(key, service))
                .map(|vip| self.network_address(vip))
                .collect(),
            ports: service.ports.iter().map(ServicePort::wire).collect(),
            waypoint,
            load_balancing: service.balancing.clone(),
            ip_families: service.families.into(),
            extensions: service.affinity.map(session_affinity).into_iter().collect(),
            ..Default::default()
        };
        let address = wire::Address {
            r#type: Some(address::Type::Service(message)),
        };
        let resource = Encoded::new(ADDRESS_TYPE, &address);
        out.insert(Scope::Addresses, self.service_name(key).into(), resource);
        out
    }

    fn service_status(&self, key: &Key) -> Option<Write> {
        let service = self.tables.services.get(key)?;
        let wanted = self.service_condition(key, service);
        let there = service.conditions.find(WAYPOINT_BOUND).is_some();
        let body = Target::new(Kind::Service, key).patch(&service.uid);
        let Some(condition) = wanted else {
            return there.then_some(Write {
                how: How::Apply,
                body,
                conditions: Vec::new(),
                notices: Vec::new(),
            });
        };
        let generation = service.generation.unwrap_or(0);
        let wanted = [condition.after(&service.conditions, Some(generation))];
        if service.conditions.are(&wanted) {
            return None;
        }
        let [condition] = &wanted;
        let notice = Notice {
            target: Target {
                kind: Kind::Service,
                key: key.clone(),
            },
            uid: service.uid.clone(),
            warning: !condition.on,
            reason: condition.reason.to_string(),
            note: condition.message.clone(),
        };
        Some(Write {
            how: How::Apply,
            body,
            conditions: vec![ConditionsAt::status(wanted.into())],
            notices: vec![notice],
        })
    }

    fn service_condition(&self, key: &Key, service: &Service) -> Option<Condition> {
        if self.leaving {
            return None;
        }
        match self.service_binding(key, service) {
            Binding::Unasked | Binding::OptedOut => None,
            Binding::Bound(gateway) => Some(Condition::yes(
                WAYPOINT_BOUND,
                "WaypointAccepted",
                format!("attached to waypoint {gateway}"),
            )),
            Binding::Refused { reason, message } => {
                Some(Condition::no(WAYPOINT_BOUND, reason, message))
            }
        }
    }

    /// The services of a namespace that a pod with these labels is behind, in the order of their names.
    pub(super) fn services_of<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Service>)> {
        let services = &self.tables.services;
        let candidates = services.lookup().selecting(namespace, labels);
        candidates
            .filter_map(|key| Some((key, services.get(key)?)))
            .filter(|(_, service)| service.selects(labels) && !service.alias)
    }

    /// The pods behind any of these services of a namespace.
    pub(super) fn pods_behind(&self, namespace: &str, services: [Option<&Service>; 2]) -> Vec<Key> {
        let behind = |labels: &Labels| {
            let mut services = services.into_iter().flatten();
            services.any(|service| service.selects(labels))
        };
        let pods = self.tables.pods.within(namespace);
        pods.filter(|(_, pod)| behind(pod.labels()))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Marks everything that looks at a service.
    fn touch_service(&mut self, key: &Key, before: Option<&Service>, now: Option<&Service>) {
        let pods = match before.map(Service::to_pods) == now.map(Service::to_pods) {
            true => Vec::new(),
            false => self.pods_behind(&key.namespace, [before, now]),
        };
        let slices = self.tables.slices.lookup().of_service(key);
        let slices = slices.filter_map(|key| Some((key.clone(), self.tables.slices.get(key)?)));
        let slices: Vec<(Key, Arc<Slice>)> =
            slices.map(|(key, slice)| (key, slice.clone())).collect();
        for (key, slice) in slices {
            let [listed, lists] =
                [before, now].map(|one| one.is_some_and(|service| service.takes(&slice)));
            self.touch_slice_targets(&slice);
            self.relist(&key, listed.then_some(&*slice), lists.then_some(&*slice));
            self.tables.slices.mark(key);
        }
        self.touch_claims(key, before, now);
        self.tables.pods.mark_each(pods);
        self.touch_routes_of(key);
        if self.tables.gateways.get(key).is_some() {
            self.tables.gateways.mark(key.clone());
        }
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Says<Key> for Service {
    /// The Gateway that it asks for.
    fn says(&self, key: &Key) -> impl Iterator<Item = Key> {
        asks_for(&key.namespace, &self.labels).into_iter()
    }
}

impl Addressed for Service {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().copied()
    }
}
