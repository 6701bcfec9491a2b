//! What the controller counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters, shared by all who count.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    streams: Gauge,
    pushes: Family<Type, Counter>,
    nacks: Family<Type, Counter>,
    refusals: Family<Refusal, Counter>,
    certificates: Counter,
    writes: Family<Outcome, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    r#type: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    service: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// A stream that is counted while it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

// === impl Metrics ===

impl Metrics {
    /// Puts them where they are read.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ambit_discovery_streams",
            "Proxies that are connected",
            self.streams.clone(),
        );
        registry.register(
            "ambit_discovery_pushes",
            "Responses sent, by type",
            self.pushes.clone(),
        );
        registry.register(
            "ambit_discovery_nacks",
            "Responses refused by proxies, by type",
            self.nacks.clone(),
        );
        registry.register(
            "ambit_refusals",
            "Callers refused, by service and code",
            self.refusals.clone(),
        );
        registry.register(
            "ambit_certificates_issued",
            "Certificates signed",
            self.certificates.clone(),
        );
        registry.register(
            "ambit_status_writes",
            "Writes to the API server, by outcome",
            self.writes.clone(),
        );
    }

    pub(crate) fn stream(&self) -> Counted {
        self.streams.inc();
        Counted(self.streams.clone())
    }

    pub(crate) fn pushed(&self, type_url: &str) {
        self.pushes.get_or_create(&Type::of(type_url)).inc();
    }

    pub(crate) fn nacked(&self, type_url: &str) {
        self.nacks.get_or_create(&Type::of(type_url)).inc();
    }

    pub(crate) fn refused(&self, service: &'static str, code: tonic::Code) {
        self.refusals
            .get_or_create(&Refusal {
                service,
                code: format!("{code:?}"),
            })
            .inc();
    }

    pub(crate) fn issued(&self) {
        self.certificates.inc();
    }

    pub(crate) fn wrote(&self, outcome: &'static str) {
        self.writes.get_or_create(&Outcome { outcome }).inc();
    }
}

impl Type {
    /// A client chooses the type it asks for: a label is made only of those that exist.
    fn of(type_url: &str) -> Self {
        let name = type_url
            .strip_prefix("type.googleapis.com/")
            .unwrap_or_default();
        let known = name.starts_with("istio.") || name.starts_with("ambit.mesh.");
        Self {
            r#type: if known && name.len() < 64 {
                name.to_owned()
            } else {
                "other".to_owned()
            },
        }
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
