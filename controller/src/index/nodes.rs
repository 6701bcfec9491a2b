//! Nodes: where they are, and the addresses that are theirs rather than a pod's.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::workload::Locality;

use super::State;
use super::kinds::{ApiKind, Watched};
use super::names::Key;

/// What matters of a Node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) locality: Option<Locality>,
    pub(super) addresses: Vec<IpAddr>,
}

// === impl Node ===

impl Watched for Node {
    type Object = core::Node;
    const API: ApiKind = ApiKind::core("Node", "nodes");

    fn parse(object: &core::Node) -> Option<Self> {
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
        Some(Self {
            locality: (locality != Locality::default()).then_some(locality),
            addresses: addresses
                .into_iter()
                .flatten()
                // Hostnames stand in the same list.
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        })
    }

    fn touch(state: &mut State, key: &Key, _before: Option<&Self>, _now: Option<&Self>) {
        let pods = state.tables.pods.iter();
        let pods: Vec<Key> = pods
            .filter(|(_, pod)| pod.node == key.name)
            .map(|(key, _)| key.clone())
            .collect();
        state.tables.pods.mark_each(pods);
        state.tables.slices.mark_all();
    }
}
