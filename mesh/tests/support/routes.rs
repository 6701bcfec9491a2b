//! Routes as the controller would send them.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::sync::Arc;

use mesh::proto::waypoint as wire;
use mesh::route::Route;

pub fn path_exact(path: &str) -> Option<wire::PathMatch> {
    Some(wire::PathMatch {
        kind: Some(wire::path_match::Kind::Exact(path.into())),
    })
}

pub fn path_prefix(path: &str) -> Option<wire::PathMatch> {
    Some(wire::PathMatch {
        kind: Some(wire::path_match::Kind::Prefix(path.into())),
    })
}

pub fn value(name: &str, value: &str) -> wire::ValueMatch {
    wire::ValueMatch {
        name: name.into(),
        kind: Some(wire::value_match::Kind::Exact(value.into())),
    }
}

pub fn route(name: &str, created: i64, rules: Vec<wire::Rule>) -> wire::Route {
    wire::Route {
        namespace: "shop".into(),
        name: name.into(),
        created,
        parents: vec![wire::Parent {
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            port: 0,
        }],
        rules,
    }
}

pub fn decode(route: wire::Route) -> Arc<Route> {
    Arc::new(Route::try_from(route).expect("a valid route"))
}
