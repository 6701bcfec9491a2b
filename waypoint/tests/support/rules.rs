//! Rules of routes.

use mesh::proto::waypoint as routes;

use super::hostname;

/// A backend that is a port 80 of a service.
pub fn backend(name: &str, weight: u32) -> routes::Backend {
    routes::Backend {
        weight,
        to: Some(routes::backend::To::Service(routes::ServicePort {
            namespace: "shop".into(),
            hostname: hostname(name),
            port: 80,
        })),
        filters: vec![],
    }
}

/// A rule for paths below `prefix`.
pub fn rule(prefix: &str, backends: Vec<routes::Backend>) -> routes::Rule {
    routes::Rule {
        matches: vec![routes::Match {
            path: Some(routes::PathMatch {
                kind: Some(routes::path_match::Kind::Prefix(prefix.into())),
            }),
            ..Default::default()
        }],
        backends,
        ..Default::default()
    }
}
