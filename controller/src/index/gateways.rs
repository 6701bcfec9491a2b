//! GatewayClasses and Gateways that are ours: what runs for them, whom they serve, what their status says.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{DynamicObject, Selector};
use serde_json::{Value, json};

use super::State;
use super::changes::{How, Notice, Target, WaypointPlan, Write};
use super::condition::{self, Condition};
use super::kinds::{ApiKind, Kind, Watched};
use super::names::{CLASSES, CONTROLLER_NAME, HBONE_PORT, Key, WAYPOINT_FOR};
use super::output::Output;
use crate::desired::{Entry, Item, Wanted};
use crate::gateway_api::{self, GatewayClassSpec, GatewaySpec, Listener};

/// What matters of a GatewayClass.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Class {
    uid: Arc<str>,
    generation: Option<i64>,
    spec: Result<GatewayClassSpec, String>,
    waypoint_for: Option<String>,
    conditions: Value,
}

/// What matters of a Gateway.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gateway {
    uid: Arc<str>,
    generation: Option<i64>,
    spec: Result<GatewaySpec, String>,
    waypoint_for: Option<String>,
    deleting: bool,
    status: Value,
}

/// A Gateway of ours, as those who are bound to it see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waypoint {
    /// It has been ready once.
    pub(super) ready: bool,
    pub(super) serves: Serves,
    pub(super) allowed: Allowed,
}

/// The kinds of traffic a waypoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Serves {
    pub(super) services: bool,
    pub(super) workloads: bool,
}

/// The namespaces that may use a waypoint.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Allowed {
    Same,
    All,
    Selected(Selector),
}

/// Why a Gateway or one of its listeners is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    reason: &'static str,
    message: String,
}

// === impl Class ===

impl Watched for Class {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::gateway("GatewayClass", "gatewayclasses");

    fn parse(object: &DynamicObject) -> Option<Self> {
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation: object.metadata.generation,
            spec: gateway_api::read(&object.data["spec"]).map_err(|error| error.to_string()),
            waypoint_for: label(object, WAYPOINT_FOR),
            conditions: object.data["status"]["conditions"].clone(),
        })
    }

    fn touch(state: &mut State, key: &Key, _before: Option<&Self>, _now: Option<&Self>) {
        state.touch_class(&key.name);
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        if CLASSES.contains(&&*key.name) {
            let missing = state.missing_class(&key.name).then_some(Wanted::Class);
            let item = Item::Class(key.name.clone());
            output.desire(item, missing.map(Entry::leader));
        }
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        let class = state.tables.classes.get(key)?;
        class.status(key).filter(|_| !state.leaving)
    }
}

impl Class {
    pub(super) fn ours(&self) -> bool {
        self.spec
            .as_ref()
            .is_ok_and(|spec| spec.controller_name == CONTROLLER_NAME)
    }

    fn status(&self, key: &Key) -> Option<Write> {
        let spec = self.spec.as_ref().ok().filter(|_| self.ours())?;
        let condition = match spec.parameters_ref {
            None => Condition::yes(
                "Accepted",
                "Accepted",
                "Gateways of this class become waypoints",
            ),
            Some(_) => Condition::no(
                "Accepted",
                "InvalidParameters",
                "spec.parametersRef is not supported",
            ),
        };
        let wanted = condition.json(&self.conditions, self.generation);
        if condition::find(&self.conditions, "Accepted") == Some(&wanted) {
            return None;
        }
        let target = Target::new(Kind::GatewayClass, key);
        let mut body = target.patch(&self.uid);
        body["status"]["conditions"] = json!([wanted]);
        let notices = if condition.on {
            Vec::new()
        } else {
            vec![notice(target, &self.uid, &condition)]
        };
        Some(Write {
            how: How::Apply,
            body,
            notices,
        })
    }
}

// === impl Gateway ===

impl Watched for Gateway {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::gateway("Gateway", "gateways");

    fn parse(object: &DynamicObject) -> Option<Self> {
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation: object.metadata.generation,
            spec: gateway_api::read(&object.data["spec"]).map_err(|error| error.to_string()),
            waypoint_for: label(object, WAYPOINT_FOR),
            deleting: object.metadata.deletion_timestamp.is_some(),
            status: object.data["status"].clone(),
        })
    }

    // Whoever looks at a Gateway looks at what is derived from it.
    fn touch(_state: &mut State, _key: &Key, _before: Option<&Self>, _now: Option<&Self>) {}

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        state.plan(key, output);
        let waypoint = state.waypoint(key);
        if state.waypoints.get(key) != waypoint.as_ref() {
            match waypoint {
                Some(waypoint) => state.waypoints.insert(key.clone(), waypoint),
                None => state.waypoints.remove(key),
            };
            state.touch_bound(key);
        }
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        state.gateway_status(key)
    }
}

impl Gateway {
    /// The class that it names, even if the rest of it cannot be read.
    pub(super) fn class(&self) -> Option<&str> {
        self.spec
            .as_ref()
            .ok()
            .map(|spec| spec.gateway_class_name.as_str())
    }

    fn had_address(&self) -> bool {
        self.status["addresses"]
            .as_array()
            .is_some_and(|addresses| !addresses.is_empty())
    }
}

/// Whether a waypoint can be run from this.
fn accept(spec: &GatewaySpec) -> Result<&Listener, Refusal> {
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

fn accept_listener(listener: &Listener) -> Result<Allowed, Refusal> {
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
            format!("allowedRoutes.namespaces.from={other} means nothing"),
        ),
    }
}

impl Serves {
    fn parse(value: &str) -> Option<Self> {
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

// === impl State ===

impl State {
    /// The Gateway's class, if it is ours.
    fn our_class(&self, gateway: &Gateway) -> Option<&Arc<Class>> {
        self.tables
            .classes
            .named("", gateway.class()?)
            .filter(|class| class.ours())
    }

    /// What is to run for a Gateway. A Gateway that has become wrong keeps what it has.
    fn waypoint_plan(&self, key: &Key, before: Option<&WaypointPlan>) -> Option<WaypointPlan> {
        let gateway = self
            .tables
            .gateways
            .get(key)
            .filter(|gateway| !gateway.deleting && !self.leaving)?;
        self.our_class(gateway)?;
        let before = before.filter(|plan| plan.uid == gateway.uid);
        let Ok(spec) = &gateway.spec else {
            return before.cloned();
        };
        if accept(spec).is_err() {
            return before.cloned();
        }
        let passed_on = spec.infrastructure.clone().unwrap_or_default();
        Some(WaypointPlan {
            uid: gateway.uid.clone(),
            class: spec.gateway_class_name.as_str().into(),
            labels: passed_on.labels,
            annotations: passed_on.annotations,
        })
    }

    /// Keeps the plan, and the table of desired state, as the Gateway says.
    fn plan(&mut self, key: &Key, output: &mut Output) {
        let before = self.plans.remove(key);
        let plan = self.waypoint_plan(key, before.as_ref());
        if let Some(plan) = &plan {
            self.plans.insert(key.clone(), plan.clone());
        }
        let item = Item::Waypoint(key.clone());
        let wanted = match plan {
            Some(plan) => Some(Wanted::Waypoint(plan)),
            None => self.unwanted_waypoint(key, output.desired(&item)),
        };
        output.desire(item, wanted.map(Entry::leader));
    }

    /// What was made for a Gateway that is gone goes with it: it is the owner. One that stays and is no longer ours is to
    /// lose it.
    fn unwanted_waypoint(&self, key: &Key, before: Option<&Wanted>) -> Option<Wanted> {
        let gateway = self.tables.gateways.get(key)?;
        let made_for = match before? {
            Wanted::Waypoint(plan) => &plan.uid,
            Wanted::NoWaypoint { gateway_uid } => gateway_uid,
            _ => return None,
        };
        (*made_for == gateway.uid).then(|| Wanted::NoWaypoint {
            gateway_uid: made_for.clone(),
        })
    }

    /// What those who are bound to it see.
    fn waypoint(&self, key: &Key) -> Option<Waypoint> {
        let gateway = self
            .tables
            .gateways
            .get(key)
            .filter(|gateway| !gateway.deleting && !self.leaving)?;
        let class = self.our_class(gateway)?;
        let ready = gateway.had_address() || !self.addresses(key).is_empty();
        let spec = gateway.spec.as_ref().ok();
        let listener = spec.and_then(|spec| accept(spec).ok()).map(accept_listener);
        let before = self.waypoints.get(key).map(|before| before.allowed.clone());
        let allowed = match listener {
            Some(Ok(allowed)) => allowed,
            // What was bound while the Gateway could be read stays bound; so it does after our restart.
            _ if ready => before.unwrap_or(Allowed::Same),
            _ => return None,
        };
        let serves = self.serves(gateway, class).unwrap_or(Serves {
            services: true,
            workloads: false,
        });
        Some(Waypoint {
            ready,
            serves,
            allowed,
        })
    }

    fn serves(&self, gateway: &Gateway, class: &Class) -> Result<Serves, Refusal> {
        let value = gateway
            .waypoint_for
            .as_deref()
            .or(class.waypoint_for.as_deref())
            .unwrap_or("service");
        Serves::parse(value).ok_or_else(|| Refusal {
            reason: "Invalid",
            message: format!("label {WAYPOINT_FOR}={value:?} means nothing; taken as \"service\""),
        })
    }

    /// The addresses of a waypoint that has a Service and a ready pod.
    fn addresses(&self, key: &Key) -> Vec<Value> {
        let Some(service) = self
            .tables
            .services
            .get(key)
            .filter(|_| self.ready_pods(key) > 0)
        else {
            return Vec::new();
        };
        if service.vips.is_empty() {
            return Vec::new();
        }
        let ips = service
            .vips
            .iter()
            .map(|ip| json!({"type": "IPAddress", "value": ip.to_string()}));
        std::iter::once(json!({"type": "Hostname", "value": self.hostname(key)}))
            .chain(ips)
            .collect()
    }

    fn ready_pods(&self, gateway: &Key) -> usize {
        self.tables
            .pods
            .within(&gateway.namespace)
            .filter(|(_, pod)| {
                pod.healthy
                    && pod
                        .names_gateway()
                        .is_some_and(|name| **name == *gateway.name)
            })
            .count()
    }

    /// Marks everything that looks at a class: its Gateways.
    fn touch_class(&mut self, name: &Arc<str>) {
        let of_class = self
            .tables
            .gateways
            .iter()
            .filter(|(_, gateway)| gateway.class() == Some(name));
        let gateways: Vec<Key> = of_class.map(|(key, _)| key.clone()).collect();
        self.tables.gateways.mark_each(gateways);
    }

    /// Marks everything that is bound, or asks to be, to a Gateway.
    fn touch_bound(&mut self, gateway: &Key) {
        let asks = |namespace: &str, labels: &BTreeMap<String, String>| {
            self.asked(namespace, labels)
                .is_some_and(|(asked, _)| asked == *gateway)
        };
        let services: Vec<Key> = self
            .tables
            .services
            .iter()
            .filter(|(key, service)| asks(&key.namespace, &service.labels))
            .map(|(key, _)| key.clone())
            .collect();
        let pods: Vec<Key> = self
            .tables
            .pods
            .iter()
            .filter(|(key, pod)| asks(&key.namespace, &pod.labels))
            .map(|(key, _)| key.clone())
            .collect();
        self.tables.services.mark_each(services);
        self.tables.pods.mark_each(pods);
    }

    /// Whether this class of ours does not exist; one of its name with another controller is left alone.
    fn missing_class(&self, name: &str) -> bool {
        !self.leaving && self.tables.classes.named("", name).is_none()
    }
}

fn notice(target: Target, uid: &Arc<str>, condition: &Condition) -> Notice {
    Notice {
        target,
        uid: uid.clone(),
        warning: !condition.on,
        reason: condition.reason.to_string(),
        note: condition.message.clone(),
    }
}

fn label(object: &DynamicObject, name: &str) -> Option<String> {
    object.metadata.labels.as_ref()?.get(name).cloned()
}
