//! Pods: what they are to the mesh, and how other proxies are told of them.

mod behind;
mod ips;
mod lookup;
mod template;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::workload::{self as wire, NetworkMode, TunnelProtocol, WorkloadStatus, address};
use mesh::xds::{ADDRESS_TYPE, ENROLMENT_TYPE, Encoded};

use self::ips::Ips;
pub(super) use self::lookup::PodLookup;
pub(super) use self::template::Template;
use super::State;
use super::addresses::{Addressed, parse};
use super::binding::{Binding, Traffic};
use super::changes::{Resources, Scope, Target, Write};
use super::common::Common;
use super::condition::Conditions;
use super::kinds::{ApiKind, Kind, Watched};
use super::labels::Labels;
use super::names::{
    BYPASS_INBOUND, GATEWAY_NAME, IN_MESH, Key, MANAGED, MANAGED_BY_US, REDIRECTION,
    SIDECAR_STATUS, TUNNEL, WAYPOINT_BOUND,
};
use super::namespaces::Mode;
use super::output::Output;
use super::owners::Controller;
use super::services::{ServicePort, TargetPort, octets};
use crate::index::desired::Writer;

/// What matters of a Pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod {
    pub(super) uid: Arc<str>,
    template: Arc<Template>,
    /// In milliseconds.
    pub(super) created: i64,
    /// As its status says; whose they are is decided in [`super::addresses`].
    pub(super) ips: Ips,
    pub(super) node: Arc<str>,
    pub(super) host_network: bool,
    pub(super) sidecar: bool,
    pub(super) bypass_inbound: bool,
    /// Ready, and not on its way out.
    pub(super) healthy: bool,
    /// On its way out, and ready as long as it is there: EndpointSlices call it serving and terminating.
    draining: bool,
    /// Succeeded or failed: it runs no more.
    pub(super) finished: bool,
    /// What the pod's status says of us now.
    pub(super) conditions: Conditions,
    pub(super) redirected: bool,
}

// === impl Pod ===

impl Watched for Pod {
    type Object = core::Pod;
    const API: ApiKind = ApiKind::core("Pod", "pods");

    fn parse(object: &core::Pod) -> Option<Self> {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let annotation = |name: &str| {
            object
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(name))
        };
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|one| one.type_ == "Ready" && one.status == "True");
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_millisecond()),
            ips: addresses(status.pod_ips, status.pod_ip),
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            host_network: spec.host_network == Some(true),
            sidecar: annotation(SIDECAR_STATUS).is_some(),
            bypass_inbound: annotation(BYPASS_INBOUND).is_some_and(|value| value == "true"),
            healthy: ready && object.metadata.deletion_timestamp.is_none(),
            draining: ready && object.metadata.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            conditions: Conditions::of(&[IN_MESH, WAYPOINT_BOUND], &conditions),
            redirected: annotation(REDIRECTION).is_some_and(|value| value == "enabled"),
            template: Arc::new(Template::parse(object)),
        })
    }

    /// While its namespace, which says what becomes of it, may be on its way.
    fn waits_for(state: &State, key: &Key, now: Option<&Self>) -> &'static [Kind] {
        match now.is_some() && !state.knows_namespace(key) {
            true => &[Kind::Namespace],
            false => &[],
        }
    }

    fn share(&mut self, common: &mut Common) {
        common.text(&mut self.node);
        self.template = common.template(&self.template);
        self.conditions.share(|said| common.said(said));
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        if let Some(before) = before
            && now.is_none_or(|now| now.uid != before.uid)
        {
            state.reports.vanished(before);
        }
        if let Some(now) = now {
            state.reports.appeared(now);
            state.reports.compare(now);
        }
        state.touch_pod(key, [before, now]);
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        output.place(key, state.placement(key));
        let mut notices = state.pod_address_notices(key);
        notices.extend(state.pod_service_notice(key));
        output.events(Target::new(Kind::Pod, key), notices);
    }

    fn resources(state: &State, key: &Key) -> Resources {
        state.pod_resources(key)
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        state.pod_status(key)
    }

    /// Only the replica that its node speaks to knows what is to be written.
    fn writer(state: &State, key: &Key) -> Writer {
        let pod = state.tables.pods.get(key);
        match pod.is_some_and(|pod| state.reports.heard_of(pod)) {
            true => Writer::ThisReplica,
            false => Writer::Leader,
        }
    }
}

impl Pod {
    pub(super) fn labels(&self) -> &Labels {
        &self.template.labels
    }

    /// The owner that manages it.
    pub(super) fn controller(&self) -> Option<&Controller> {
        self.template.controller.as_ref()
    }

    /// The UID under which its node knows it.
    pub(super) fn uid_on_node(&self) -> &Arc<str> {
        self.template.mirror.as_ref().unwrap_or(&self.uid)
    }

    /// The service account that is its identity.
    pub(super) fn identity(&self) -> Option<&Arc<str>> {
        self.template
            .service_account
            .as_ref()
            .filter(|_| self.template.mirror.is_none())
    }

    /// The Gateway whose waypoint this pod's labels say it is.
    pub(super) fn names_gateway(&self) -> Option<&Arc<str>> {
        let managed = self.labels().says(MANAGED, MANAGED_BY_US);
        self.labels().get(GATEWAY_NAME).filter(|_| managed)
    }

    /// The same, as a key.
    pub(super) fn instance_of(&self, key: &Key) -> Option<Key> {
        Some(Key::new(&key.namespace, self.names_gateway()?))
    }

    /// Its label says that it speaks HBONE itself. That is believed of any pod with an identity: whoever dials it demands
    /// a certificate of exactly that identity, so that a pod that says so falsely only cannot be reached. It makes nobody
    /// a waypoint.
    fn says_native(&self) -> bool {
        self.identity().is_some() && self.labels().says(TUNNEL, "http")
    }

    fn resolve(&self, port: &ServicePort) -> Option<u16> {
        match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self.template.port(name),
        }
    }

    fn label(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find_map(|name| self.labels().get(name))
            .map(ToString::to_string)
    }
}

fn addresses(all: Option<Vec<core::PodIP>>, one: Option<String>) -> Ips {
    let mut ips: Vec<IpAddr> = all
        .into_iter()
        .flatten()
        .filter_map(|ip| parse(&ip.ip))
        .collect();
    if ips.is_empty() {
        ips.extend(one.and_then(|ip| parse(&ip)));
    }
    ips.into()
}

// === impl State ===

impl State {
    fn pod_resources(&self, key: &Key) -> Resources {
        let mut out = Resources::default();
        let Some(pod) = self.tables.pods.get(key).filter(|pod| !pod.finished) else {
            return out;
        };
        // Nothing said of a pod is safer than a guess: its node waits, and for a while leaves as it is what it has.
        let decided = self.knows_namespace(key) || Mode::of(pod.labels()) != Mode::Unset;
        if !pod.node.is_empty() && decided {
            let enrolment = Encoded::new(ENROLMENT_TYPE, &self.enrolment(key, pod));
            let uid = pod.uid_on_node().clone();
            out.insert(Scope::Node(pod.node.clone()), uid, enrolment);
        }
        let addresses = self.addresses_of(key, pod);
        if !addresses.is_empty() {
            let workload = self.workload(key, pod, &addresses);
            let uid = workload.uid.as_str().into();
            let address = wire::Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            let resource = Encoded::new(ADDRESS_TYPE, &address);
            out.insert(Scope::Addresses, uid, resource);
        }
        out
    }

    fn workload(&self, key: &Key, pod: &Pod, addresses: &[IpAddr]) -> wire::Workload {
        let hbone = self.native_tunnel(key, pod) || self.captured(key, pod);
        let awaited = !hbone && self.awaited(key, pod);
        let tunnel = if hbone {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        };
        let health = if pod.healthy && !awaited {
            WorkloadStatus::Healthy
        } else {
            WorkloadStatus::Unhealthy
        };
        let network = if pod.host_network {
            NetworkMode::HostNetwork
        } else {
            NetworkMode::Standard
        };
        let (kind, owner) = &pod.template.owner;
        let name = [
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ];
        let revision = [
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ];
        let node = self.tables.nodes.named("", &pod.node);
        wire::Workload {
            uid: self.settings.cluster_id.pod(key).to_string(),
            name: key.name.to_string(),
            namespace: key.namespace.to_string(),
            addresses: addresses.iter().map(|ip| octets(*ip).into()).collect(),
            tunnel_protocol: tunnel.into(),
            trust_domain: self.elided_trust_domain(),
            // The wire's default.
            service_account: pod
                .identity()
                .filter(|name| &***name != "default")
                .map(ToString::to_string)
                .unwrap_or_default(),
            waypoint: self.pod_waypoint(key, pod),
            node: pod.node.to_string(),
            canonical_name: pod.label(&name).unwrap_or_else(|| owner.to_string()),
            canonical_revision: pod.label(&revision).unwrap_or_else(|| "latest".to_owned()),
            workload_type: (*kind).into(),
            workload_name: owner.to_string(),
            native_tunnel: self.native_tunnel(key, pod),
            services: self.pod_services(key, pod),
            status: health.into(),
            cluster_id: self.settings.cluster_id.to_string(),
            network: self.settings.network.to_string(),
            locality: node.and_then(|node| node.locality.clone()),
            network_mode: network.into(),
            extensions: awaited
                .then(mesh::workload::awaited)
                .or((pod.draining && !awaited).then(mesh::workload::draining))
                .into_iter()
                .collect(),
            ..Default::default()
        }
    }

    /// It speaks HBONE itself.
    pub(super) fn native_tunnel(&self, key: &Key, pod: &Pod) -> bool {
        pod.says_native() || self.waypoint_of(key, pod).is_some()
    }

    fn pod_waypoint(&self, key: &Key, pod: &Pod) -> Option<wire::GatewayAddress> {
        if self.native_tunnel(key, pod) {
            return None;
        }
        match self.binding(&key.namespace, pod.labels(), Traffic::Workload) {
            Binding::Bound(gateway) => Some(self.waypoint_address(&gateway)),
            _ => None,
        }
    }

    /// Marks everything that looks at a pod.
    pub(super) fn touch_pod(&mut self, key: &Key, pods: [Option<&Pod>; 2]) {
        for pod in pods.into_iter().flatten() {
            if let Some(gateway) = pod.names_gateway() {
                self.tables.gateways.mark(Key::new(&key.namespace, gateway));
            }
            for address in pod.ips.iter() {
                self.touch_address(*address);
            }
            if self.is_node_proxy(key, pod) {
                self.tables.nodes.mark(Key::new("", &pod.node));
            }
        }
    }

    /// The wire's word for `cluster.local` is none at all.
    pub(super) fn elided_trust_domain(&self) -> String {
        let domain = &self.settings.trust_domain;
        if domain == "cluster.local" {
            String::new()
        } else {
            domain.clone()
        }
    }
}

pub(super) fn wire_port(port: &ServicePort, target: u16) -> wire::Port {
    wire::Port {
        service_port: port.port.into(),
        target_port: target.into(),
        app_protocol: port.protocol.into(),
    }
}

impl Addressed for Pod {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().copied()
    }
}
