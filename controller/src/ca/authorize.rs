//! DECISION: may this caller have a certificate with this identity?

use hbone::{SpiffeId, TrustDomain};

use crate::discovery::authenticate::Caller;
use crate::discovery::snapshot::Snapshot;
use crate::index::names::Key;

/// What decides besides the caller.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The service accounts of node proxies.
    pub node_accounts: Vec<Key>,
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
    #[error("service account {account} may only have its own identity, not {id}")]
    NotANodeProxy {
        /// Who asked.
        account: Key,
        /// What for.
        id: SpiffeId,
    },
    /// A token copied out of its pod, or of a pod that has ended.
    #[error("the token of service account {0} is not bound to a running pod of that account")]
    NoPod(Key),
    /// No pod there has this identity.
    #[error("no pod with identity {id} runs on node {node}")]
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
}

// === impl Permit ===

impl Permit {
    /// For whom.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

/// Decides. Without `asked`, the caller's own identity is meant.
pub fn authorize(
    caller: &Caller,
    asked: Option<&str>,
    rules: &Rules,
    pods: &Snapshot,
) -> Result<Permit, Denied> {
    let own = SpiffeId::for_service_account(
        &rules.trust_domain,
        &caller.account.namespace,
        &caller.account.name,
    )
    .map_err(|_| Denied::NotAnIdentity(caller.account.to_string()))?;
    let id = match asked {
        None => own.clone(),
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
    let Some(account) = id
        .service_account()
        .map(|(namespace, name)| Key::new(namespace, name))
    else {
        return Err(Denied::NotAnIdentity(id.to_string()));
    };
    let pod = caller
        .pod
        .as_deref()
        .and_then(|uid| pods.pod(uid))
        .filter(|place| {
            place.pod.namespace == caller.account.namespace
                && place.service_account.as_ref() == Some(&caller.account.name)
        });
    let Some(pod) = pod else {
        return Err(Denied::NoPod(caller.account.clone()));
    };
    if id == own {
        return Ok(Permit { id });
    }
    if !rules.node_accounts.contains(&caller.account) {
        return Err(Denied::NotANodeProxy {
            account: caller.account.clone(),
            id,
        });
    }
    if !pods.runs(&pod.node, &account) {
        return Err(Denied::NotOnNode {
            id,
            node: pod.node.to_string(),
        });
    }
    Ok(Permit { id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::changes::{Changes, PodPlacement, Role};

    fn place(namespace: &str, account: &str, node: &str) -> Option<PodPlacement> {
        let pod = Key::new(namespace, &format!("{account}-1"));
        Some(PodPlacement {
            pod,
            node: node.into(),
            service_account: Some(account.into()),
            captured: true,
            role: Role::Application,
        })
    }

    fn pods() -> Snapshot {
        let placements = vec![
            ("zt1".into(), place("ambit-system", "ztunnel", "n1")),
            ("zt2".into(), place("ambit-system", "ztunnel", "n2")),
            ("a1".into(), place("shop", "cart", "n1")),
            ("w1".into(), place("shop", "waypoint", "n2")),
        ];
        let mut snapshot = Snapshot::default();
        snapshot.apply(&Changes {
            placements,
            ..Changes::default()
        });
        snapshot
    }

    fn ask(account: (&str, &str), pod: Option<&str>, id: Option<&str>) -> Result<String, Denied> {
        let rules = Rules {
            trust_domain: TrustDomain::default(),
            node_accounts: vec![Key::new("ambit-system", "ztunnel")],
        };
        let caller = Caller {
            account: Key::new(account.0, account.1),
            pod: pod.map(Into::into),
            node: None,
        };
        authorize(&caller, id, &rules, &pods()).map(|permit| permit.id().to_string())
    }

    const ZTUNNEL: (&str, &str) = ("ambit-system", "ztunnel");
    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
    const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";

    #[test]
    fn a_node_proxy_is_refused_what_its_node_does_not_run() {
        let denied = ask(ZTUNNEL, Some("zt2"), Some(CART)).expect_err("cart runs on n1");
        assert_eq!(
            denied.to_string(),
            format!("no pod with identity {CART} runs on node n2")
        );
        assert_eq!(ask(ZTUNNEL, Some("zt1"), Some(CART)).as_deref(), Ok(CART));
    }

    #[test]
    fn others_have_their_own_identity_and_no_other() {
        let waypoint = ("shop", "waypoint");
        assert!(matches!(
            ask(waypoint, Some("w1"), Some(CART)),
            Err(Denied::NotANodeProxy { .. })
        ));
        assert_eq!(
            ask(waypoint, Some("w1"), Some(WAYPOINT)).as_deref(),
            Ok(WAYPOINT)
        );
        assert_eq!(ask(waypoint, Some("w1"), None).as_deref(), Ok(WAYPOINT));
    }

    #[test]
    fn a_token_without_its_pod_has_nothing() {
        for pod in [None, Some("gone"), Some("a1")] {
            assert!(
                matches!(ask(ZTUNNEL, pod, Some(CART)), Err(Denied::NoPod(_))),
                "{pod:?}"
            );
            assert!(
                matches!(ask(("shop", "waypoint"), pod, None), Err(Denied::NoPod(_))),
                "{pod:?}"
            );
        }
    }

    #[test]
    fn what_is_no_identity_of_ours_is_refused() {
        for (id, denied) in [
            (
                "spiffe://other.example/ns/shop/sa/cart",
                "is not of trust domain",
            ),
            ("spiffe://cluster.local/cart", "is not the identity"),
            ("cart", "is not the identity"),
            ("", "is not the identity"),
        ] {
            let error = ask(ZTUNNEL, Some("zt1"), Some(id))
                .expect_err(id)
                .to_string();
            assert!(error.contains(denied), "{id}: {error}");
        }
    }
}
