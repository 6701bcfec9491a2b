//! DECISION: what happens to one request: sent to a backend, or answered here.

use std::sync::Arc;

use http::{StatusCode, request};
use mesh::route::{BackendTo, Filter, Found, RequestView};
use mesh::service::{AppProtocol, Service};
use mesh::world::Snapshot;

use super::filter::{self, Asked};
use super::reply::Reply;
use crate::flags::{NO_BACKEND, NO_ENDPOINT, NO_ROUTE};
use crate::routed::Routed;
use mesh::verdict::waypoint::{To, protocol};

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    /// The rule it met, where the service has routes.
    pub(crate) routed: Option<Routed>,
    /// What comes next.
    pub(crate) next: Next,
}

/// What comes next for a request.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// Sent to an endpoint of `to`; in HTTP/2 where that is declared, else as it came.
    Forward { to: To, declared: AppProtocol },
    /// Answered here.
    Answer(Reply),
}

/// Decides from what the mesh knows now; `to` is what the tunnel was opened for.
pub(crate) fn decide(
    world: &Snapshot,
    to: &To,
    head: &request::Parts,
    roll: &mut fastrand::Rng,
) -> Decision {
    let (service, port) = match to {
        To::Service { service, port } => (service, *port),
        // A pod that was dialled as such: the routes of its services are not for it.
        To::Workload { .. } => {
            return Decision::unrouted(Next::forward(to.clone(), AppProtocol::Unknown));
        }
    };
    let Some(routes) = world.routes(&service.id, port) else {
        return Decision::unrouted(to_service(world, service, port));
    };
    let request_view = RequestView {
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
    };
    match routes.find(&request_view) {
        Some(found) => follow(world, &found, head, port, roll),
        None => {
            let reason = "no route of this service accepts the request";
            Decision::unrouted(Next::Answer(Reply::failure(
                StatusCode::NOT_FOUND,
                NO_ROUTE,
                reason,
            )))
        }
    }
}

fn follow(
    world: &Snapshot,
    found: &Found<'_>,
    head: &request::Parts,
    port: u16,
    roll: &mut fastrand::Rng,
) -> Decision {
    let mut routed = Routed {
        route: found.route.name().clone(),
        rule: Arc::clone(found.rule),
        backend: None,
    };
    let asked = Asked {
        host: filter::host(&head.headers).unwrap_or_default(),
        path: head.uri.path(),
        query: head.uri.query(),
        port,
    };
    let redirected = |filters: &[Filter]| {
        let redirect = filter::redirect(filters)?;
        let (status, location) = filter::location(redirect, found.matched, &asked);
        Some(Next::Answer(Reply::Redirect { status, location }))
    };
    if let Some(next) = redirected(&found.rule.filters) {
        return Decision {
            routed: Some(routed),
            next,
        };
    }
    let Some((index, backend)) = found.rule.choose(|sum| roll.u64(..sum)) else {
        let reason = "the rule has no backend";
        let reply = Reply::failure(StatusCode::INTERNAL_SERVER_ERROR, NO_BACKEND, reason);
        return Decision {
            routed: Some(routed),
            next: Next::Answer(reply),
        };
    };
    routed.backend = Some(index);
    let next = redirected(&backend.filters).unwrap_or_else(|| match &backend.to {
        BackendTo::Invalid { status, reason } => Next::Answer(Reply::failure(
            *status,
            NO_BACKEND,
            format!("the backend does not resolve: {reason}"),
        )),
        BackendTo::Service { service, port } => match world.service(service) {
            Some(service) => to_service(world, service, *port),
            // The controller resolved it: it will come, or the route will change.
            None => no_endpoint(format!("{service} is not known")),
        },
    });
    Decision {
        routed: Some(routed),
        next,
    }
}

/// To an endpoint of a service, as the mesh knows it now.
fn to_service(world: &Snapshot, service: &Arc<Service>, port: u16) -> Next {
    let Some(service) = world.service(&service.id) else {
        return no_endpoint(format!("{} is gone", service.id));
    };
    match protocol(service, port) {
        Some(declared) => Next::forward(
            To::Service {
                service: Arc::clone(service),
                port,
            },
            declared,
        ),
        None => no_endpoint(format!("{} has no port {port}", service.id)),
    }
}

fn no_endpoint(reason: String) -> Next {
    Next::Answer(Reply::failure(
        StatusCode::SERVICE_UNAVAILABLE,
        NO_ENDPOINT,
        reason,
    ))
}

// === impl Decision ===

impl Decision {
    fn unrouted(next: Next) -> Self {
        Self { routed: None, next }
    }
}

// === impl Next ===

impl Next {
    fn forward(to: To, declared: AppProtocol) -> Self {
        Self::Forward { to, declared }
    }
}
