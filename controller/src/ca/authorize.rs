//! DECISION: may this caller have a certificate with this identity?

use std::sync::Arc;

use hbone::{SpiffeId, TrustDomain};

use crate::discovery::authenticate::Caller;
use crate::discovery::snapshot::Snapshot;
use crate::index::changes::Role;
use crate::index::names::{Key, NamespacedName};

/// What decides besides the caller.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// Whether every pod may have a certificate of its own identity, and not waypoints only. With it a workload speaks
    /// in the mesh by itself, past its node's proxy: sidecars and proxyless clients need that.
    pub allow_self_issue: bool,
}

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not a SPIFFE id of a service account.
    #[error("{0:?} is not the identity of a service account")]
    NotAnIdentity(String),
    /// Another mesh's.
    #[error("{id} is not of trust domain {trust_domain}")]
    ForeignTrustDomain {
        /// What was asked for.
        id: SpiffeId,
        /// What we sign for.
        trust_domain: TrustDomain,
    },
    /// Only node proxies speak for others.
    #[error(
        "the pod of service account {account} is no node proxy, so it may not have identity {id}"
    )]
    NotANodeProxy {
        /// Who asked.
        account: Key,
        /// What for.
        id: SpiffeId,
    },
    /// A token copied out of its pod, or of a pod that has ended.
    #[error("the token of service account {0} is not bound to a running pod of that account")]
    NoPod(Key),
    /// Only waypoints have certificates of their own.
    #[error(
        "the pod of service account {account} is no waypoint, so it may not have its own identity (ALLOW_SELF_ISSUE is off)"
    )]
    NotAWaypoint {
        /// Who asked.
        account: Key,
    },
    /// No pod that the node was told to capture has this identity.
    #[error("no pod with identity {id} that is in the mesh runs on node {node}")]
    NotOnNode {
        /// What was asked for.
        id: SpiffeId,
        /// The caller's node.
        node: String,
    },
}

/// A permission to sign. Only [`authorize`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    id: SpiffeId,
    node: Arc<str>,
}

// === impl Denied ===

impl Denied {
    /// Whether a pod that we have not seen yet would change it.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoPod(_) | Self::NotAWaypoint { .. } | Self::NotOnNode { .. } => true,
            Self::NotAnIdentity(_)
            | Self::ForeignTrustDomain { .. }
            | Self::NotANodeProxy { .. } => false,
        }
    }
}

// === impl Permit ===

impl Permit {
    /// For whom.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Where the caller runs.
    pub fn node(&self) -> &str {
        &self.node
    }
}

/// Decides. Without `asked`, the caller's own identity is meant.
pub fn authorize(
    caller: &Caller,
    asked: Option<&str>,
    rules: &Rules,
    pods: &Snapshot,
) -> Result<Permit, Denied> {
    let (id, account) = identity(caller, asked, rules)?;
    let pod = caller
        .pod
        .as_deref()
        .and_then(|uid| pods.pod(uid))
        .filter(|pod| pod.account().as_ref() == Some(&caller.account));
    let Some(pod) = pod else {
        return Err(Denied::NoPod(caller.account.clone()));
    };
    let own = account == caller.account;
    match &pod.role {
        _ if own && rules.allow_self_issue => {}
        Role::Waypoint(_) if own => {}
        Role::NodeProxy if pods.captures(&pod.node, &account) => {}
        Role::NodeProxy => {
            return Err(Denied::NotOnNode {
                id,
                node: pod.node.to_string(),
            });
        }
        Role::Application if own => {
            return Err(Denied::NotAWaypoint { account });
        }
        Role::Application | Role::Waypoint(_) => {
            return Err(Denied::NotANodeProxy {
                account: caller.account.clone(),
                id,
            });
        }
    }
    Ok(Permit {
        id,
        node: pod.node.clone(),
    })
}

/// The identity that is asked for, with its service account.
fn identity(
    caller: &Caller,
    asked: Option<&str>,
    rules: &Rules,
) -> Result<(SpiffeId, Key), Denied> {
    let id: SpiffeId = match asked {
        None => {
            let NamespacedName { namespace, name } = &*caller.account;
            SpiffeId::for_service_account(&rules.trust_domain, namespace, name)
                .map_err(|_| Denied::NotAnIdentity(caller.account.to_string()))?
        }
        Some(asked) => asked
            .parse()
            .map_err(|_| Denied::NotAnIdentity(asked.to_owned()))?,
    };
    if id.trust_domain() != rules.trust_domain {
        return Err(Denied::ForeignTrustDomain {
            id,
            trust_domain: rules.trust_domain.clone(),
        });
    }
    let account = id
        .service_account()
        .map(|(namespace, name)| Key::new(namespace, name));
    match account {
        Some(account) => Ok((id, account)),
        None => Err(Denied::NotAnIdentity(id.to_string())),
    }
}

#[cfg(test)]
mod tests;
