//! The counters of the node proxy, under the mesh's standard names and labels.

mod series;

use std::{
    cell::Cell,
    collections::HashSet,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hbone::{Meter, SpiffeId};
use mesh::{
    names::ServiceName,
    party::Party,
    service::Service,
    world::{Snapshot, World},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use self::series::{Series, Table};

/// How often series are looked for that are about nobody any more. A series outlives its last connection by this at
/// least, so that what it last said has been read.
const RETIRE_PERIOD: Duration = Duration::from_secs(300);

/// Every metric of this program; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    connections: Table,
    sockets: Family<SocketLabels, Gauge>,
    handshakes: Family<HandshakeLabels, Counter>,
    /// Pods whose proxies are serving.
    pub active_proxies: Gauge,
    /// Pods that should be in the mesh and are not yet.
    pub pending_proxies: Gauge,
    /// Pods enrolled since the start.
    pub proxies_started: Counter,
    /// Pods taken out since the start.
    pub proxies_stopped: Counter,
    /// Redirection rules found damaged and put back.
    pub repairs: Counter,
    /// How often the CNI plugin was written into the node's configuration.
    pub plugin_written: Counter,
}

/// Which end of the connection reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(
    non_camel_case_types,
    reason = "the label's value is the variant's name"
)]
pub enum Reporter {
    /// The client's node.
    source,
    /// The server's node.
    destination,
}

/// How a connection ended, in the standard vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Well.
    None,
    /// Refused by a check.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// TLS failed.
    Tls,
    /// HTTP/2 failed.
    H2,
    /// The other end proved another identity than it should.
    Identity,
}

/// The label set of the `istio_tcp_*` metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TcpLabels {
    reporter: Reporter,
    source_workload: Label,
    source_canonical_service: Label,
    source_canonical_revision: Label,
    source_workload_namespace: Label,
    source_principal: Principal,
    source_app: Label,
    source_version: Label,
    source_cluster: Label,
    destination_service: Label,
    destination_service_namespace: Label,
    destination_service_name: Label,
    destination_workload: Label,
    destination_canonical_service: Label,
    destination_canonical_revision: Label,
    destination_workload_namespace: Label,
    destination_principal: Principal,
    destination_app: Label,
    destination_version: Label,
    destination_cluster: Label,
    request_protocol: &'static str,
    response_flags: ResponseFlag,
    connection_security_policy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SocketLabels {
    reporter: Reporter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    reason: String,
}

/// A label that may be unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Label(Option<Arc<str>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Principal(Option<SpiffeId>);

/// The counters of one open connection, looked up once.
#[derive(Debug)]
pub struct OpenConnection {
    series: Arc<Series>,
    sockets: Gauge,
    reporter: Reporter,
    reported: Cell<Bytes>,
}

/// Bytes moved, as the mesh's words have it: `sent` went to the client, `received` came from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// To the client.
    pub sent: u64,
    /// From the client.
    pub received: u64,
}

// === impl Metrics ===

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        all.register_tcp(registry.sub_registry_with_prefix("istio_tcp"));
        registry.register(
            "ambit_tunnel_handshakes_refused",
            "Connections to the tunnel port that ended before a peer was proven",
            all.handshakes.clone(),
        );
        registry.register(
            "ambit_redirection_repairs",
            "Times a pod's redirection was found damaged and put back",
            all.repairs.clone(),
        );
        registry.register(
            "ambit_cni_plugin_written",
            "Times the CNI plugin was written into the node's configuration: once, unless another program rewrites that",
            all.plugin_written.clone(),
        );
        let pods = registry.sub_registry_with_prefix("workload_manager");
        pods.register(
            "active_proxy_count",
            "Pods whose proxies are serving",
            all.active_proxies.clone(),
        );
        pods.register(
            "pending_proxy_count",
            "Pods that should be in the mesh and are not yet",
            all.pending_proxies.clone(),
        );
        pods.register(
            "proxies_started",
            "Pods enrolled",
            all.proxies_started.clone(),
        );
        pods.register(
            "proxies_stopped",
            "Pods taken out",
            all.proxies_stopped.clone(),
        );
        all
    }

    fn register_tcp(&self, tcp: &mut Registry) {
        tcp.register_collector(Box::new(self.connections.clone()));
        tcp.register("sockets_open", "Connections open now", self.sockets.clone());
    }

    /// Counts a connection that has reached its other end.
    pub fn opened(&self, labels: &TcpLabels) -> OpenConnection {
        let series = self.connections.of(labels);
        series.opened.fetch_add(1, Relaxed);
        let sockets = self.sockets.get_or_create_owned(&SocketLabels {
            reporter: labels.reporter,
        });
        sockets.inc();
        OpenConnection {
            series,
            sockets,
            reporter: labels.reporter,
            reported: Cell::default(),
        }
    }

    /// Counts a connection that never reached its other end.
    pub fn failed(&self, labels: &TcpLabels) {
        self.connections.of(labels).failed.fetch_add(1, Relaxed);
    }

    /// Forgets for ever, now and then, the series of workloads and services that are no more.
    pub async fn keep_current(self, world: World) {
        let mut ticks = interval(RETIRE_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (metrics, now) = (self.clone(), world.snapshot());
            // Not on the control thread: it goes through the whole mesh.
            let left = spawn_blocking(move || metrics.retire(&now)).await;
            tracing::debug!(?left, "series of connections");
        }
    }

    /// Forgets the series that nobody has used since this was called before and that name a workload or service which is
    /// not of the mesh as it is; returns how many series are left.
    pub fn retire(&self, world: &Snapshot) -> usize {
        let living: HashSet<(&str, &str)> = world
            .workloads()
            .map(|w| (&*w.template.namespace, &*w.template.workload_name))
            .collect();
        let lives = |end: (&Label, &Label)| match (&end.0.0, &end.1.0) {
            (Some(namespace), Some(workload)) => living.contains(&(&**namespace, &**workload)),
            // Somebody of whom only the certificate is known.
            (Some(_), None) => false,
            _ => true,
        };
        self.connections.retire(|labels| {
            let service = labels.service();
            lives((&labels.source_workload_namespace, &labels.source_workload))
                && lives((
                    &labels.destination_workload_namespace,
                    &labels.destination_workload,
                ))
                && service.is_none_or(|name| world.service(&name).is_some())
        })
    }

    /// Counts a connection to the tunnel port that ended before a peer was proven.
    pub fn handshake_refused(&self, reason: &str) {
        let labels = HandshakeLabels {
            reason: reason.to_owned(),
        };
        self.handshakes.get_or_create(&labels).inc();
    }
}

// === impl TcpLabels ===

impl TcpLabels {
    /// The labels of one connection; `encrypted` says whether both ends were proven.
    pub fn new(
        reporter: Reporter,
        source: &Party,
        destination: &Party,
        service: Option<&Service>,
        encrypted: bool,
        flag: ResponseFlag,
    ) -> Self {
        Self {
            reporter,
            source_workload: source.workload.as_ref().into(),
            source_canonical_service: source.app.as_ref().into(),
            source_canonical_revision: source.version.as_ref().into(),
            source_workload_namespace: source.namespace.as_ref().into(),
            source_principal: Principal(source.identity.clone()),
            source_app: source.app.as_ref().into(),
            source_version: source.version.as_ref().into(),
            source_cluster: source.cluster.as_ref().into(),
            destination_service: service.map(|s| &s.id.hostname).into(),
            destination_service_namespace: service.map(|s| &s.id.namespace).into(),
            destination_service_name: service.map(|s| &s.name).into(),
            destination_workload: destination.workload.as_ref().into(),
            destination_canonical_service: destination.app.as_ref().into(),
            destination_canonical_revision: destination.version.as_ref().into(),
            destination_workload_namespace: destination.namespace.as_ref().into(),
            destination_principal: Principal(destination.identity.clone()),
            destination_app: destination.app.as_ref().into(),
            destination_version: destination.version.as_ref().into(),
            destination_cluster: destination.cluster.as_ref().into(),
            request_protocol: "tcp",
            response_flags: flag,
            connection_security_policy: if encrypted { "mutual_tls" } else { "unknown" },
        }
    }
}

impl TcpLabels {
    fn service(&self) -> Option<ServiceName> {
        Some(ServiceName {
            namespace: self.destination_service_namespace.0.clone()?,
            hostname: self.destination_service.0.clone()?,
        })
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    /// Which way the app's bytes count: at the source the app is the client.
    pub fn bytes(reporter: Reporter, meter: &Meter) -> Bytes {
        match reporter {
            Reporter::source => Bytes {
                sent: meter.received(),
                received: meter.sent(),
            },
            Reporter::destination => Bytes {
                sent: meter.sent(),
                received: meter.received(),
            },
        }
    }

    /// Adds what has moved since the last report.
    pub fn report(&self, meter: &Meter) {
        let now = Self::bytes(self.reporter, meter);
        let before = self.reported.replace(now);
        let Series { sent, received, .. } = &*self.series;
        sent.fetch_add(now.sent - before.sent, Relaxed);
        received.fetch_add(now.received - before.received, Relaxed);
    }

    /// Reports the rest and counts the end.
    pub fn close(self, meter: &Meter) {
        self.report(meter);
        self.series.closed.fetch_add(1, Relaxed);
        self.series.touch();
        self.sockets.dec();
    }
}

// === impl labels ===

const UNKNOWN: &str = "unknown";

impl From<Option<&Arc<str>>> for Label {
    fn from(text: Option<&Arc<str>>) -> Self {
        Self(text.cloned())
    }
}

impl EncodeLabelValue for Label {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.as_deref().unwrap_or(UNKNOWN).encode(encoder)
    }
}

impl EncodeLabelValue for Principal {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        match &self.0 {
            Some(id) => id.to_string().encode(encoder),
            None => UNKNOWN.encode(encoder),
        }
    }
}

impl EncodeLabelValue for ResponseFlag {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.as_str().encode(encoder)
    }
}

impl ResponseFlag {
    /// The flag as dashboards know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::H2 => "H2_HANDSHAKE_FAILURE",
            Self::Identity => "IDENTITY_ERROR",
        }
    }
}

#[cfg(test)]
mod tests;
