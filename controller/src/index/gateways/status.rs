//! What a Gateway's status says: of itself, and of each of its listeners.

use serde_json::{Value, json};

use super::super::State;
use super::super::changes::{ConditionsAt, How, Notice, Target, Write};
use super::super::condition::{Condition, Conditions, Seen, Status};
use super::super::kinds::Kind;
use super::super::names::{Key, MANAGED, MANAGED_BY_US};
use super::accept::{Refusal, accept_listener};
use super::{Class, Gateway, notice};
use crate::gateway_api::Listener;

/// The types of our conditions, of a Gateway and of its listeners.
const OURS: [&str; 4] = ["Accepted", "Programmed", "ResolvedRefs", "Conflicted"];

/// What `Programmed` says, and by which our word is known when the Gateway has come to be another's.
const REFUSED: &str = "the Gateway is not accepted; what ran before is left running";
const NO_ADDRESS: &str = "the waypoint's Service has no address yet";
const NO_POD: &str = "no pod of the waypoint is ready";
const READY: &str = "the waypoint is ready";
/// The end of what it says of objects without our label.
const UNLABELLED: &str = "what runs is left running, and cannot be repaired or updated: put the label back, or delete the object, which is then made anew";

/// What is said of one listener.
struct ListenerStatus {
    name: String,
    conditions: Vec<Condition>,
}

// === impl ListenerStatus ===

impl ListenerStatus {
    /// Without its conditions. Routes attach to Services, so a listener has none and takes none.
    fn head(&self) -> Value {
        json!({"name": self.name, "supportedKinds": [], "attachedRoutes": 0})
    }
}

// === impl State ===

impl State {
    pub(in crate::index) fn gateway_status(&self, key: &Key) -> Option<Write> {
        let gateway = self
            .tables
            .gateways
            .get(key)
            .filter(|gateway| !gateway.deleting)?;
        let target = Target::new(Kind::Gateway, key);
        let mut body = target.patch(&gateway.uid);
        let withdrawn = |body| Write {
            how: How::Apply,
            body,
            conditions: Vec::new(),
            notices: Vec::new(),
        };
        let Some(class) = self.our_class(gateway) else {
            let left = self.is_anothers(gateway) && says_ours(gateway);
            return left.then(|| withdrawn(body));
        };
        if self.leaving {
            // The API server gives a Gateway without status conditions that are unknown.
            let seen = Conditions::read(&["Accepted"], &gateway.status["conditions"]);
            let seen = seen.find("Accepted");
            let ours = seen.is_some_and(|seen| seen.status() != Status::Unknown);
            return ours.then(|| withdrawn(body));
        }
        let conditions = self.gateway_conditions(key, gateway, class);
        let seen = Conditions::read(&OURS, &gateway.status["conditions"]);
        let conditions = conditions.into_iter();
        let wanted: Vec<Condition> = conditions
            .map(|condition| condition.after(&seen, gateway.generation))
            .collect();
        let listeners = listener_statuses(gateway);
        let fresh = self.addresses(key);
        let addresses = if fresh.is_empty() {
            gateway.status["addresses"].clone()
        } else {
            json!(fresh)
        };
        let stand = |wanted: &Condition| {
            let seen = seen.find(wanted.kind);
            seen.is_some_and(|seen| wanted.stands(seen))
        };
        let same = wanted.iter().all(stand)
            && same_listeners(&listeners, &gateway.status["listeners"])
            && gateway.status["addresses"] == addresses;
        if same {
            return None;
        }
        let notices = wanted
            .iter()
            .filter(|wanted| worth_telling(wanted, seen.find(wanted.kind)))
            .map(|wanted| notice(target.clone(), &gateway.uid, wanted))
            .chain(listener_notices(&target, gateway, &listeners))
            .collect();
        body["status"] = json!({});
        if !addresses.is_null() {
            body["status"]["addresses"] = addresses;
        }
        Some(Write {
            how: How::Apply,
            conditions: conditions_into(&mut body, wanted, listeners),
            body,
            notices,
        })
    }

    fn gateway_conditions(&self, key: &Key, gateway: &Gateway, class: &Class) -> Vec<Condition> {
        let by_name = self.name_refused(key, gateway);
        let refused = gateway.refused.clone().or(by_name);
        let accepted = match &refused {
            Some(Refusal { reason, message }) => {
                let kept = self.gateway_in_force(key, gateway);
                let kept = kept.filter(|_| gateway.refused.is_some());
                let kept = kept.map_or(String::new(), |kept| {
                    format!("; generation {} stays in force", kept.generation)
                });
                Condition::no("Accepted", *reason, format!("{message}{kept}"))
            }
            None => {
                let dropped = gateway.seen.as_ref();
                let dropped = dropped.and_then(|seen| self.passed_on(&seen.spec).sentence());
                let serves = self
                    .serves(gateway, class)
                    .err()
                    .map(|refusal| refusal.message);
                let sentences = ["a waypoint runs for this Gateway".to_owned()]
                    .into_iter()
                    .chain(serves)
                    .chain(dropped);
                let message = sentences.collect::<Vec<_>>().join("; ");
                Condition::yes("Accepted", "Accepted", message)
            }
        };
        let ready = self.ready_pods(key);
        let service = self
            .tables
            .services
            .get(key)
            .is_some_and(|service| !service.vips.is_empty());
        let unlabelled = self.unlabelled(key, &gateway.uid);
        let programmed = if refused.is_some() {
            Condition::no("Programmed", "Invalid", REFUSED)
        } else if !unlabelled.is_empty() {
            let message = unlabelled_message(key, &unlabelled);
            Condition::no("Programmed", "LabelMissing", message)
        } else if !service {
            Condition::no("Programmed", "AddressNotAssigned", NO_ADDRESS)
        } else if ready == 0 {
            Condition::no("Programmed", "Pending", NO_POD)
        } else {
            Condition::yes("Programmed", "Programmed", READY)
        };
        vec![accepted, programmed]
    }
}

/// Whether what is said of a Gateway now is what we said.
fn says_ours(gateway: &Gateway) -> bool {
    let seen = Conditions::read(&["Programmed"], &gateway.status["conditions"]);
    let seen = seen.find("Programmed");
    let ours = |message: &str| {
        [REFUSED, NO_ADDRESS, NO_POD, READY].contains(&message) || message.ends_with(UNLABELLED)
    };
    seen.is_some_and(|seen| ours(seen.message()))
}

/// Which objects lost our label, and what to do.
fn unlabelled_message(key: &Key, kinds: &[&str]) -> String {
    let objects: Vec<String> = kinds.iter().map(|kind| format!("{kind} {key}")).collect();
    let objects = objects.join(" and ");
    format!("{objects}: label {MANAGED}={MANAGED_BY_US} is missing; {UNLABELLED}")
}

fn listener_statuses(gateway: &Gateway) -> Vec<ListenerStatus> {
    let before = &gateway.status["listeners"];
    let status = |listener: &Listener| {
        let seen = listener_conditions(before, &listener.name);
        let conditions = match accept_listener(listener) {
            Ok(_) => vec![
                Condition::yes("Accepted", "Accepted", "tunnels arrive here"),
                Condition::yes("Programmed", "Programmed", "tunnels arrive here"),
                Condition::yes(
                    "ResolvedRefs",
                    "ResolvedRefs",
                    "the listener refers to no other object",
                ),
                Condition::no("Conflicted", "NoConflicts", "no conflicting listener"),
            ],
            Err(refusal) => vec![
                Condition::no("Accepted", refusal.reason, &*refusal.message),
                Condition::no("Programmed", "Invalid", "the listener is not accepted"),
                Condition::yes(
                    "ResolvedRefs",
                    "ResolvedRefs",
                    "the listener refers to no other object",
                ),
                Condition::no("Conflicted", "NoConflicts", "no conflicting listener"),
            ],
        };
        let conditions = conditions.into_iter();
        ListenerStatus {
            name: listener.name.clone(),
            conditions: conditions
                .map(|one| one.after(&seen, gateway.generation))
                .collect(),
        }
    };
    gateway.listeners.iter().map(status).collect()
}

/// Puts the listeners into a patch, and says which conditions belong where in it.
fn conditions_into(
    body: &mut Value,
    of_gateway: Vec<Condition>,
    listeners: Vec<ListenerStatus>,
) -> Vec<ConditionsAt> {
    body["status"]["listeners"] = listeners.iter().map(ListenerStatus::head).collect();
    let places = listeners.into_iter().enumerate();
    let places = places.map(|(at, listener)| ConditionsAt {
        within: format!("/status/listeners/{at}"),
        conditions: listener.conditions,
    });
    [ConditionsAt::status(of_gateway)]
        .into_iter()
        .chain(places)
        .collect()
}

/// What the status has of the listener of this name.
fn listener_conditions(listeners: &Value, name: &str) -> Conditions {
    let mut all = listeners.as_array().into_iter().flatten();
    let seen = all.find(|seen| seen["name"] == *name);
    Conditions::read(&OURS, seen.map_or(&Value::Null, |seen| &seen["conditions"]))
}

/// Whether the status has these listeners, in this order, as they would be written.
fn same_listeners(wanted: &[ListenerStatus], seen: &Value) -> bool {
    let Some(seen) = seen.as_array() else {
        return false;
    };
    let same = |(wanted, seen): (&ListenerStatus, &Value)| {
        let mut head = seen.clone();
        let conditions = head["conditions"].take();
        let number = conditions.as_array().map_or(0, Vec::len);
        let mut of_head = wanted.head();
        of_head["conditions"] = Value::Null;
        head == of_head
            && number == wanted.conditions.len()
            && Conditions::read(&OURS, &conditions).are(&wanted.conditions)
    };
    seen.len() == wanted.len() && wanted.iter().zip(seen).all(same)
}

/// A refusal that was not there before, or said something else.
fn worth_telling(wanted: &Condition, seen: Option<&Seen>) -> bool {
    let same = seen.is_some_and(|seen| wanted.repeats(seen));
    let waiting = matches!(&*wanted.reason, "Pending" | "AddressNotAssigned");
    !same && !waiting && (!wanted.on || wanted.kind == "Programmed")
}

fn listener_notices(
    target: &Target,
    gateway: &Gateway,
    listeners: &[ListenerStatus],
) -> Vec<Notice> {
    let mut notices = Vec::new();
    for listener in listeners {
        let mut conditions = listener.conditions.iter();
        let Some(accepted) = conditions.find(|one| one.kind == "Accepted" && !one.on) else {
            continue;
        };
        let seen = listener_conditions(&gateway.status["listeners"], &listener.name);
        let seen = seen.find("Accepted");
        if seen.is_some_and(|seen| seen.message() == accepted.message) {
            continue;
        }
        notices.push(Notice {
            target: target.clone(),
            uid: gateway.uid.clone(),
            warning: true,
            reason: accepted.reason.to_string(),
            note: format!("listener {}: {}", listener.name, accepted.message),
        });
    }
    notices
}
