//! Gateways that are ours: what runs for them, whom they serve, what their status says.

mod accept;
pub(super) mod class;
mod naming;
mod passed_on;
mod status;

use std::sync::Arc;

use kube::core::DynamicObject;
use serde_json::{Value, json};

pub(super) use self::accept::{Allowed, Serves};
use self::accept::{Refusal, accept, accept_listener};
pub(super) use self::class::Class;
use self::passed_on::{PassedOn, passed_on};
use super::State;
use super::accepted::Accepted;
use super::changes::{Notice, Target, WaypointPlan, Write};
use super::condition::Condition;
use super::kinds::{ApiKind, Kind, Watched};
use super::lookup::Says;
use super::names::{CLASSES, Key, WAYPOINT_FOR};
use super::output::Output;
use crate::gateway_api::{self, GatewaySpec, Listener};
use crate::index::desired::{Entry, Item, Wanted};

/// What matters of a Gateway.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gateway {
    uid: Arc<str>,
    generation: Option<i64>,
    /// Read on its own: a Gateway that cannot be read is still ours, and says so.
    class: Option<String>,
    listeners: Vec<Listener>,
    /// Why the generation that is written is refused.
    refused: Option<Refusal>,
    /// The newest generation that was not, as far as this replica has seen.
    seen: Option<Accepted<GatewaySpec>>,
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

/// What is to become of a Gateway's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    /// This is to run.
    Run(WaypointPlan),
    /// Nothing is begun, and what runs is left alone.
    Leave,
    /// What was made for it is to go.
    Remove,
}

// === impl Gateway ===

impl Says<Arc<str>> for Gateway {
    /// Its class.
    fn says(&self, _key: &Key) -> impl Iterator<Item = Arc<str>> {
        self.class().map(Into::into).into_iter()
    }
}

impl Watched for Gateway {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::gateway("Gateway", "gateways");

    fn parse(object: &DynamicObject) -> Option<Self> {
        let raw = &object.data["spec"];
        let read = gateway_api::read::<GatewaySpec>(raw);
        let refused = match &read {
            Ok(spec) => accept(spec).err(),
            Err(error) => Some(Refusal {
                reason: "Invalid",
                message: format!("the Gateway cannot be read: {error}"),
            }),
        };
        let spec = read.ok();
        let listeners = spec.as_ref().map(|spec| spec.listeners.clone());
        let generation = object.metadata.generation;
        let accepted = spec.filter(|_| refused.is_none());
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation,
            class: raw["gatewayClassName"].as_str().map(ToOwned::to_owned),
            listeners: listeners.unwrap_or_default(),
            refused,
            seen: accepted.map(|spec| Accepted::new(generation.unwrap_or(0), spec, raw)),
            waypoint_for: label(object, WAYPOINT_FOR),
            deleting: object.metadata.deletion_timestamp.is_some(),
            status: object.data["status"].clone(),
        })
    }

    /// The last accepted generation stays in force.
    fn inherit(&mut self, before: &Self) {
        if self.seen.is_none() && self.uid == before.uid {
            self.seen.clone_from(&before.seen);
        }
    }

    // Whoever looks at a Gateway looks at what is derived from it.
    fn touch(_state: &mut State, _key: &Key, _before: Option<&Self>, _now: Option<&Self>) {}

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        state.settle_plan(key, output);
        state.keep_gateway(key);
        if state.settle_our_gateway(key) {
            state.touch_instance_pods(key);
        }
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
    /// The class that it names.
    pub(super) fn class(&self) -> Option<&str> {
        self.class.as_deref()
    }

    fn had_address(&self) -> bool {
        self.status["addresses"]
            .as_array()
            .is_some_and(|addresses| !addresses.is_empty())
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

    /// Whether a Gateway names a class of another controller, or one that nobody makes; ours may only be missing.
    fn is_anothers(&self, gateway: &Gateway) -> bool {
        self.our_class(gateway).is_none() && !gateway.class().is_some_and(is_ours)
    }

    /// A Gateway that is there, stays, and is ours.
    fn our_live_gateway(&self, key: &Key) -> Option<(&Arc<Gateway>, &Arc<Class>)> {
        let gateway = self.tables.gateways.get(key)?;
        let live = !gateway.deleting && !self.leaving;
        Some((gateway, self.our_class(gateway).filter(|_| live)?))
    }

    /// The generation that counts: the one that is written, or, while that is refused, the last one that was not.
    fn gateway_in_force(&self, key: &Key, gateway: &Gateway) -> Option<Accepted<GatewaySpec>> {
        if gateway.refused.is_none() {
            return gateway.seen.clone();
        }
        let target = Target::new(Kind::Gateway, key);
        self.last_accepted(&target, &gateway.uid, gateway.seen.as_ref())
    }

    fn keep_gateway(&mut self, key: &Key) {
        let target = Target::new(Kind::Gateway, key);
        let gateway = self
            .our_live_gateway(key)
            .map(|(gateway, _)| gateway.clone());
        let kept = gateway.and_then(|gateway| {
            let accepted = self.gateway_in_force(key, &gateway)?;
            Some((gateway.uid.clone(), accepted))
        });
        self.keep(
            &target,
            kept.as_ref().map(|(uid, accepted)| (uid, accepted)),
        );
    }

    /// Whether the Gateway has come to be ours, or another one's.
    fn settle_our_gateway(&mut self, key: &Key) -> bool {
        let gateway = self.tables.gateways.get(key);
        let uid = gateway
            .filter(|gateway| self.our_class(gateway).is_some())
            .map(|gateway| gateway.uid.clone());
        let before = self.our_gateways.get(key);
        if before == uid.as_ref() {
            return false;
        }
        match uid {
            Some(uid) => self.our_gateways.insert(key.clone(), uid),
            None => self.our_gateways.remove(key),
        };
        true
    }

    /// Why objects of this name cannot be made for the Gateway.
    fn name_refused(&self, key: &Key, gateway: &Gateway) -> Option<Refusal> {
        let taken = self.taken(key, &gateway.uid).map(|kind| {
            format!(
                "a {kind} {key} is there that was not made for this Gateway: rename one of them"
            )
        });
        naming::unfit(&key.name).or(taken).map(|message| Refusal {
            reason: "Invalid",
            message,
        })
    }

    /// What is to run for a Gateway. A Gateway that has become wrong keeps what it has.
    fn plan(&self, key: &Key) -> Plan {
        let Some((gateway, _)) = self.our_live_gateway(key) else {
            return Plan::Remove;
        };
        if self.name_refused(key, gateway).is_some() {
            return Plan::Leave;
        }
        let Some(accepted) = self.gateway_in_force(key, gateway) else {
            return Plan::Leave;
        };
        let PassedOn {
            labels,
            annotations,
            ..
        } = self.passed_on(&accepted.spec);
        Plan::Run(WaypointPlan {
            uid: gateway.uid.clone(),
            class: accepted.spec.gateway_class_name.as_str().into(),
            labels,
            annotations,
            unlabelled: self.unlabelled(key, &gateway.uid),
        })
    }

    fn passed_on(&self, spec: &GatewaySpec) -> PassedOn {
        let more = &self.settings.passed_on_prefixes;
        passed_on(spec.infrastructure.as_ref(), more)
    }

    /// Keeps the plan, and the table of desired state, as the Gateway says.
    fn settle_plan(&mut self, key: &Key, output: &mut Output) {
        let item = Item::Waypoint(key.clone());
        let wanted = match self.plan(key) {
            Plan::Run(plan) => {
                self.plans.insert(key.clone(), plan.clone());
                Some(Wanted::Waypoint(plan))
            }
            // Roots stay readable where something may run.
            Plan::Leave => None,
            Plan::Remove => {
                self.plans.remove(key);
                self.unwanted_waypoint(key)
            }
        };
        output.desire(item, wanted.map(Entry::leader));
    }

    /// What was made for a Gateway that is gone goes with it: it is the owner. One that stays and is no longer ours is to
    /// lose it, whoever made it; not while our class is only missing.
    fn unwanted_waypoint(&self, key: &Key) -> Option<Wanted> {
        let gateway = self.tables.gateways.get(key)?;
        if !self.is_anothers(gateway) && !gateway.deleting && !self.leaving {
            return None;
        }
        let made = self.made_for(key, &gateway.uid);
        made.then(|| Wanted::NoWaypoint {
            gateway_uid: gateway.uid.clone(),
        })
    }

    /// What those who are bound to it see.
    fn waypoint(&self, key: &Key) -> Option<Waypoint> {
        let (gateway, class) = self.our_live_gateway(key)?;
        let ready = gateway.had_address() || !self.addresses(key).is_empty();
        let accepted = self.gateway_in_force(key, gateway);
        let listener = accepted.as_ref().and_then(|one| accept(&one.spec).ok());
        let allowed = match listener.map(accept_listener) {
            Some(Ok(allowed)) => allowed,
            // It was ready, so it was accepted before anything was kept: what is bound stays bound.
            _ if ready => Allowed::Same,
            _ => return None,
        };
        if !ready && self.name_refused(key, gateway).is_some() {
            return None;
        }
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
            message: format!(
                "unknown value {WAYPOINT_FOR}={value:?}; allowed: service, workload, all, none. It is treated as service"
            ),
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
        let pods = self.tables.pods.lookup().instances(gateway);
        let ready = pods.filter(|key| {
            let pod = self.tables.pods.get(key);
            pod.is_some_and(|pod| {
                pod.healthy && self.waypoint_of(key, pod).as_ref() == Some(gateway)
            })
        });
        ready.count()
    }

    /// Marks everything that looks at a class: its Gateways.
    fn touch_class(&mut self, name: &str) {
        let gateways = self.tables.gateways.lookup().get(name);
        let gateways: Vec<Key> = gateways.cloned().collect();
        self.tables.gateways.mark_each(gateways);
    }

    /// Marks everything that is bound, or asks to be, to a Gateway.
    fn touch_bound(&mut self, gateway: &Key) {
        let services = self.tables.services.lookup().asking(gateway);
        let services: Vec<Key> = services.cloned().collect();
        let pods = self.tables.pods.lookup().asking(gateway);
        let pods: Vec<Key> = pods.cloned().collect();
        let namespaces = self.tables.namespaces.lookup().get(gateway);
        let namespaces: Vec<Key> = namespaces.cloned().collect();
        self.tables.services.mark_each(services);
        self.tables.pods.mark_each(pods);
        for namespace in namespaces {
            self.tables.services.mark_within(&namespace.name);
            self.tables.pods.mark_within(&namespace.name);
        }
    }

    /// Whether this class of ours does not exist; one of its name with another controller is left alone.
    fn missing_class(&self, name: &str) -> bool {
        !self.leaving && self.tables.classes.named("", name).is_none()
    }
}

/// Whether a class of this name is made by us.
fn is_ours(class: &str) -> bool {
    CLASSES.contains(&class)
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
