//! The wire: generated from `proto/`, grouped as the `.proto` packages are.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::large_futures,
    reason = "generated code"
)]

/// Workload discovery (`istio.workload`).
pub mod workload {
    include!("gen/istio.workload.rs");
}

/// What a waypoint is told (`ambit.mesh.waypoint.v1`).
pub mod waypoint {
    include!("gen/ambit.mesh.waypoint.v1.rs");
}

/// What a node and the controller tell one another (`ambit.mesh.node.v1`).
pub mod node {
    include!("gen/ambit.mesh.node.v1.rs");
}

/// Delta xDS (`envoy.service.discovery.v3`).
pub mod discovery {
    include!("gen/envoy.service.discovery.v3.rs");
}

/// The certificate service (`istio.v1.auth`).
pub mod certificate {
    include!("gen/istio.v1.auth.rs");
}
