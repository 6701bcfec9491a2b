//! What a route's parents are: a Service with its waypoint, or why nothing comes of it.

use mesh::proto::workload::AppProtocol;

use super::super::State;
use super::super::binding::Binding;
use super::super::names::Key;
use super::super::services::Service;
use crate::gateway_api::{GROUP, ParentRef};

/// Reason of a parent that names a Service, or a port of one, that is not there.
const NO_MATCHING_PARENT: &str = "NoMatchingParent";

/// One parent, looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attachment {
    /// A Service, with its waypoint or why it has none.
    Service {
        service: Key,
        /// At one port; 0: at all.
        port: u16,
        waypoint: Result<Key, NoWaypoint>,
        /// Ports of those that are meant which cannot carry the route.
        idle_ports: Vec<String>,
    },
    /// It cannot be attached to.
    Refused {
        reason: &'static str,
        message: String,
    },
    /// Not the mesh's business.
    Foreign,
}

/// Why the traffic of a Service does not go through a waypoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoWaypoint {
    /// Nobody asked for one.
    Unasked,
    /// The Service's own status says it.
    Refused(String),
}

/// What a kind of route needs of a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct RouteKind {
    /// `HTTPRoute`
    pub(super) name: &'static str,
    /// Whether a port on which this is spoken can carry it.
    pub(super) carried_by: fn(AppProtocol) -> bool,
}

// === impl Attachment ===

impl Attachment {
    /// Whether the Service, or the port, may come.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if *reason == NO_MATCHING_PARENT)
    }
}

// === impl State ===

impl State {
    pub(super) fn attach(&self, kind: RouteKind, route: &Key, parent: &ParentRef) -> Attachment {
        let group = parent.group.as_deref().unwrap_or(GROUP);
        let named = parent.kind.as_deref().unwrap_or("Gateway");
        let key = parent_key(route, parent);
        match (group, named) {
            // Such a route is for the clients of its own namespace alone (GEP-1294): applied at the waypoint it would
            // override the producer's routing for every client.
            ("" | "core", "Service") if key.namespace != route.namespace => Attachment::Refused {
                reason: "UnsupportedValue",
                message: format!(
                    "Service {key} is in another namespace: consumer routes are not supported"
                ),
            },
            ("" | "core", "Service") => self.attach_to_service(kind, &key, parent),
            (GROUP, "Gateway") if self.waypoints.contains_key(&key) => Attachment::Refused {
                reason: "NotAllowedByListeners",
                message: format!("{key} is a waypoint: attach the route to a Service that uses it"),
            },
            _ => Attachment::Foreign,
        }
    }

    fn attach_to_service(&self, kind: RouteKind, key: &Key, parent: &ParentRef) -> Attachment {
        let refused = |message| Attachment::Refused {
            reason: NO_MATCHING_PARENT,
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
        let port = match port(key, service, parent) {
            Ok(port) => port,
            Err(message) => return refused(message),
        };
        let meant = service
            .ports
            .iter()
            .filter(|one| port == 0 || one.port == port);
        let (fit, idle): (Vec<_>, Vec<_>) = meant.partition(|one| (kind.carried_by)(one.protocol));
        let idle_ports: Vec<String> = idle
            .iter()
            .map(|one| format!("{} ({})", one.port, protocol(one.protocol)))
            .collect();
        if fit.is_empty() && !idle_ports.is_empty() {
            return refused(format!(
                "Service {key}: {} has no effect on port {}, by its appProtocol or name",
                kind.name,
                idle_ports.join(", ")
            ));
        }
        let waypoint = match self.service_binding(key, service) {
            Binding::Bound(gateway) => Ok(gateway),
            Binding::Unasked | Binding::OptedOut => Err(NoWaypoint::Unasked),
            Binding::Refused { message, .. } => Err(NoWaypoint::Refused(message)),
        };
        Attachment::Service {
            service: key.clone(),
            port,
            waypoint,
            idle_ports,
        }
    }
}

/// The object that a parentRef names.
pub(super) fn parent_key(route: &Key, parent: &ParentRef) -> Key {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    Key::new(namespace, &parent.name)
}

/// The port that is meant; 0: all.
fn port(key: &Key, service: &Service, parent: &ParentRef) -> Result<u16, String> {
    if let Some(refusal) = service.ports.refusal() {
        return Err(format!("Service {key} {refusal}"));
    }
    let named = match &parent.section_name {
        None => None,
        Some(name) => match service.ports.iter().find(|port| port.name == *name) {
            Some(port) => Some(port.port),
            None => return Err(format!("Service {key} has no TCP port named {name}")),
        },
    };
    let numbered = match parent.port {
        None => None,
        Some(number) => {
            let port = u16::try_from(number)
                .ok()
                .and_then(|number| service.port(number));
            match port {
                Some(port) => Some(port.port),
                None => return Err(format!("Service {key} has no TCP port {number}")),
            }
        }
    };
    match (named, numbered) {
        (Some(named), Some(numbered)) if named != numbered => Err(format!(
            "Service {key}: port {numbered} has another name than sectionName"
        )),
        (named, numbered) => Ok(numbered.or(named).unwrap_or(0)),
    }
}

fn protocol(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Unknown => "unknown",
        AppProtocol::Http11 => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Grpc => "grpc",
        AppProtocol::Tls => "tls",
        AppProtocol::Tcp => "tcp",
    }
}
