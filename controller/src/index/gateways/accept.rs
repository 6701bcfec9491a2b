//! DECISION: can a waypoint be run from what a Gateway says, and who may use it?

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use super::super::names::HBONE_PORT;
use crate::gateway_api::{GatewaySpec, Listener};

/// The kinds of traffic a waypoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::index) struct Serves {
    pub(in crate::index) services: bool,
    pub(in crate::index) workloads: bool,
}

/// The namespaces that may use a waypoint.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::index) enum Allowed {
    Same,
    All,
    Selected(Selector),
}

/// Why a Gateway or one of its listeners is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Whether a waypoint can be run from this.
pub(super) fn accept(spec: &GatewaySpec) -> Result<&Listener, Refusal> {
    let refuse = |reason, message: &str| {
        Err(Refusal {
            reason,
            message: message.to_owned(),
        })
    };
    if spec
        .infrastructure
        .as_ref()
        .is_some_and(|infrastructure| infrastructure.parameters_ref.is_some())
    {
        return refuse(
            "InvalidParameters",
            "spec.infrastructure.parametersRef is not supported",
        );
    }
    if spec.tls.is_some() {
        return refuse(
            "Invalid",
            "spec.tls is not supported: a waypoint's clients come through tunnels",
        );
    }
    if !spec.addresses.is_empty() {
        return refuse(
            "UnsupportedAddress",
            "a waypoint's address is its Service's: leave spec.addresses empty",
        );
    }
    match spec
        .listeners
        .iter()
        .find(|listener| accept_listener(listener).is_ok())
    {
        Some(listener) => Ok(listener),
        None => refuse(
            "ListenersNotValid",
            "a waypoint needs a listener with protocol HBONE and port 15008",
        ),
    }
}

pub(super) fn accept_listener(listener: &Listener) -> Result<Allowed, Refusal> {
    let refuse = |reason, message| Err(Refusal { reason, message });
    if listener.protocol != "HBONE" {
        let message = format!(
            "protocol {} is not supported: a waypoint's listener speaks HBONE",
            listener.protocol
        );
        return refuse("UnsupportedProtocol", message);
    }
    if listener.port != i64::from(HBONE_PORT) {
        let message = format!(
            "port {} is not available: HBONE is spoken on {HBONE_PORT}",
            listener.port
        );
        return refuse("PortUnavailable", message);
    }
    let asked = [("tls", &listener.tls), ("filters", &listener.filters)];
    if let Some((field, _)) = asked.iter().find(|(_, asked)| asked.is_some()) {
        return refuse(
            "Invalid",
            format!("{field} is not supported on an HBONE listener"),
        );
    }
    let namespaces = listener
        .allowed_routes
        .as_ref()
        .and_then(|allowed| allowed.namespaces.as_ref());
    let Some(namespaces) = namespaces else {
        return Ok(Allowed::Same);
    };
    match namespaces.from.as_deref().unwrap_or("Same") {
        "Same" => Ok(Allowed::Same),
        "All" => Ok(Allowed::All),
        "Selector" => {
            let selector: LabelSelector = namespaces.selector.clone().unwrap_or_default();
            match selector.try_into() {
                Ok(selector) => Ok(Allowed::Selected(selector)),
                Err(_) => refuse(
                    "Invalid",
                    "allowedRoutes.namespaces.selector cannot be read".to_owned(),
                ),
            }
        }
        other => refuse(
            "Invalid",
            format!(
                "unknown value allowedRoutes.namespaces.from={other:?}; allowed: Same, All, Selector"
            ),
        ),
    }
}

// === impl Serves ===

impl Serves {
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (services, workloads) = match value {
            "service" => (true, false),
            "workload" => (false, true),
            "all" => (true, true),
            "none" => (false, false),
            _ => return None,
        };
        Some(Self {
            services,
            workloads,
        })
    }
}
