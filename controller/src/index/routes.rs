//! Routes with Service parents. What all kinds of route have in common is here, in [`attach`] and in [`status`]; what one
//! kind says is a file of its own.

mod attach;
pub(super) mod http;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::core::DynamicObject;
use serde_json::Value;

use super::State;
use super::accepted::Accepted;
use super::kinds::Kind;
use super::names::Key;
use crate::gateway_api::ParentRef;

/// The kinds of route.
pub(super) const ROUTE_KINDS: &[Kind] = &[Kind::HttpRoute];

/// Reason of a backend that names a Service, or a port of one, that is not there.
const BACKEND_NOT_FOUND: &str = "BackendNotFound";

/// What every route has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RouteHead {
    uid: Arc<str>,
    generation: i64,
    resource_version: String,
    created: i64,
    /// As written; kept raw because status repeats them, and read one by one so that a route that is refused has a status.
    parents: Vec<(Value, Result<ParentRef, String>)>,
    /// `status.parents` as it is now.
    status: Vec<Value>,
}

/// Which generation of a route counts.
#[derive(Debug, Clone, PartialEq)]
enum InForce<T> {
    /// The one that is written.
    Written(Accepted<T>),
    /// An earlier one, because the one that is written is refused.
    Earlier(Accepted<T>),
    /// None was ever accepted: requests are refused rather than sent past what somebody asked for.
    Nothing,
}

/// A backend that cannot be used; requests that it would get are answered with status 500.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unresolved {
    /// One word, of the API.
    reason: &'static str,
    message: String,
}

/// Which routes of a kind name which Services, as parents or as backends.
#[derive(Debug, Default)]
pub(super) struct RouteServices {
    by_service: BTreeMap<Key, BTreeSet<Key>>,
    of_route: BTreeMap<Key, BTreeSet<Key>>,
}

// === impl RouteHead ===

impl RouteHead {
    fn parse(object: &DynamicObject) -> Self {
        let parents = object.data["spec"]["parentRefs"].as_array();
        let read = |raw: &Value| {
            let parsed = serde_json::from_value(raw.clone()).map_err(|error| error.to_string());
            (raw.clone(), parsed)
        };
        let created = object.metadata.creation_timestamp.as_ref();
        Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation: object.metadata.generation.unwrap_or(0),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            created: created.map_or(0, |time| time.0.as_millisecond()),
            parents: parents.into_iter().flatten().map(read).collect(),
            status: object.data["status"]["parents"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        }
    }

    /// The parents that can be read.
    fn readable_parents(&self) -> impl Iterator<Item = &ParentRef> {
        self.parents
            .iter()
            .filter_map(|(_, parent)| parent.as_ref().ok())
    }

    /// Whether a parent of an earlier generation is still written. What cannot be read may be any.
    fn may_attach_to(&self, parent: &ParentRef) -> bool {
        let mut written = self.parents.iter().map(|(_, written)| written);
        self.parents.is_empty()
            || written.any(|written| written.as_ref().map_or(true, |written| written == parent))
    }
}

// === impl InForce ===

impl<T> InForce<T> {
    fn accepted(&self) -> Option<&Accepted<T>> {
        match self {
            Self::Written(accepted) | Self::Earlier(accepted) => Some(accepted),
            Self::Nothing => None,
        }
    }

    fn spec(&self) -> Option<&T> {
        self.accepted().map(|accepted| &*accepted.spec)
    }
}

// === impl Unresolved ===

impl Unresolved {
    fn is_missing(&self) -> bool {
        self.reason == BACKEND_NOT_FOUND
    }
}

// === impl State ===

impl State {
    /// Whether a route that is known names a Service.
    pub(super) fn is_named_by_routes(&self, service: &Key) -> bool {
        self.http_route_services.naming(service).next().is_some()
    }

    /// Marks the routes that name a Service.
    pub(super) fn touch_routes_of(&mut self, service: &Key) {
        let routes = self.http_route_services.naming(service).cloned();
        let routes: Vec<Key> = routes.collect();
        self.tables.http_routes.mark_each(routes);
    }
}

// === impl RouteServices ===

impl RouteServices {
    /// The routes that name a Service.
    fn naming(&self, service: &Key) -> impl Iterator<Item = &Key> {
        self.by_service.get(service).into_iter().flatten()
    }

    /// What a route names from now on.
    fn put(&mut self, route: &Key, services: BTreeSet<Key>) {
        let before = if services.is_empty() {
            self.of_route.remove(route)
        } else {
            self.of_route.insert(route.clone(), services.clone())
        };
        for gone in before.into_iter().flatten() {
            if !services.contains(&gone)
                && let Some(routes) = self.by_service.get_mut(&gone)
            {
                routes.remove(route);
                if routes.is_empty() {
                    self.by_service.remove(&gone);
                }
            }
        }
        for service in services {
            self.by_service
                .entry(service)
                .or_default()
                .insert(route.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_a_service_is_found_until_it_no_longer_does() {
        let mut services = RouteServices::default();
        let (route, a, b) = (Key::new("x", "r"), Key::new("x", "a"), Key::new("y", "b"));
        services.put(&route, BTreeSet::from([a.clone(), b.clone()]));
        assert_eq!(services.naming(&b).collect::<Vec<_>>(), [&route]);
        services.put(&route, BTreeSet::from([a.clone()]));
        assert_eq!(services.naming(&b).count(), 0);
        assert_eq!(services.naming(&a).count(), 1);
        services.put(&route, BTreeSet::new());
        assert!(services.by_service.is_empty() && services.of_route.is_empty());
    }
}
