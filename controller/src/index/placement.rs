//! Who is who: which pod runs where, under which identity, and whether it is a part of the mesh itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::State;
use super::names::Key;
use super::pods::Pod;

/// A pod that runs, as far as the question goes who may ask for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlacement {
    /// Its UID.
    pub uid: Arc<str>,
    /// The pod.
    pub pod: Key,
    /// Its node.
    pub node: Arc<str>,
    /// Its service account, in its namespace. `None`: it has no identity, because it is a mirror of a static pod, which
    /// a kubelet makes in whatever namespace it likes, or because no account is named.
    pub service_account: Option<Arc<str>>,
    /// Its node was told to capture it, so the node needs its certificate.
    pub captured: bool,
    /// What it is to the mesh.
    pub role: Role,
}

/// What a pod is to the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The proxy of its node: it sees that node's pods, and asks for certificates on their behalf.
    NodeProxy,
    /// An instance of this Gateway's waypoint.
    Waypoint(Key),
    /// Anybody else.
    Application,
}

/// Which pods are node proxies: written `namespace/account` or `namespace/account/Kind/name` with the owner's kind and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeProxyRule {
    /// The pod's namespace.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// Kind and name of its controlling owner; `None`: any pod of that account.
    pub owner: Option<(String, String)>,
}

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not namespace/account or namespace/account/Kind/name")]
pub struct InvalidRule(String);

// === impl PodPlacement ===

impl PodPlacement {
    /// The service account with its namespace, if the pod has an identity.
    pub fn account(&self) -> Option<Key> {
        let account = self.service_account.as_deref()?;
        Some(Key::within(self.pod.namespace.clone(), account))
    }
}

// === impl NodeProxyRule ===

impl NodeProxyRule {
    /// The mesh's own: pods of the DaemonSet `ztunnel` under the account of that name.
    pub fn ours(system_namespace: &str) -> Self {
        Self {
            namespace: system_namespace.to_owned(),
            account: "ztunnel".to_owned(),
            owner: Some(("DaemonSet".to_owned(), "ztunnel".to_owned())),
        }
    }

    fn admits(&self, key: &Key, pod: &Pod) -> bool {
        let owned = self.owner.as_ref().is_none_or(|(kind, name)| {
            pod.controller()
                .is_some_and(|owner| owner.kind == *kind && owner.name == *name)
        });
        owned
            && *key.namespace == *self.namespace
            && pod
                .identity()
                .is_some_and(|account| **account == *self.account)
    }
}

impl FromStr for NodeProxyRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(InvalidRule(text.to_owned()));
        }
        let (namespace, account, owner) = match parts[..] {
            [namespace, account] => (namespace, account, None),
            [namespace, account, kind, name] => (namespace, account, Some((kind, name))),
            _ => return Err(InvalidRule(text.to_owned())),
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            owner: owner.map(|(kind, name)| (kind.to_owned(), name.to_owned())),
        })
    }
}

impl fmt::Display for NodeProxyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.account)?;
        match &self.owner {
            None => Ok(()),
            Some((kind, name)) => write!(f, "/{kind}/{name}"),
        }
    }
}

// === impl State ===

impl State {
    /// Where a pod runs and what it is, until it has ended.
    pub(super) fn placement(&self, key: &Key) -> Option<PodPlacement> {
        let pod = self
            .tables
            .pods
            .get(key)
            .filter(|pod| !pod.finished && !pod.node.is_empty())?;
        Some(PodPlacement {
            uid: pod.uid.clone(),
            pod: key.clone(),
            node: pod.node.clone(),
            service_account: pod.identity().cloned(),
            captured: self.wanted(key, pod),
            role: self.role(key, pod),
        })
    }

    /// Labels alone make nobody anything: a tenant writes them.
    pub(super) fn role(&self, key: &Key, pod: &Pod) -> Role {
        if self.is_node_proxy(key, pod) {
            return Role::NodeProxy;
        }
        match self.waypoint_of(key, pod) {
            Some(gateway) => Role::Waypoint(gateway),
            None => Role::Application,
        }
    }

    /// Whether it is the proxy of its node.
    pub(super) fn is_node_proxy(&self, key: &Key, pod: &Pod) -> bool {
        let mut rules = self.settings.node_proxies.iter();
        rules.any(|rule| rule.admits(key, pod))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_whole_or_refused() {
        for bad in ["", "a", "a/", "/b", "a/b/DaemonSet", "a/b/c/d/e", "a/b//d"] {
            assert!(bad.parse::<NodeProxyRule>().is_err(), "{bad:?}");
        }
        for good in ["istio-system/ztunnel", "a/b/DaemonSet/z"] {
            let rule: NodeProxyRule = good.parse().expect(good);
            assert_eq!(rule.to_string(), good);
        }
    }
}
