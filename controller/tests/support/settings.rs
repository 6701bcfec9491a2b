//! What the program is told once, as tests have it.
//!
//! A test file takes it with `#[path = "support/settings.rs"] mod settings;`, or from the support that needs it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use controller::index::Settings;
use controller::index::placement::NodeProxyRule;
use controller::waypoint::render::Mesh;

/// The index's.
pub fn index() -> Settings {
    Settings {
        trust_domain: "cluster.local".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".into(),
        excluded_namespaces: vec!["kube-system".to_owned()],
        system_namespace: "ambit-system".to_owned(),
        node_proxies: vec![NodeProxyRule::ours("ambit-system")],
        taint_joining_nodes: true,
        ..Settings::default()
    }
}

/// What waypoints have in common.
pub fn waypoints() -> Mesh {
    Mesh {
        image: "ambit/waypoint:test".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        xds_address: "ambit-controller.ambit-system.svc:15012".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        network: "east".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        log_format: "text".to_owned(),
    }
}
