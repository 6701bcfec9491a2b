//! Nodes: where they are, and the addresses that are theirs rather than a pod's.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::workload::Locality;

/// What matters of a Node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) locality: Option<Locality>,
    pub(super) addresses: Vec<IpAddr>,
}

// === impl Node ===

impl Node {
    pub(super) fn parse(object: &core::Node) -> Self {
        let label = |name: &str| {
            object
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(name))
                .cloned()
                .unwrap_or_default()
        };
        let locality = Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        };
        let addresses = object
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_ref());
        Self {
            locality: (locality != Locality::default()).then_some(locality),
            addresses: addresses
                .into_iter()
                .flatten()
                // Hostnames stand in the same list.
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        }
    }
}
