//! The registry of a process's metrics, and what every process has in it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    component: &'static str,
    tag: &'static str,
}

/// A registry that says what runs. Names are registered whole (`istio_tcp_connections_opened`); counters get their `_total`.
pub fn registry(component: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Family::<Build, Gauge>::default();
    build
        .get_or_create(&Build {
            component,
            tag: env!("CARGO_PKG_VERSION"),
        })
        .set(1);
    registry.register("istio_build", "What runs", build);
    registry
}

/// The registry as Prometheus reads it (OpenMetrics text).
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string does not fail; a metric that cannot be encoded ends the text where it is.
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        tracing::error!("the metrics cannot be encoded");
    }
    text
}
