//! What the controller counts.

use mesh::xds::{
    ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, MESH_STATE_TYPE, ROUTE_TYPE,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The types that are counted by name.
const TYPES: [&str; 6] = [
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    ROUTE_TYPE,
    ENROLMENT_TYPE,
    ENROLLED_NAMESPACE_TYPE,
    MESH_STATE_TYPE,
];
/// What stock proxies ask for, and are answered empty.
const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// Counters, shared by all who count.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    streams: Gauge,
    pushes: Family<Type, Counter>,
    nacks: Family<Type, Counter>,
    refusals: Family<Refusal, Counter>,
    certificates: Counter,
    shed: Family<Shed, Counter>,
    reviews: Family<Outcome, Counter>,
    writes: Family<Outcome, Counter>,
    leads: Gauge,
    unreadable: Family<Watched, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    service: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Shed {
    reason: &'static str,
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
            "ambit_connections_shed",
            "Connections that the controller closed, by reason",
            self.shed.clone(),
        );
        registry.register(
            "ambit_token_reviews",
            "Tokens that were to be checked, by what became of it",
            self.reviews.clone(),
        );
        registry.register(
            "ambit_status_writes",
            "Writes to the API server, by outcome",
            self.writes.clone(),
        );
        registry.register(
            "ambit_leader",
            "Whether this replica writes to the cluster",
            self.leads.clone(),
        );
        registry.register(
            "ambit_unreadable_objects",
            "Objects that cannot be decoded, of which the mesh goes on with what it knew, by kind",
            self.unreadable.clone(),
        );
    }

    /// Where the objects of a kind are counted that cannot be decoded.
    pub(crate) fn unreadable(&self, kind: &'static str) -> Gauge {
        self.unreadable.get_or_create_owned(&Watched { kind })
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

    pub(crate) fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&Shed { reason }).inc();
    }

    pub(crate) fn reviewed(&self, outcome: &'static str) {
        self.reviews.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }

    pub(crate) fn wrote(&self, outcome: &'static str) {
        self.writes.get_or_create(&Outcome { outcome }).inc();
    }
}

impl Type {
    /// A client chooses the type it asks for: a label is made only of those that exist.
    fn of(type_url: &str) -> Self {
        let known = TYPES.iter().find(|known| **known == type_url);
        let name = known.and_then(|known| known.strip_prefix("type.googleapis.com/"));
        Self {
            r#type: name.unwrap_or("other"),
        }
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_ask_for_makes_no_series() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        for n in 0..1000 {
            metrics.pushed(&format!("type.googleapis.com/istio.made-up-{n}"));
            metrics.nacked(&format!("type.googleapis.com/ambit.mesh.made-up-{n}"));
        }
        metrics.pushed(ADDRESS_TYPE);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let series =
            |text: &str, name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(series(&text, "ambit_discovery_pushes_total{"), 2, "{text}");
        assert_eq!(series(&text, "ambit_discovery_nacks_total{"), 1, "{text}");
        assert!(
            text.contains(r#"{type="istio.workload.Address"} 1"#),
            "{text}"
        );
    }
}
