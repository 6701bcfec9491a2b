//! Nodes: where they are, and the addresses that are theirs rather than a pod's.

mod gate;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::workload::Locality;

use self::gate::Taints;
use super::State;
use super::addresses::{Addressed, Range, parse};
use super::changes::Target;
use super::kinds::Kind;
use super::kinds::{ApiKind, Watched};
use super::names::Key;
use super::output::Output;

/// What matters of a Node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) locality: Option<Locality>,
    pub(super) uid: Arc<str>,
    pub(super) addresses: Vec<IpAddr>,
    /// Its pods' addresses are from here, where the cluster gives out addresses so.
    pub(super) pod_ranges: Vec<Range>,
    /// As its kubelet says.
    ready: bool,
    taints: Taints,
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
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            locality: (locality != Locality::default()).then_some(locality),
            addresses: addresses
                .into_iter()
                .flatten()
                // Hostnames stand in the same list.
                .filter_map(|address| parse(&address.address))
                .collect(),
            pod_ranges: pod_ranges(object),
            ready: is_ready(object),
            taints: Taints::of(object.spec.as_ref().and_then(|spec| spec.taints.as_ref())),
        })
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        let on_it = state.tables.pods.lookup().on_node(&key.name);
        let pods: Vec<Key> = on_it.cloned().collect();
        let addresses: Vec<IpAddr> = pods
            .iter()
            .filter_map(|key| state.tables.pods.get(key))
            .flat_map(|pod| pod.ips.iter().copied())
            .collect();
        state.tables.pods.mark_each(pods);
        let ranges = |node: Option<&Self>| node.map(|node| node.pod_ranges.clone());
        if ranges(before) != ranges(now) {
            // Whose address it is may hang on that.
            for address in addresses {
                state.touch_address(address);
            }
        }
        for node in [before, now].into_iter().flatten() {
            for address in &node.addresses {
                state.touch_address(*address);
            }
        }
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        let notices = state.node_address_notices(key);
        output.events(Target::new(Kind::Node, key), notices);
        state.gate(key, output);
    }
}

fn is_ready(object: &core::Node) -> bool {
    let status = object.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one.type_ == "Ready" && one.status == "True")
}

fn pod_ranges(object: &core::Node) -> Vec<Range> {
    let spec = object.spec.as_ref();
    let ranges = spec.and_then(|spec| spec.pod_cidrs.as_ref());
    ranges
        .into_iter()
        .flatten()
        .filter_map(|range| Range::parse(range))
        .collect()
}

impl Addressed for Node {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }
}
