//! HTTPRoutes with Service parents: what a waypoint is told of them, and what their status says.

mod compile;

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::DynamicObject;
use mesh::proto::waypoint::{Parent, Route as WireRoute, Rule, ServicePort};
use mesh::xds::{Encoded, ROUTE_TYPE};
use serde_json::{Value, json};

use self::compile::Unresolved;
use super::State;
use super::binding::Binding;
use super::changes::{How, Notice, Resources, Scope, Target, Write};
use super::condition::{self, Condition};
use super::kinds::{ApiKind, Kind, Watched};
use super::names::{CONTROLLER_NAME, Key};
use super::output::Output;
use crate::desired::{Entry, Item, Wanted};
use crate::gateway_api::{self, GROUP, HttpBackendRef, HttpRouteSpec, ParentRef};

/// What matters of an HTTPRoute.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Route {
    uid: Arc<str>,
    generation: i64,
    resource_version: String,
    created: i64,
    /// As written; kept raw because status repeats them.
    parents: Vec<(Value, Result<ParentRef, String>)>,
    /// The spec, or why it is refused.
    spec: Result<HttpRouteSpec, String>,
    /// The last spec that was not refused, and its generation: it stays in force.
    accepted: Option<(i64, HttpRouteSpec)>,
    /// `status.parents` as it is now.
    status: Vec<Value>,
}

/// Why the traffic of a Service does not go through a waypoint.
enum NoWaypoint {
    /// Nobody asked for one.
    Unasked,
    /// The Service's own status says it.
    Refused(String),
}

/// One parent, looked up.
enum Attachment {
    /// A Service, at one port (or 0: all), with its waypoint or why it has none.
    Service {
        service: Key,
        port: u16,
        waypoint: Result<Key, NoWaypoint>,
    },
    /// It cannot be attached to.
    Refused {
        reason: &'static str,
        message: String,
    },
    /// Not the mesh's business.
    Foreign,
}

// === impl Route ===

impl Watched for Route {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::gateway("HTTPRoute", "httproutes");

    fn parse(object: &DynamicObject) -> Option<Self> {
        let spec = &object.data["spec"];
        let parents = spec["parentRefs"].as_array().cloned().unwrap_or_default();
        let read = |raw: Value| {
            let parsed = serde_json::from_value(raw.clone()).map_err(|error| error.to_string());
            (raw, parsed)
        };
        let parsed =
            gateway_api::read(spec).map_err(|error| format!("spec cannot be read: {error}"));
        let spec = parsed.and_then(|spec: HttpRouteSpec| {
            let unknown = |_: &HttpBackendRef| {
                Err(Unresolved {
                    reason: "BackendNotFound",
                    message: String::new(),
                })
            };
            let rules = compile::rules(&spec, unknown).map_err(|error| error.to_string())?;
            readable(rules).map_err(|error| error.to_string())?;
            Ok(spec)
        });
        let generation = object.metadata.generation.unwrap_or(0);
        let uid: Arc<str> = object.metadata.uid.as_deref().unwrap_or_default().into();
        let accepted = spec.as_ref().ok().map(|spec| (generation, spec.clone()));
        let created = object
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_millisecond());
        Some(Self {
            uid,
            generation,
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            created,
            parents: parents.into_iter().map(read).collect(),
            spec,
            accepted,
            status: object.data["status"]["parents"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        })
    }

    /// The last accepted generation stays in force.
    fn inherit(&mut self, before: &Self) {
        if self.accepted.is_none() && self.uid == before.uid {
            self.accepted.clone_from(&before.accepted);
        }
    }

    // Nobody looks at a route.
    fn touch(_state: &mut State, _key: &Key, _before: Option<&Self>, _now: Option<&Self>) {}

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        let item = Item::Events(Target::new(Kind::HttpRoute, key));
        let wanted = state
            .route_notice(key)
            .map(|notice| Wanted::Events(vec![notice]));
        output.desire(item, wanted.map(Entry::leader));
    }

    fn resources(state: &State, key: &Key) -> Resources {
        state.route_resources(key)
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        state.route_status(key)
    }
}

impl Route {
    /// Whether this name appears as a parent or a backend; namespaces are not compared, so it may be true too often.
    pub(super) fn mentions(&self, key: &Key) -> bool {
        let parent = self
            .parents
            .iter()
            .any(|(_, parent)| parent.as_ref().is_ok_and(|p| *p.name == *key.name));
        let backends = self
            .accepted
            .iter()
            .flat_map(|(_, spec)| &spec.rules)
            .flat_map(|rule| &rule.backend_refs);
        parent
            || backends
                .into_iter()
                .any(|backend| *backend.name == *key.name)
    }
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

// === impl State ===

impl State {
    fn attach(&self, route: &Key, parent: &ParentRef) -> Attachment {
        let group = parent.group.as_deref().unwrap_or(GROUP);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let key = Key::new(
            parent.namespace.as_deref().unwrap_or(&route.namespace),
            &parent.name,
        );
        match (group, kind) {
            // Such a route is for the clients of its own namespace alone (GEP-1294); for all of them it would be theft.
            ("" | "core", "Service") if key.namespace != route.namespace => Attachment::Refused {
                reason: "UnsupportedValue",
                message: format!(
                    "Service {key} is in another namespace: consumer routes are not supported"
                ),
            },
            ("" | "core", "Service") => self.attach_to_service(&key, parent),
            (GROUP, "Gateway") if self.waypoints.contains_key(&key) => Attachment::Refused {
                reason: "NotAllowedByListeners",
                message: format!("{key} is a waypoint: attach the route to a Service that uses it"),
            },
            _ => Attachment::Foreign,
        }
    }

    fn attach_to_service(&self, key: &Key, parent: &ParentRef) -> Attachment {
        let refused = |message| Attachment::Refused {
            reason: "NoMatchingParent",
            message,
        };
        let Some(service) = self.tables.services.get(key) else {
            return refused(format!("Service {key} does not exist"));
        };
        if service.alias || service.headless {
            return refused(format!(
                "Service {key} has no address of its own (headless or ExternalName)"
            ));
        }
        let named = match &parent.section_name {
            None => None,
            Some(name) => match service.ports.iter().find(|port| port.name == *name) {
                Some(port) => Some(port.port),
                None => return refused(format!("Service {key} has no TCP port named {name}")),
            },
        };
        let numbered = match parent.port {
            None => None,
            Some(number) => match u16::try_from(number)
                .ok()
                .and_then(|number| service.port(number))
            {
                Some(port) => Some(port.port),
                None => return refused(format!("Service {key} has no TCP port {number}")),
            },
        };
        let port = match (named, numbered) {
            (Some(named), Some(numbered)) if named != numbered => {
                return refused(format!(
                    "Service {key}: port {numbered} has another name than sectionName"
                ));
            }
            (named, numbered) => numbered.or(named).unwrap_or(0),
        };
        let waypoint = match self.service_binding(key, service) {
            Binding::Bound(gateway) => Ok(gateway),
            Binding::Unasked | Binding::OptedOut => Err(NoWaypoint::Unasked),
            Binding::Refused { message, .. } => Err(NoWaypoint::Refused(message)),
        };
        Attachment::Service {
            service: key.clone(),
            port,
            waypoint,
        }
    }

    fn resolve_backend(
        &self,
        route: &Key,
        backend: &HttpBackendRef,
    ) -> Result<ServicePort, Unresolved> {
        let kind = backend.kind.as_deref().unwrap_or("Service");
        let group = backend.group.as_deref().unwrap_or_default();
        if !matches!(group, "" | "core") || kind != "Service" {
            let message = format!("backend {group}/{kind} {} is not a Service", backend.name);
            return Err(Unresolved {
                reason: "InvalidKind",
                message,
            });
        }
        // Routes of the mesh need no ReferenceGrant (GEP-1294).
        let key = Key::new(
            backend.namespace.as_deref().unwrap_or(&route.namespace),
            &backend.name,
        );
        let missing = |message| {
            Err(Unresolved {
                reason: "BackendNotFound",
                message,
            })
        };
        let Some(service) = self
            .tables
            .services
            .get(&key)
            .filter(|service| !service.alias)
        else {
            return missing(format!("backend Service {key} does not exist"));
        };
        let Some(number) = backend.port else {
            return missing(format!("backend Service {key}: a port is needed"));
        };
        let Some(port) = u16::try_from(number)
            .ok()
            .and_then(|number| service.port(number))
        else {
            return missing(format!("backend Service {key} has no TCP port {number}"));
        };
        Ok(ServicePort {
            namespace: key.namespace.to_string(),
            hostname: self.hostname(&key),
            port: port.port.into(),
        })
    }

    /// The rules in force, and what in them does not resolve.
    fn rules(&self, key: &Key, spec: &HttpRouteSpec) -> (Vec<Rule>, Vec<Unresolved>) {
        let mut unresolved: Vec<Unresolved> = Vec::new();
        let rules = compile::rules(spec, |backend| {
            self.resolve_backend(key, backend)
                .inspect_err(|error| unresolved.push(error.clone()))
        });
        // What is refused never became `accepted`.
        (rules.unwrap_or_default(), unresolved)
    }

    fn route_resources(&self, key: &Key) -> Resources {
        let mut out = Resources::default();
        let Some(route) = self.tables.routes.get(key) else {
            return out;
        };
        let Some((_, spec)) = &route.accepted else {
            return out;
        };
        let mut parents: BTreeMap<Key, Vec<Parent>> = BTreeMap::new();
        for parent in &spec.parent_refs {
            let Attachment::Service {
                service,
                port,
                waypoint: Ok(waypoint),
            } = self.attach(key, parent)
            else {
                continue;
            };
            parents.entry(waypoint).or_default().push(Parent {
                namespace: service.namespace.to_string(),
                hostname: self.hostname(&service),
                port: port.into(),
            });
        }
        let (rules, _) = self.rules(key, spec);
        for (waypoint, parents) in parents {
            let message = WireRoute {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                created: route.created,
                parents,
                rules: rules.clone(),
            };
            let resource = Encoded::new(ROUTE_TYPE, &message);
            out.insert(Scope::Waypoint(waypoint), key.to_string().into(), resource);
        }
        out
    }

    fn route_status(&self, key: &Key) -> Option<Write> {
        let route = self.tables.routes.get(key)?;
        let (ours, others): (Vec<&Value>, Vec<&Value>) = route
            .status
            .iter()
            .partition(|entry| entry["controllerName"] == CONTROLLER_NAME);
        let target = Target {
            kind: Kind::HttpRoute,
            key: key.clone(),
        };
        let mut wanted = Vec::new();
        let mut notices = Vec::new();
        for (raw, parent) in route.parents.iter().filter(|_| !self.leaving) {
            let seen = ours.iter().find(|entry| entry["parentRef"] == *raw);
            let seen = seen.map_or(&Value::Null, |entry| &entry["conditions"]);
            let Some(conditions) = self.parent_conditions(key, route, parent) else {
                continue;
            };
            let json: Vec<Value> = conditions
                .iter()
                .map(|one| one.json(seen, Some(route.generation)))
                .collect();
            for condition in conditions.iter().filter(|condition| !condition.on) {
                let told = condition::find(seen, condition.kind).is_some_and(|seen| {
                    seen["status"] == "False" && seen["message"] == *condition.message
                });
                // What its Service's status says is told there.
                if !told && condition.reason != "WaypointNotBound" {
                    let notice = Notice {
                        target: target.clone(),
                        uid: route.uid.clone(),
                        warning: true,
                        reason: condition.reason.to_string(),
                        note: condition.message.clone(),
                    };
                    if !notices.contains(&notice) {
                        notices.push(notice);
                    }
                }
            }
            wanted.push(
                json!({"parentRef": raw, "controllerName": CONTROLLER_NAME, "conditions": json}),
            );
        }
        if ours.len() == wanted.len()
            && ours
                .iter()
                .zip(&wanted)
                .all(|(seen, wanted)| *seen == wanted)
        {
            return None;
        }
        let parents: Vec<Value> = others.into_iter().cloned().chain(wanted).collect();
        let mut body = target.patch(&route.uid);
        body["metadata"]["resourceVersion"] = json!(route.resource_version);
        body["status"]["parents"] = json!(parents);
        Some(Write {
            how: How::Merge,
            body,
            notices,
        })
    }

    /// A route whose parents cannot be read has no status that could say so.
    fn route_notice(&self, key: &Key) -> Option<Notice> {
        let route = self.tables.routes.get(key)?;
        let bad = route
            .parents
            .iter()
            .find_map(|(_, parent)| parent.as_ref().err());
        let error = match (&route.spec, bad) {
            (_, Some(error)) => format!("a parentRef cannot be read: {error}"),
            (Err(error), None) if route.parents.is_empty() => error.clone(),
            _ => return None,
        };
        Some(Notice {
            target: Target {
                kind: Kind::HttpRoute,
                key: key.clone(),
            },
            uid: route.uid.clone(),
            warning: true,
            reason: "UnsupportedValue".to_owned(),
            note: format!("generation {}: {error}", route.generation),
        })
    }

    /// `None`: not ours to say anything about.
    fn parent_conditions(
        &self,
        key: &Key,
        route: &Route,
        parent: &Result<ParentRef, String>,
    ) -> Option<Vec<Condition>> {
        let parent = parent.as_ref().ok()?;
        let attachment = self.attach(key, parent);
        if matches!(attachment, Attachment::Foreign) {
            return None;
        }
        let accepted = match (&route.spec, &attachment) {
            (_, Attachment::Refused { reason, message }) => {
                Condition::no("Accepted", *reason, &**message)
            }
            (Err(error), _) => {
                let kept = match &route.accepted {
                    Some((generation, _)) => format!("; generation {generation} stays in force"),
                    None => String::new(),
                };
                Condition::no("Accepted", "UnsupportedValue", format!("{error}{kept}"))
            }
            (Ok(_), _) => Condition::yes("Accepted", "Accepted", "the route is in force"),
        };
        let unresolved = route
            .accepted
            .as_ref()
            .map(|(_, spec)| self.rules(key, spec).1)
            .unwrap_or_default();
        let resolved = match unresolved.first() {
            None => Condition::yes("ResolvedRefs", "ResolvedRefs", "every backend exists"),
            Some(first) => {
                let messages: Vec<&str> = unresolved.iter().map(|one| &*one.message).collect();
                Condition::no("ResolvedRefs", first.reason, messages.join("; "))
            }
        };
        let mut conditions = vec![accepted, resolved];
        if let Attachment::Service {
            service, waypoint, ..
        } = &attachment
        {
            conditions.push(match waypoint {
                Ok(waypoint) => {
                    let message = format!("applied by waypoint {waypoint}");
                    Condition::yes("ResolvedWaypoints", "ResolvedWaypoints", message)
                }
                Err(NoWaypoint::Unasked) => {
                    let message = format!(
                        "Service {service} uses no waypoint (label istio.io/use-waypoint), so the route does nothing"
                    );
                    Condition::no("ResolvedWaypoints", "NoWaypoint", message)
                }
                Err(NoWaypoint::Refused(message)) => {
                    Condition::no("ResolvedWaypoints", "WaypointNotBound", format!("Service {service}: {message}"))
                }
            });
        }
        Some(conditions)
    }

    /// Marks the routes of a service whose waypoint changed.
    pub(super) fn touch_routes_of(&mut self, service: &Key) {
        let routes = self
            .tables
            .routes
            .iter()
            .filter(|(_, route)| route.mentions(service));
        let routes: Vec<Key> = routes.map(|(key, _)| key.clone()).collect();
        self.tables.routes.mark_each(routes);
    }
}
