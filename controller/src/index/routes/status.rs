//! What a route's status says, of every kind of route: an entry for each parent that is ours, with what is in force.

use serde_json::{Value, json};

use super::super::State;
use super::super::changes::{ConditionsAt, How, Notice, Target, Write};
use super::super::condition::{Condition, Conditions};
use super::super::names::CONTROLLER_NAME;
use super::attach::{Attachment, NoWaypoint, RouteKind};
use super::{InForce, RouteHead, Unresolved};
use crate::gateway_api::ParentRef;

/// What is known of a route beside its parents.
pub(super) struct Verdict<'a, T> {
    pub(super) kind: RouteKind,
    /// Why the generation that is written is refused.
    pub(super) refused: Option<&'a String>,
    pub(super) in_force: &'a InForce<T>,
    pub(super) unresolved: &'a [Unresolved],
}

/// The types of our conditions of a route's parent.
const OURS: [&str; 3] = ["Accepted", "ResolvedRefs", "ResolvedWaypoints"];

/// What is said of one parent.
struct ParentStatus<'a> {
    /// As written.
    parent: &'a Value,
    conditions: Vec<Condition>,
}

// === impl ParentStatus ===

impl ParentStatus<'_> {
    /// Without its conditions.
    fn head(&self) -> Value {
        json!({"parentRef": self.parent, "controllerName": CONTROLLER_NAME})
    }

    /// Whether an entry of ours already is as this one would be written.
    fn stands(&self, seen: &Value) -> bool {
        let number = seen["conditions"].as_array().map_or(0, Vec::len);
        seen["parentRef"] == *self.parent
            && number == self.conditions.len()
            && Conditions::read(&OURS, &seen["conditions"]).are(&self.conditions)
    }
}

// === impl State ===

impl State {
    pub(super) fn parents_status<T>(
        &self,
        target: &Target,
        route: &RouteHead,
        verdict: &Verdict<'_, T>,
    ) -> Option<Write> {
        let (ours, others): (Vec<&Value>, Vec<&Value>) = route
            .status
            .iter()
            .partition(|entry| entry["controllerName"] == CONTROLLER_NAME);
        let (mut wanted, mut notices) = (Vec::new(), Vec::new());
        for (raw, parent) in route.parents.iter().filter(|_| !self.leaving) {
            let seen = ours.iter().find(|entry| entry["parentRef"] == *raw);
            let seen = seen.map_or(&Value::Null, |entry| &entry["conditions"]);
            let seen = Conditions::read(&OURS, seen);
            let Some(conditions) = self.parent_conditions(target, parent, verdict) else {
                continue;
            };
            for notice in news(target, route, &conditions, &seen) {
                if !notices.contains(&notice) {
                    notices.push(notice);
                }
            }
            let conditions = conditions.into_iter();
            wanted.push(ParentStatus {
                parent: raw,
                conditions: conditions
                    .map(|one| one.after(&seen, Some(route.generation)))
                    .collect(),
            });
        }
        let same = ours.len() == wanted.len()
            && ours
                .iter()
                .zip(&wanted)
                .all(|(seen, wanted)| wanted.stands(seen));
        if same {
            return None;
        }
        let first = others.len();
        let heads = wanted.iter().map(ParentStatus::head);
        let parents: Vec<Value> = others.into_iter().cloned().chain(heads).collect();
        let places = wanted.into_iter().enumerate();
        let places = places.map(|(at, parent)| ConditionsAt {
            within: format!("/status/parents/{}", first + at),
            conditions: parent.conditions,
        });
        let mut body = target.patch(&route.uid);
        body["metadata"]["resourceVersion"] = json!(route.resource_version);
        body["status"]["parents"] = json!(parents);
        Some(Write {
            how: How::Merge,
            body,
            conditions: places.collect(),
            notices,
        })
    }

    /// `None`: not ours to say anything about.
    fn parent_conditions<T>(
        &self,
        target: &Target,
        parent: &Result<ParentRef, String>,
        verdict: &Verdict<'_, T>,
    ) -> Option<Vec<Condition>> {
        let parent = parent.as_ref().ok()?;
        let attachment = self.attach(verdict.kind, &target.key, parent);
        if attachment == Attachment::Foreign {
            return None;
        }
        let mut conditions = vec![accepted(verdict, &attachment), resolved(verdict)];
        conditions.extend(reached(&attachment));
        Some(conditions)
    }
}

fn accepted<T>(verdict: &Verdict<'_, T>, attachment: &Attachment) -> Condition {
    if let Attachment::Refused { reason, message } = attachment {
        return Condition::no("Accepted", *reason, &**message);
    }
    if let Some(error) = verdict.refused {
        let kept = match verdict.in_force {
            InForce::Nothing => "requests are answered with status 500".to_owned(),
            InForce::Written(kept) | InForce::Earlier(kept) => {
                format!("generation {} stays in force", kept.generation)
            }
        };
        return Condition::no("Accepted", "UnsupportedValue", format!("{error}; {kept}"));
    }
    let message = match attachment {
        Attachment::Service { idle_ports, .. } if !idle_ports.is_empty() => format!(
            "the route is in force; it has no effect on port {}",
            idle_ports.join(", ")
        ),
        _ => "the route is in force".to_owned(),
    };
    Condition::yes("Accepted", "Accepted", message)
}

fn resolved<T>(verdict: &Verdict<'_, T>) -> Condition {
    match verdict.unresolved.first() {
        None => Condition::yes("ResolvedRefs", "ResolvedRefs", "every backend exists"),
        Some(first) => {
            let messages = verdict.unresolved.iter().map(|one| &*one.message);
            let messages: Vec<&str> = messages.collect();
            Condition::no("ResolvedRefs", first.reason, messages.join("; "))
        }
    }
}

/// Whether there is a waypoint that applies it.
fn reached(attachment: &Attachment) -> Option<Condition> {
    let Attachment::Service {
        service, waypoint, ..
    } = attachment
    else {
        return None;
    };
    Some(match waypoint {
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
            let message = format!("Service {service}: {message}");
            Condition::no("ResolvedWaypoints", "WaypointNotBound", message)
        }
    })
}

/// The refusals that were not there before.
fn news(
    target: &Target,
    route: &RouteHead,
    conditions: &[Condition],
    seen: &Conditions,
) -> Vec<Notice> {
    let off = conditions.iter().filter(|condition| !condition.on);
    off.filter(|condition| {
        let seen = seen.find(condition.kind);
        let told = seen.is_some_and(|seen| condition.repeats(seen));
        // What its Service's status says is told there.
        !told && condition.reason != "WaypointNotBound"
    })
    .map(|condition| Notice {
        target: target.clone(),
        uid: route.uid.clone(),
        warning: true,
        reason: condition.reason.to_string(),
        note: condition.message.clone(),
    })
    .collect()
}
