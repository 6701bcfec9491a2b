//! HTTPRoutes: what a waypoint is told of them.

mod compile;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::core::DynamicObject;
use mesh::proto::waypoint::{
    Backend, Invalid, Parent, Route as WireRoute, Rule, ServicePort, backend,
};
use mesh::proto::workload::AppProtocol;
use mesh::xds::{Encoded, ROUTE_TYPE};
use serde_json::Value;

use super::super::State;
use super::super::accepted::Accepted;
use super::super::changes::{Notice, Resources, Scope, Target, Write};
use super::super::kinds::{ApiKind, Kind, Watched};
use super::super::names::Key;
use super::super::output::Output;
use super::attach::{Attachment, RouteKind, parent_key};
use super::status::Verdict;
use super::{BACKEND_NOT_FOUND, InForce, RouteHead, Unresolved};
use crate::gateway_api::{self, HttpBackendRef, HttpRouteSpec};
use crate::index::desired::{Entry, Item, Wanted};

/// What matters of an HTTPRoute.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::index) struct HttpRoute {
    head: RouteHead,
    /// Why the generation that is written is refused.
    refused: Option<String>,
    /// The newest generation that was not, as far as this replica has seen.
    seen: Option<Accepted<HttpRouteSpec>>,
}

/// Ports of unknown protocol are taken for HTTP as soon as a route says so.
const KIND: RouteKind = RouteKind {
    name: "an HTTPRoute",
    carried_by: |protocol| !matches!(protocol, AppProtocol::Tls | AppProtocol::Tcp),
};

// === impl HttpRoute ===

impl Watched for HttpRoute {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::gateway("HTTPRoute", "httproutes");

    fn parse(object: &DynamicObject) -> Option<Self> {
        let head = RouteHead::parse(object);
        let raw = &object.data["spec"];
        let (refused, seen) = match read(raw) {
            Ok(spec) => (None, Some(Accepted::new(head.generation, spec, raw))),
            Err(error) => (Some(error), None),
        };
        Some(Self {
            head,
            refused,
            seen,
        })
    }

    /// While a Service that a new generation names may be on its way.
    fn waits_for(state: &State, key: &Key, now: Option<&Self>) -> &'static [Kind] {
        let before = state.tables.http_routes.get(key);
        match now.is_some_and(|now| now.is_news(before) && state.lacks_services(key, now)) {
            true => &[Kind::Service],
            false => &[],
        }
    }

    /// The last accepted generation stays in force.
    fn inherit(&mut self, before: &Self) {
        if self.seen.is_none() && self.head.uid == before.head.uid {
            self.seen.clone_from(&before.seen);
        }
    }

    // Nobody looks at a route.
    fn touch(_state: &mut State, _key: &Key, _before: Option<&Self>, _now: Option<&Self>) {}

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        let route = state.tables.http_routes.get(key).cloned();
        let target = Target::new(Kind::HttpRoute, key);
        let in_force = route.as_ref().map(|route| state.in_force(&target, route));
        let services = match (&route, &in_force) {
            (Some(route), Some(in_force)) => named(key, &route.head, in_force.spec()),
            _ => BTreeSet::new(),
        };
        state.http_route_services.put(key, services);
        let accepted = in_force.as_ref().and_then(InForce::accepted).cloned();
        let ours = route.as_ref().filter(|route| {
            let attachments = route.head.readable_parents();
            let mut attachments = attachments.map(|parent| state.attach(KIND, key, parent));
            attachments.any(|attachment| attachment != Attachment::Foreign)
        });
        let kept = ours.zip(accepted.as_ref());
        state.keep(
            &target,
            kept.map(|(route, accepted)| (&route.head.uid, accepted)),
        );
        let told = route.and_then(|route| untellable(&target, &route));
        let told = told.map(|notice| Wanted::Events(vec![notice]));
        output.desire(Item::Events(target), told.map(Entry::leader));
    }

    fn resources(state: &State, key: &Key) -> Resources {
        state.http_route_resources(key)
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        let route = state.tables.http_routes.get(key)?;
        let target = Target::new(Kind::HttpRoute, key);
        let in_force = state.in_force(&target, route);
        let unresolved = in_force
            .spec()
            .map(|spec| state.http_rules(key, spec).1)
            .unwrap_or_default();
        let verdict = Verdict {
            kind: KIND,
            refused: route.refused.as_ref(),
            in_force: &in_force,
            unresolved: &unresolved,
        };
        state.parents_status(&target, &route.head, &verdict)
    }
}

impl HttpRoute {
    /// Whether its accepted generation is another.
    fn is_news(&self, before: Option<&Arc<Self>>) -> bool {
        let accepted = |route: &Self| {
            let seen = route.seen.as_ref();
            seen.map(|seen| (route.head.uid.clone(), seen.generation))
        };
        accepted(self) != before.and_then(|before| accepted(before))
    }
}

/// The spec, if a waypoint could do all that it asks for.
fn read(raw: &Value) -> Result<HttpRouteSpec, String> {
    let spec: HttpRouteSpec =
        gateway_api::read(raw).map_err(|error| format!("spec cannot be read: {error}"))?;
    let anywhere = |_: &HttpBackendRef| {
        Err(Unresolved {
            reason: BACKEND_NOT_FOUND,
            message: String::new(),
        })
    };
    let rules = compile::rules(&spec, anywhere).map_err(|error| error.to_string())?;
    readable(rules).map_err(|error| error.to_string())?;
    Ok(spec)
}

/// Whether a waypoint would take these rules: what it would refuse must not leave here.
fn readable(rules: Vec<Rule>) -> Result<(), mesh::route::InvalidRoute> {
    let (namespace, name) = ("namespace".to_owned(), "name".to_owned());
    mesh::route::Route::try_from(WireRoute {
        namespace,
        name,
        rules,
        ..WireRoute::default()
    })
    .map(drop)
}

/// The Services that a route names; of a kind or group that is not a Service's there is none of that name.
fn named(route: &Key, head: &RouteHead, spec: Option<&HttpRouteSpec>) -> BTreeSet<Key> {
    let of_spec = spec.into_iter().flat_map(|spec| &spec.parent_refs);
    let parents = head
        .readable_parents()
        .chain(of_spec)
        .map(|parent| parent_key(route, parent));
    let rules = spec.into_iter().flat_map(|spec| &spec.rules);
    let backends = rules
        .flat_map(|rule| &rule.backend_refs)
        .map(|backend| backend_key(route, backend));
    parents.chain(backends).collect()
}

fn backend_key(route: &Key, backend: &HttpBackendRef) -> Key {
    let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
    Key::new(namespace, &backend.name)
}

/// A route whose parents cannot be read has no status that could say so.
fn untellable(target: &Target, route: &HttpRoute) -> Option<Notice> {
    let bad = route
        .head
        .parents
        .iter()
        .find_map(|(_, parent)| parent.as_ref().err());
    let error = match (&route.refused, bad) {
        (_, Some(error)) => format!("a parentRef cannot be read: {error}"),
        (Some(error), None) if route.head.parents.is_empty() => error.clone(),
        _ => return None,
    };
    Some(Notice {
        target: target.clone(),
        uid: route.head.uid.clone(),
        warning: true,
        reason: "UnsupportedValue".to_owned(),
        note: format!("generation {}: {error}", route.head.generation),
    })
}

/// One rule for every request: it is answered with an error, because what was asked for cannot be done.
fn refusing(error: &str) -> Rule {
    let invalid = Invalid {
        status: 500,
        reason: format!("the route is refused: {error}"),
    };
    Rule {
        backends: vec![Backend {
            weight: 1,
            to: Some(backend::To::Invalid(invalid)),
            ..Backend::default()
        }],
        ..Rule::default()
    }
}

// === impl State ===

impl State {
    fn in_force(&self, target: &Target, route: &HttpRoute) -> InForce<HttpRouteSpec> {
        if let (None, Some(written)) = (&route.refused, &route.seen) {
            return InForce::Written(written.clone());
        }
        match self.last_accepted(target, &route.head.uid, route.seen.as_ref()) {
            Some(earlier) => InForce::Earlier(earlier),
            None => InForce::Nothing,
        }
    }

    /// The rules in force, and what in them does not resolve.
    fn http_rules(&self, key: &Key, spec: &HttpRouteSpec) -> (Vec<Rule>, Vec<Unresolved>) {
        let mut unresolved: Vec<Unresolved> = Vec::new();
        let rules = compile::rules(spec, |backend| {
            self.http_backend(key, backend)
                .inspect_err(|error| unresolved.push(error.clone()))
        });
        // What an earlier version of the controller accepted may be refused by this one.
        let rules = rules.unwrap_or_else(|error| vec![refusing(&error.to_string())]);
        (rules, unresolved)
    }

    fn http_backend(
        &self,
        route: &Key,
        backend: &HttpBackendRef,
    ) -> Result<ServicePort, Unresolved> {
        let kind = backend.kind.as_deref().unwrap_or("Service");
        let group = backend.group.as_deref().unwrap_or_default();
        let refuse = |reason, message| Err(Unresolved { reason, message });
        if !matches!(group, "" | "core") || kind != "Service" {
            let message = format!("backend {group}/{kind} {} is not a Service", backend.name);
            return refuse("InvalidKind", message);
        }
        // Routes of the mesh need no ReferenceGrant (GEP-1294).
        let key = backend_key(route, backend);
        let missing = |message| refuse(BACKEND_NOT_FOUND, message);
        let service = self.tables.services.get(&key);
        let Some(service) = service.filter(|service| !service.alias) else {
            return missing(format!("backend Service {key} does not exist"));
        };
        let Some(number) = backend.port else {
            return missing(format!("backend Service {key}: a port is needed"));
        };
        let port = u16::try_from(number)
            .ok()
            .and_then(|number| service.port(number));
        let Some(port) = port else {
            return missing(format!("backend Service {key} has no TCP port {number}"));
        };
        Ok(ServicePort {
            namespace: key.namespace.to_string(),
            hostname: self.hostname(&key),
            port: port.port.into(),
        })
    }

    /// Whether the accepted generation names a Service, or a port of one, that is not known.
    fn lacks_services(&self, key: &Key, route: &HttpRoute) -> bool {
        let Some(accepted) = &route.seen else {
            return false;
        };
        let mut parents = accepted.spec.parent_refs.iter();
        let (_, unresolved) = self.http_rules(key, &accepted.spec);
        unresolved.iter().any(Unresolved::is_missing)
            || parents.any(|parent| self.attach(KIND, key, parent).is_missing())
    }

    fn http_route_resources(&self, key: &Key) -> Resources {
        let mut out = Resources::default();
        let Some(route) = self.tables.http_routes.get(key) else {
            return out;
        };
        let in_force = self.in_force(&Target::new(Kind::HttpRoute, key), route);
        let (parents, rules) = match in_force.spec() {
            Some(spec) => {
                let parents = spec.parent_refs.iter();
                let parents = parents.filter(|parent| route.head.may_attach_to(parent));
                (parents.collect::<Vec<_>>(), self.http_rules(key, spec).0)
            }
            None => {
                let error = route.refused.as_deref().unwrap_or_default();
                (
                    route.head.readable_parents().collect(),
                    vec![refusing(error)],
                )
            }
        };
        let mut attached: BTreeMap<Key, Vec<Parent>> = BTreeMap::new();
        for parent in parents {
            let Attachment::Service {
                service,
                port,
                waypoint: Ok(waypoint),
                ..
            } = self.attach(KIND, key, parent)
            else {
                continue;
            };
            attached.entry(waypoint).or_default().push(Parent {
                namespace: service.namespace.to_string(),
                hostname: self.hostname(&service),
                port: port.into(),
            });
        }
        for (waypoint, parents) in attached {
            let message = WireRoute {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                created: route.head.created,
                parents,
                rules: rules.clone(),
            };
            let resource = Encoded::new(ROUTE_TYPE, &message);
            out.insert(Scope::Waypoint(waypoint), key.to_string().into(), resource);
        }
        out
    }
}
