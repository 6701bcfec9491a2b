//! The counters of the node proxy, under the mesh's standard names and labels.

use std::{cell::Cell, fmt, sync::Arc};

use hbone::{Meter, SpiffeId};
use mesh::service::Service;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use mesh::party::Party;

/// Every metric of this program; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    failed: Family<TcpLabels, Counter>,
    sent: Family<TcpLabels, Counter>,
    received: Family<TcpLabels, Counter>,
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
    closed: Counter,
    sent: Counter,
    received: Counter,
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
        tcp.register(
            "connections_opened",
            "Connections opened",
            self.opened.clone(),
        );
        tcp.register(
            "connections_closed",
            "Connections closed",
            self.closed.clone(),
        );
        tcp.register(
            "connections_failed",
            "Connections that never opened",
            self.failed.clone(),
        );
        tcp.register("sent_bytes", "Bytes sent in responses", self.sent.clone());
        tcp.register(
            "received_bytes",
            "Bytes received in requests",
            self.received.clone(),
        );
        tcp.register("sockets_open", "Connections open now", self.sockets.clone());
    }

    /// Counts a connection that has reached its other end.
    pub fn opened(&self, labels: &TcpLabels) -> OpenConnection {
        self.opened.get_or_create(labels).inc();
        let sockets = self.sockets.get_or_create_owned(&SocketLabels {
            reporter: labels.reporter,
        });
        sockets.inc();
        OpenConnection {
            closed: self.closed.get_or_create_owned(labels),
            sent: self.sent.get_or_create_owned(labels),
            received: self.received.get_or_create_owned(labels),
            sockets,
            reporter: labels.reporter,
            reported: Cell::default(),
        }
    }

    /// Counts a connection that never reached its other end.
    pub fn failed(&self, labels: &TcpLabels) {
        self.failed.get_or_create(labels).inc();
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
        self.sent.inc_by(now.sent - before.sent);
        self.received.inc_by(now.received - before.received);
    }

    /// Reports the rest and counts the end.
    pub fn close(self, meter: &Meter) {
        self.report(meter);
        self.closed.inc();
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
