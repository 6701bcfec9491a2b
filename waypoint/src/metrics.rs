//! What the waypoint counts, under the mesh's standard names and labels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hbone::SpiffeId;
use mesh::names::{ServiceName, Uid};
use mesh::verdict::waypoint::To;
use mesh::workload::Workload;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::session::{Client, Session};

/// Series that one core keeps at hand; beyond it the cache starts anew, the series themselves stay.
const MAX_CACHED: usize = 4096;

/// What existing dashboards expect where nothing is known.
const UNKNOWN: &str = "unknown";

const MILLISECONDS: [f64; 20] = [
    0.5, 1., 5., 10., 25., 50., 100., 250., 500., 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6, 1e7,
];
const BYTES: [f64; 10] = [1., 100., 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10];

/// The process's counters. Registered once, shared by all cores.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    duration: Family<Labels, Histogram, fn() -> Histogram>,
    request_bytes: Family<Labels, Histogram, fn() -> Histogram>,
    response_bytes: Family<Labels, Histogram, fn() -> Histogram>,
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    received: Family<TcpLabels, Counter>,
    sent: Family<TcpLabels, Counter>,
    refused_tunnels: Family<Refused, Counter>,
    refused_connections: Family<Refused, Counter>,
}

/// One core's way to them: the labels of a series are written once, not per request.
#[derive(Debug)]
pub(crate) struct Recorder {
    shared: Arc<Metrics>,
    cache: RefCell<HashMap<Key, Rc<Series>>>,
}

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

/// A request at its end.
pub(crate) struct Ended<'a> {
    pub(crate) session: &'a Session,
    pub(crate) to: &'a To,
    pub(crate) upstream: Option<&'a Workload>,
    pub(crate) protocol: Protocol,
    pub(crate) code: u16,
    pub(crate) grpc: Option<u16>,
    pub(crate) flags: &'static str,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) duration: Duration,
}

/// The counters of one opaque connection.
pub(crate) struct Tcp {
    closed: Counter,
    received: Counter,
    sent: Counter,
}

/// What tells one series from another, short.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: (SpiffeId, Option<Uid>),
    service: Option<ServiceName>,
    upstream: Option<Uid>,
    protocol: Protocol,
    code: Code,
    grpc: Code,
    flags: &'static str,
}

/// A status as a label. A server may answer with any number: those that no protocol has are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Code {
    None,
    Known(u16),
    Unknown,
}

#[derive(Debug)]
struct Series {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    #[prometheus(flatten)]
    common: Common,
    response_code: String,
    grpc_response_status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TcpLabels {
    #[prometheus(flatten)]
    common: Common,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Common {
    reporter: &'static str,
    source_workload: String,
    source_workload_namespace: String,
    source_canonical_service: String,
    source_canonical_revision: String,
    source_principal: String,
    source_app: String,
    source_version: String,
    source_cluster: String,
    destination_workload: String,
    destination_workload_namespace: String,
    destination_canonical_service: String,
    destination_canonical_revision: String,
    destination_principal: String,
    destination_app: String,
    destination_version: String,
    destination_cluster: String,
    destination_service: String,
    destination_service_name: String,
    destination_service_namespace: String,
    request_protocol: &'static str,
    response_flags: &'static str,
    connection_security_policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: String,
}

// === impl Metrics ===

impl Metrics {
    /// Registers everything; counters are named without the `_total` that they are shown with.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let bytes: fn() -> Histogram = || Histogram::new(BYTES);
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(MILLISECONDS)),
            request_bytes: Family::new_with_constructor(bytes),
            response_bytes: Family::new_with_constructor(bytes),
            opened: Family::default(),
            closed: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            refused_tunnels: Family::default(),
            refused_connections: Family::default(),
        };
        let tcp = [
            ("opened", "istio_tcp_connections_opened", &metrics.opened),
            ("closed", "istio_tcp_connections_closed", &metrics.closed),
            (
                "from clients",
                "istio_tcp_received_bytes",
                &metrics.received,
            ),
            ("to clients", "istio_tcp_sent_bytes", &metrics.sent),
        ];
        for (what, name, family) in tcp {
            registry.register(
                name,
                format!("TCP connections or bytes: {what}"),
                family.clone(),
            );
        }
        let http = [
            (
                "istio_request_duration_milliseconds",
                "Head of a request to end of its answer",
                &metrics.duration,
            ),
            (
                "istio_request_bytes",
                "Bytes of request bodies",
                &metrics.request_bytes,
            ),
            (
                "istio_response_bytes",
                "Bytes of response bodies",
                &metrics.response_bytes,
            ),
        ];
        for (name, help, family) in http {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "istio_requests",
            "Requests answered",
            metrics.requests.clone(),
        );
        let refused = [
            (
                "ambit_waypoint_tunnels_refused",
                "Tunnels refused",
                &metrics.refused_tunnels,
            ),
            (
                "ambit_waypoint_connections_refused",
                "Clients not proved",
                &metrics.refused_connections,
            ),
        ];
        for (name, help, family) in refused {
            registry.register(name, help, family.clone());
        }
        Arc::new(metrics)
    }
}

// === impl Recorder ===

impl Recorder {
    pub(crate) fn new(shared: Arc<Metrics>) -> Self {
        Self {
            shared,
            cache: RefCell::default(),
        }
    }

    /// A request is over.
    pub(crate) fn request(&self, ended: &Ended<'_>) {
        let series = self.series(ended);
        series.requests.inc();
        series.duration.observe(ended.duration.as_secs_f64() * 1e3);
        series.request_bytes.observe(ended.received as f64);
        series.response_bytes.observe(ended.sent as f64);
    }

    /// An opaque connection has begun.
    pub(crate) fn opened(&self, session: &Session, upstream: &Workload) -> Tcp {
        let labels = TcpLabels {
            common: common(&session.client, &session.to, Some(upstream), "tcp", "-"),
        };
        self.shared.opened.get_or_create(&labels).inc();
        Tcp {
            closed: self.shared.closed.get_or_create(&labels).clone(),
            received: self.shared.received.get_or_create(&labels).clone(),
            sent: self.shared.sent.get_or_create(&labels).clone(),
        }
    }

    /// A tunnel was not opened.
    pub(crate) fn refused_tunnel(&self, code: &str) {
        let labels = Refused {
            reason: code.to_owned(),
        };
        self.shared.refused_tunnels.get_or_create(&labels).inc();
    }

    /// A client was not proved.
    pub(crate) fn refused_connection(&self, code: &str) {
        let labels = Refused {
            reason: code.to_owned(),
        };
        self.shared.refused_connections.get_or_create(&labels).inc();
    }

    fn series(&self, ended: &Ended<'_>) -> Rc<Series> {
        let client = &ended.session.client;
        let key = Key {
            client: (
                client.id.clone(),
                client
                    .workload
                    .as_ref()
                    .map(|workload| workload.uid.clone()),
            ),
            service: ended.to.service().map(|service| service.id.clone()),
            upstream: ended.upstream.map(|workload| workload.uid.clone()),
            protocol: ended.protocol,
            code: Code::http(ended.code),
            grpc: Code::grpc(ended.grpc),
            flags: ended.flags,
        };
        if let Some(series) = self.cache.borrow().get(&key) {
            return Rc::clone(series);
        }
        let labels = Labels {
            common: common(
                client,
                ended.to,
                ended.upstream,
                ended.protocol.as_str(),
                ended.flags,
            ),
            response_code: key.code.label(),
            grpc_response_status: key.grpc.label(),
        };
        let series = Rc::new(Series {
            requests: self.shared.requests.get_or_create(&labels).clone(),
            duration: self.shared.duration.get_or_create(&labels).clone(),
            request_bytes: self.shared.request_bytes.get_or_create(&labels).clone(),
            response_bytes: self.shared.response_bytes.get_or_create(&labels).clone(),
        });
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(key, Rc::clone(&series));
        series
    }
}

// === impl Code ===

impl Code {
    /// 0: a request that was never answered.
    fn http(code: u16) -> Self {
        match code {
            0 | 100..=599 => Self::Known(code),
            _ => Self::Unknown,
        }
    }

    fn grpc(code: Option<u16>) -> Self {
        match code {
            None => Self::None,
            Some(code @ 0..=16) => Self::Known(code),
            Some(_) => Self::Unknown,
        }
    }

    fn label(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Known(code) => code.to_string(),
            Self::Unknown => UNKNOWN.to_owned(),
        }
    }
}

// === impl Tcp ===

impl Tcp {
    /// Bytes that moved since the last call.
    pub(crate) fn moved(&self, received: u64, sent: u64) {
        self.received.inc_by(received);
        self.sent.inc_by(sent);
    }

    pub(crate) fn closed(&self) {
        self.closed.inc();
    }
}

// === impl Protocol ===

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

// === labels ===

fn common(
    client: &Client,
    to: &To,
    upstream: Option<&Workload>,
    protocol: &'static str,
    flags: &'static str,
) -> Common {
    let from = client.workload.as_deref();
    // What a client says of itself is no label: each word would be a series of its own.
    let source = |of: fn(&Workload) -> &str| known(from.map(of));
    let namespace = client.id.service_account().map(|(namespace, _)| namespace);
    let destination = |of: fn(&Workload) -> &str| known(upstream.map(of));
    let identity = upstream.map(|workload| workload.identity().to_string());
    let service = to.service();
    let app = source(|workload| &workload.template.canonical_name);
    let version = source(|workload| &workload.template.canonical_revision);
    Common {
        reporter: "waypoint",
        source_workload: source(|workload| &workload.template.workload_name),
        source_workload_namespace: known(namespace),
        source_canonical_service: app.clone(),
        source_canonical_revision: version.clone(),
        source_principal: client.id.to_string(),
        source_app: app,
        source_version: version,
        source_cluster: source(|workload| &workload.location.cluster),
        destination_workload: destination(|workload| &workload.template.workload_name),
        destination_workload_namespace: destination(|workload| workload.namespace()),
        destination_canonical_service: destination(|workload| &workload.template.canonical_name),
        destination_canonical_revision: destination(|workload| {
            &workload.template.canonical_revision
        }),
        destination_principal: known(identity.as_deref()),
        destination_app: destination(|workload| &workload.template.canonical_name),
        destination_version: destination(|workload| &workload.template.canonical_revision),
        destination_cluster: destination(|workload| &workload.location.cluster),
        destination_service: known(service.map(|service| &*service.id.hostname)),
        destination_service_name: known(service.map(|service| &*service.name)),
        destination_service_namespace: known(service.map(|service| &*service.id.namespace)),
        request_protocol: protocol,
        response_flags: flags,
        connection_security_policy: "mutual_tls",
    }
}

/// A label, also where nothing is known.
fn known(value: Option<&str>) -> String {
    let value = value.filter(|value| !value.is_empty());
    value.unwrap_or(UNKNOWN).to_owned()
}

#[cfg(test)]
mod tests;
