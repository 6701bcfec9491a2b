//! Who a proxy says it is when it opens its stream. The controller believes only what the token proves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use prost_types::Value;
use prost_types::value::Kind;

use crate::proto::discovery::Node;

/// Part of the id only; nobody reads it.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// A proxy, by its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// `ztunnel` or `waypoint`.
    pub kind: String,
    /// Of the pod.
    pub pod: String,
    /// Of the pod.
    pub namespace: String,
    /// The Kubernetes node that the pod runs on.
    pub node_name: String,
    /// Of the pod.
    pub ip: IpAddr,
    /// The cluster's id.
    pub cluster: String,
    /// Further metadata, in the ecosystem's spelling (`NETWORK`, `GATEWAY_NAME`, ...).
    pub metadata: BTreeMap<String, String>,
}

/// A node that is no proxy of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node id {0:?} is not <kind>~<ip>~<pod>.<namespace>~<domain>")]
pub struct InvalidNode(String);

// === impl NodeInfo ===

impl NodeInfo {
    /// The wire's form.
    pub fn to_proto(&self) -> Node {
        let Self {
            kind,
            pod,
            namespace,
            node_name,
            ip,
            cluster,
            metadata,
        } = self;
        let domain = CLUSTER_DOMAIN;
        let known = [
            ("NAME", pod.as_str()),
            ("NAMESPACE", namespace),
            ("NODE_NAME", node_name),
            ("INSTANCE_IPS", &ip.to_string()),
            ("CLUSTER_ID", cluster),
            ("VERSION", env!("CARGO_PKG_VERSION")),
        ]
        .map(|(key, value)| (key.to_owned(), text(value)));
        let more = metadata
            .iter()
            .map(|(key, value)| (key.clone(), text(value)));
        Node {
            id: format!("{kind}~{ip}~{pod}.{namespace}~{namespace}.svc.{domain}"),
            cluster: kind.clone(),
            metadata: Some(prost_types::Struct {
                fields: known.into_iter().chain(more).collect(),
            }),
        }
    }

    /// Reads the wire's form, also as stock proxies write it.
    pub fn from_proto(node: &Node) -> Result<Self, InvalidNode> {
        let invalid = || InvalidNode(node.id.chars().take(200).collect());
        let mut parts = node.id.splitn(4, '~');
        let mut part = || {
            parts
                .next()
                .filter(|part| !part.is_empty())
                .ok_or_else(invalid)
        };
        let (kind, ip, name, _domain) = (part()?, part()?, part()?, part()?);
        let (pod, namespace) = name.rsplit_once('.').ok_or_else(invalid)?;
        let mut metadata: BTreeMap<String, String> = node
            .metadata
            .iter()
            .flat_map(|metadata| &metadata.fields)
            .filter_map(|(key, value)| match &value.kind {
                Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
                _ => None,
            })
            .collect();
        for own in ["NAME", "NAMESPACE", "INSTANCE_IPS", "VERSION"] {
            metadata.remove(own);
        }
        Ok(Self {
            kind: kind.to_owned(),
            pod: pod.to_owned(),
            namespace: namespace.to_owned(),
            node_name: metadata.remove("NODE_NAME").unwrap_or_default(),
            ip: ip.parse().map_err(|_| invalid())?,
            cluster: metadata.remove("CLUSTER_ID").unwrap_or_default(),
            metadata,
        })
    }
}

// === free ===

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_survives_the_wire() {
        let node = NodeInfo {
            kind: "ztunnel".to_owned(),
            pod: "ztunnel-x.y".to_owned(),
            namespace: "ambit-system".to_owned(),
            node_name: "worker-1".to_owned(),
            ip: "fd00::7".parse().expect("an address"),
            cluster: "Kubernetes".to_owned(),
            metadata: [("NETWORK".to_owned(), String::new())].into(),
        };
        assert_eq!(NodeInfo::from_proto(&node.to_proto()), Ok(node));
    }

    #[test]
    fn other_ids_are_refused() {
        for id in [
            "",
            "ztunnel",
            "ztunnel~1.2.3.4~pod~x",
            "ztunnel~x~pod.ns~d",
            "~1.2.3.4~p.n~d",
        ] {
            let node = Node {
                id: id.to_owned(),
                ..Node::default()
            };
            assert!(NodeInfo::from_proto(&node).is_err(), "{id:?}");
        }
    }
}
