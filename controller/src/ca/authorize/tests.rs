use super::*;
use crate::index::changes::{Changes, PodPlacement};

const ZTUNNEL_ID: &str = "spiffe://cluster.local/ns/ambit-system/sa/ztunnel";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const DEFAULT: &str = "spiffe://cluster.local/ns/shop/sa/default";
const OUTSIDE: &str = "spiffe://cluster.local/ns/shop/sa/outside";
const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";

struct Mesh {
    pods: Snapshot,
    allow_self_issue: bool,
}

impl Mesh {
    /// `namespace/account@node`, by UID. A pod without an account is one that a kubelet made.
    fn new() -> Self {
        let gateway = Key::new("shop", "waypoint");
        let pods = [
            (
                "zt1",
                "ambit-system",
                Some("ztunnel"),
                "n1",
                false,
                Role::NodeProxy,
            ),
            (
                "zt2",
                "ambit-system",
                Some("ztunnel"),
                "n2",
                false,
                Role::NodeProxy,
            ),
            ("cart", "shop", Some("cart"), "n1", true, Role::Application),
            (
                "outside",
                "shop",
                Some("outside"),
                "n1",
                false,
                Role::Application,
            ),
            ("static", "shop", None, "n1", false, Role::Application),
            (
                "waypoint",
                "shop",
                Some("waypoint"),
                "n1",
                false,
                Role::Waypoint(gateway),
            ),
            (
                "fake",
                "shop",
                Some("waypoint"),
                "n2",
                false,
                Role::Application,
            ),
        ];
        let placements = pods
            .into_iter()
            .map(|(uid, namespace, account, node, captured, role)| {
                let placement = PodPlacement {
                    uid: uid.into(),
                    pod: Key::new(namespace, uid),
                    node: node.into(),
                    service_account: account.map(Into::into),
                    captured,
                    role,
                };
                (uid.into(), Some(placement.into()))
            });
        let mut snapshot = Snapshot::default();
        snapshot.apply(&Changes {
            placements: placements.collect(),
            ..Changes::default()
        });
        Self {
            pods: snapshot,
            allow_self_issue: false,
        }
    }

    fn ask(&self, account: &str, pod: Option<&str>, id: Option<&str>) -> Result<String, String> {
        let rules = Rules {
            trust_domain: TrustDomain::default(),
            allow_self_issue: self.allow_self_issue,
        };
        let (namespace, name) = account.split_once('/').expect("namespace/name");
        let caller = Caller {
            account: Key::new(namespace, name),
            pod: pod.map(Into::into),
            node: None,
        };
        authorize(&caller, id, &rules, &self.pods)
            .map(|permit| format!("{} on {}", permit.id(), permit.node()))
            .map_err(|denied| denied.to_string())
    }
}

/// Each row: who asks, with which pod's token, for what; and what it is told.
#[test]
fn who_may_have_what() {
    let mesh = Mesh::new();
    let not_on = |id: &str, node: &str| {
        Err(format!(
            "no pod with identity {id} that is in the mesh runs on node {node}"
        ))
    };
    let no_proxy = |account: &str, id: &str| {
        Err(format!(
            "the pod of service account {account} is no node proxy, so it may not have identity {id}"
        ))
    };
    let no_waypoint = |account: &str| {
        Err(format!(
            "the pod of service account {account} is no waypoint, so it may not have its own identity (ALLOW_SELF_ISSUE is off)"
        ))
    };
    let no_pod = |account: &str| {
        Err(format!(
            "the token of service account {account} is not bound to a running pod of that account"
        ))
    };
    let ztunnel = "ambit-system/ztunnel";
    for (account, pod, id, expected) in [
        // A node has its own pods' identities; nobody else's, no waypoint's, no system pod's, and none it was not told to capture.
        (ztunnel, Some("zt2"), Some(CART), not_on(CART, "n2")),
        (ztunnel, Some("zt1"), Some(WAYPOINT), not_on(WAYPOINT, "n1")),
        (ztunnel, Some("zt1"), Some(OUTSIDE), not_on(OUTSIDE, "n1")),
        (ztunnel, Some("zt1"), Some(DEFAULT), not_on(DEFAULT, "n1")),
        (
            ztunnel,
            Some("zt1"),
            Some(ZTUNNEL_ID),
            not_on(ZTUNNEL_ID, "n1"),
        ),
        (ztunnel, Some("zt1"), None, not_on(ZTUNNEL_ID, "n1")),
        (
            ztunnel,
            Some("zt1"),
            Some(CART),
            Ok(format!("{CART} on n1")),
        ),
        // A workload has nobody's, not even its own.
        (
            "shop/cart",
            Some("cart"),
            Some(OUTSIDE),
            no_proxy("shop/cart", OUTSIDE),
        ),
        (
            "shop/cart",
            Some("cart"),
            Some(CART),
            no_waypoint("shop/cart"),
        ),
        ("shop/cart", Some("cart"), None, no_waypoint("shop/cart")),
        // A waypoint has its own; whoever only runs under its account has not.
        (
            "shop/waypoint",
            Some("fake"),
            None,
            no_waypoint("shop/waypoint"),
        ),
        (
            "shop/waypoint",
            Some("waypoint"),
            Some(CART),
            no_proxy("shop/waypoint", CART),
        ),
        (
            "shop/waypoint",
            Some("waypoint"),
            Some(WAYPOINT),
            Ok(format!("{WAYPOINT} on n1")),
        ),
        (
            "shop/waypoint",
            Some("waypoint"),
            None,
            Ok(format!("{WAYPOINT} on n1")),
        ),
        // A token that is bound to no pod, one that has ended, another account's, or one without an identity.
        (ztunnel, None, Some(CART), no_pod(ztunnel)),
        (ztunnel, Some("gone"), Some(CART), no_pod(ztunnel)),
        (ztunnel, Some("cart"), Some(CART), no_pod(ztunnel)),
        (
            "shop/default",
            Some("static"),
            Some(DEFAULT),
            no_pod("shop/default"),
        ),
        ("shop/waypoint", None, None, no_pod("shop/waypoint")),
    ] {
        assert_eq!(
            mesh.ask(account, pod, id),
            expected,
            "{account} {pod:?} {id:?}"
        );
    }
}

#[test]
fn an_install_setting_lets_everybody_have_their_own_identity_and_no_other() {
    let mesh = Mesh {
        allow_self_issue: true,
        ..Mesh::new()
    };
    for (account, pod, id, granted) in [
        ("shop/outside", "outside", None, true),
        ("shop/outside", "outside", Some(OUTSIDE), true),
        ("shop/outside", "outside", Some(CART), false),
        ("ambit-system/ztunnel", "zt1", None, true),
        ("ambit-system/ztunnel", "zt1", Some(WAYPOINT), false),
        ("shop/default", "static", None, false),
    ] {
        let outcome = mesh.ask(account, Some(pod), id);
        assert_eq!(outcome.is_ok(), granted, "{account} {id:?}: {outcome:?}");
    }
}

#[test]
fn what_was_captured_and_is_no_more_is_refused() {
    let mut mesh = Mesh::new();
    mesh.pods.apply(&Changes {
        placements: vec![("cart".into(), None)],
        ..Changes::default()
    });
    let outcome = mesh.ask("ambit-system/ztunnel", Some("zt1"), Some(CART));
    assert!(outcome.is_err(), "{outcome:?}");
}

#[test]
fn what_is_no_identity_of_ours_is_refused() {
    let mesh = Mesh::new();
    for (id, denied) in [
        (
            "spiffe://other.example/ns/shop/sa/cart",
            "is not of trust domain",
        ),
        ("spiffe://cluster.local/cart", "is not the identity"),
        ("cart", "is not the identity"),
        ("", "is not the identity"),
    ] {
        let error = mesh
            .ask("ambit-system/ztunnel", Some("zt1"), Some(id))
            .expect_err(id);
        assert!(error.contains(denied), "{id}: {error}");
    }
}
