//! Which waypoint serves a service or a workload: labels, the object's before the namespace's, and the Gateway they name.

use kube::core::SelectorExt;
use mesh::proto::workload::{GatewayAddress, NamespacedHostname, gateway_address};

use super::State;
use super::gateways::Allowed;
use super::labels::Labels;
use super::names::{HBONE_PORT, Key, USE_WAYPOINT, USE_WAYPOINT_NAMESPACE};

/// How traffic is addressed: to a service, or to a pod itself. One never becomes the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Service,
    Workload,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Binding {
    /// No label names a waypoint.
    Unasked,
    /// The label says `none`.
    OptedOut,
    /// Through this Gateway's waypoint.
    Bound(Key),
    /// A label names a waypoint that does not serve it: plain L4, and a condition that says so.
    Refused {
        reason: &'static str,
        message: String,
    },
}

/// The Gateway that the labels of one object of this namespace name.
pub(super) fn asks_for(namespace: &str, labels: &Labels) -> Option<Key> {
    let name = labels.get(USE_WAYPOINT).filter(|name| !name.is_empty())?;
    let of = labels
        .get(USE_WAYPOINT_NAMESPACE)
        .map_or(namespace, |of| &**of);
    Some(Key::new(of, name))
}

// === impl State ===

impl State {
    /// The Gateway that labels name, whatever its state, and whether the namespace's label did.
    pub(super) fn asked(&self, namespace: &str, labels: &Labels) -> Option<(Key, bool)> {
        // An object's label is never completed by the namespace's.
        if let Some(gateway) = asks_for(namespace, labels) {
            return Some((gateway, false));
        }
        let labels = &self.tables.namespaces.named("", namespace)?.labels;
        asks_for(namespace, labels).map(|gateway| (gateway, true))
    }

    pub(super) fn binding(&self, namespace: &str, labels: &Labels, traffic: Traffic) -> Binding {
        let Some((gateway, inherited)) = self.asked(namespace, labels).filter(|_| !self.leaving)
        else {
            return Binding::Unasked;
        };
        if &*gateway.name == "none" {
            return Binding::OptedOut;
        }
        let refused = |reason, message| Binding::Refused { reason, message };
        let Some(waypoint) = self.waypoints.get(&gateway) else {
            return refused(
                "WaypointIsNotReady",
                format!(
                    "waypoint {gateway} does not exist, is not accepted, or its class is not ours"
                ),
            );
        };
        if !self.admits(&gateway, &waypoint.allowed, namespace) {
            let message =
                format!("waypoint {gateway} does not admit namespace {namespace} (allowedRoutes)");
            return refused("AttachmentDenied", message);
        }
        let serves = match traffic {
            Traffic::Service => waypoint.serves.services,
            Traffic::Workload => waypoint.serves.workloads,
        };
        if !serves {
            if inherited && traffic == Traffic::Workload {
                return Binding::Unasked;
            }
            let message = format!(
                "waypoint {gateway} is not for this kind of traffic (istio.io/waypoint-for)"
            );
            return refused("UnsupportedTrafficType", message);
        }
        if !waypoint.ready {
            let message =
                format!("waypoint {gateway} is not ready yet; traffic goes without it until it is");
            return refused("WaypointIsNotReady", message);
        }
        Binding::Bound(gateway)
    }

    fn admits(&self, gateway: &Key, allowed: &Allowed, namespace: &str) -> bool {
        match allowed {
            Allowed::Same => *gateway.namespace == *namespace,
            Allowed::All => true,
            Allowed::Selected(selector) => self
                .tables
                .namespaces
                .named("", namespace)
                .is_some_and(|namespace| selector.matches(&namespace.labels.to_map())),
        }
    }

    pub(super) fn waypoint_address(&self, gateway: &Key) -> GatewayAddress {
        let hostname = NamespacedHostname {
            namespace: gateway.namespace.to_string(),
            hostname: self.hostname(gateway),
        };
        GatewayAddress {
            destination: Some(gateway_address::Destination::Hostname(hostname)),
            hbone_mtls_port: HBONE_PORT.into(),
        }
    }
}
