//! What a Gateway's status says: of itself, and of each of its listeners.

use serde_json::{Value, json};

use super::super::State;
use super::super::changes::{How, Notice, Target, Write};
use super::super::condition::{self, Condition};
use super::super::kinds::Kind;
use super::super::names::Key;
use super::accept::{Refusal, accept_listener};
use super::{Class, Gateway, notice};
use crate::gateway_api::Listener;

// === impl State ===

impl State {
    pub(in crate::index) fn gateway_status(&self, key: &Key) -> Option<Write> {
        let gateway = self
            .tables
            .gateways
            .get(key)
            .filter(|gateway| !gateway.deleting)?;
        let class = self.our_class(gateway)?;
        let target = Target::new(Kind::Gateway, key);
        let mut body = target.patch(&gateway.uid);
        if self.leaving {
            // The API server gives a Gateway without status conditions that are unknown.
            let ours = condition::find(&gateway.status["conditions"], "Accepted")
                .is_some_and(|condition| condition["status"] != "Unknown");
            return ours.then_some(Write {
                how: How::Apply,
                body,
                notices: Vec::new(),
            });
        }
        let conditions = self.gateway_conditions(key, gateway, class);
        let seen = &gateway.status["conditions"];
        let wanted: Vec<Value> = conditions
            .iter()
            .map(|condition| condition.json(seen, gateway.generation))
            .collect();
        let listeners = listener_statuses(gateway);
        let fresh = self.addresses(key);
        let addresses = if fresh.is_empty() {
            gateway.status["addresses"].clone()
        } else {
            json!(fresh)
        };
        let same = conditions
            .iter()
            .zip(&wanted)
            .all(|(condition, wanted)| condition::find(seen, condition.kind) == Some(wanted))
            && gateway.status["listeners"].as_array() == Some(&listeners)
            && gateway.status["addresses"] == addresses;
        if same {
            return None;
        }
        let notices = conditions
            .iter()
            .zip(&wanted)
            .filter(|(condition, wanted)| {
                worth_telling(condition, condition::find(seen, condition.kind), wanted)
            })
            .map(|(condition, _)| notice(target.clone(), &gateway.uid, condition))
            .chain(listener_notices(&target, gateway, &listeners))
            .collect();
        body["status"] = json!({"conditions": wanted, "listeners": listeners});
        if !addresses.is_null() {
            body["status"]["addresses"] = addresses;
        }
        Some(Write {
            how: How::Apply,
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
        let programmed = if refused.is_some() {
            Condition::no(
                "Programmed",
                "Invalid",
                "the Gateway is not accepted; what ran before is left running",
            )
        } else if !service {
            Condition::no(
                "Programmed",
                "AddressNotAssigned",
                "the waypoint's Service has no address yet",
            )
        } else if ready == 0 {
            Condition::no("Programmed", "Pending", "no pod of the waypoint is ready")
        } else {
            Condition::yes("Programmed", "Programmed", "the waypoint is ready")
        };
        vec![accepted, programmed]
    }
}

fn listener_statuses(gateway: &Gateway) -> Vec<Value> {
    let before = &gateway.status["listeners"];
    let status = |listener: &Listener| {
        let seen = before
            .as_array()
            .into_iter()
            .flatten()
            .find(|seen| seen["name"] == *listener.name);
        let seen = seen.map_or(&Value::Null, |seen| &seen["conditions"]);
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
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|one| one.json(seen, gateway.generation))
            .collect();
        // Routes attach to Services, so a listener has none and takes none.
        json!({"name": listener.name, "supportedKinds": [], "attachedRoutes": 0, "conditions": conditions})
    };
    gateway.listeners.iter().map(status).collect()
}

/// A refusal that was not there before, or said something else.
fn worth_telling(condition: &Condition, seen: Option<&Value>, wanted: &Value) -> bool {
    let same = seen.is_some_and(|seen| {
        seen["status"] == wanted["status"] && seen["message"] == wanted["message"]
    });
    let waiting = matches!(&*condition.reason, "Pending" | "AddressNotAssigned");
    !same && !waiting && (!condition.on || condition.kind == "Programmed")
}

fn listener_notices(target: &Target, gateway: &Gateway, listeners: &[Value]) -> Vec<Notice> {
    let before = gateway.status["listeners"].as_array();
    let mut notices = Vec::new();
    for listener in listeners {
        let Some(accepted) = condition::find(&listener["conditions"], "Accepted") else {
            continue;
        };
        let seen = before
            .into_iter()
            .flatten()
            .find(|seen| seen["name"] == listener["name"]);
        let seen = seen.and_then(|seen| condition::find(&seen["conditions"], "Accepted"));
        if accepted["status"] == "True"
            || seen.is_some_and(|seen| seen["message"] == accepted["message"])
        {
            continue;
        }
        let text = |field: &str| accepted[field].as_str().unwrap_or_default();
        let name = listener["name"].as_str().unwrap_or_default();
        notices.push(Notice {
            target: target.clone(),
            uid: gateway.uid.clone(),
            warning: true,
            reason: text("reason").to_owned(),
            note: format!("listener {name}: {}", text("message")),
        });
    }
    notices
}
