//! Status conditions: what ours should say, beside what the object says now.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NamespaceCondition, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use serde_json::{Value, json};

/// One condition as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// Its status.
    pub on: bool,
    /// One word for programs.
    pub reason: Cow<'static, str>,
    /// A sentence for people.
    pub message: String,
    /// The generation of the object that it is about, where the API has that.
    pub generation: Option<i64>,
    /// Since when its status is what it is; `None`: since it is written.
    pub since: Option<Timestamp>,
}

/// Whether a condition of an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Status {
    True,
    False,
    /// Nobody knows, or what is written is none of the API's three words.
    Unknown,
}

/// The conditions of ours that an object has; what others wrote is left out, and left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conditions(Box<[Seen]>);

/// One condition that an object has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    said: Arc<Said>,
    /// In seconds, as the API has it; absent in what was not written by its rules.
    since: Option<u32>,
}

/// What a condition says; a million pods say the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Said {
    kind: &'static str,
    status: Status,
    reason: Box<str>,
    message: Box<str>,
    generation: Option<i64>,
}

/// A condition of whatever Kubernetes type, as it is read.
pub(super) struct Raw<'a> {
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
    generation: Option<i64>,
    since: Option<Timestamp>,
}

// === impl Condition ===

impl Condition {
    /// A condition that holds.
    pub(super) fn yes(
        kind: &'static str,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(kind, true, reason.into(), message.into())
    }

    /// A condition that does not hold.
    pub(super) fn no(
        kind: &'static str,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(kind, false, reason.into(), message.into())
    }

    fn new(kind: &'static str, on: bool, reason: Cow<'static, str>, message: String) -> Self {
        Self {
            kind,
            on,
            reason,
            message,
            generation: None,
            since: None,
        }
    }

    /// As it follows on what the object says now: its time is kept unless its status flips.
    pub(super) fn after(mut self, seen: &Conditions, generation: Option<i64>) -> Self {
        let before = seen.find(self.kind);
        self.since = before
            .filter(|before| before.status() == self.status())
            .and_then(Seen::since);
        // A newer controller may already have looked at a newer object.
        let looked = before.and_then(Seen::generation).unwrap_or(0);
        self.generation = generation.map(|generation| generation.max(looked));
        self
    }

    /// Whether the object already says so, of whatever generation.
    pub(super) fn says(&self, seen: &Seen) -> bool {
        let said = &*seen.said;
        said.status == self.status()
            && *said.reason == *self.reason
            && *said.message == *self.message
    }

    /// Whether people have been told so.
    pub(super) fn repeats(&self, seen: &Seen) -> bool {
        seen.said.status == self.status() && *seen.said.message == *self.message
    }

    /// Whether the object has it already as it would be written.
    pub(super) fn stands(&self, seen: &Seen) -> bool {
        let generation = |generation: Option<i64>| generation.unwrap_or(0);
        self.kind == seen.said.kind
            && self.says(seen)
            && generation(self.generation) == generation(seen.generation())
            && seen.since.is_some()
    }

    fn status(&self) -> Status {
        match self.on {
            true => Status::True,
            false => Status::False,
        }
    }

    /// As Kubernetes reads it, written at this time.
    pub(super) fn json(&self, now: Timestamp) -> Value {
        let mut json = json!({
            "type": self.kind,
            "status": self.status().text(),
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": written(self.since.unwrap_or(now)),
        });
        if let Some(generation) = self.generation {
            json["observedGeneration"] = generation.into();
        }
        json
    }
}

/// As Kubernetes writes a time.
fn written(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

// === impl Status ===

impl Status {
    /// As the API has it.
    fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

// === impl Conditions ===

impl Conditions {
    /// Those of these types.
    pub(super) fn of<'a>(
        ours: &[&'static str],
        all: impl IntoIterator<Item = impl Into<Raw<'a>>>,
    ) -> Self {
        let all = all.into_iter().map(Into::into);
        let ours = all.filter_map(|raw: Raw<'_>| {
            let kind = ours.iter().find(|kind| **kind == raw.kind)?;
            Some(raw.seen(kind))
        });
        Self(ours.collect())
    }

    /// Those of these types in a `conditions` of JSON.
    pub(super) fn read(ours: &[&'static str], conditions: &Value) -> Self {
        Self::of(ours, conditions.as_array().into_iter().flatten())
    }

    /// The condition of this type.
    pub(super) fn find(&self, kind: &str) -> Option<&Seen> {
        self.0.iter().find(|seen| seen.said.kind == kind)
    }

    /// Whether the condition of this type says so.
    pub(super) fn holds(&self, kind: &str) -> bool {
        self.find(kind)
            .is_some_and(|seen| seen.status() == Status::True)
    }

    /// Whether these stand there, in this order, and no others of ours.
    pub(super) fn are(&self, wanted: &[Condition]) -> bool {
        let mut both = self.0.iter().zip(wanted);
        self.0.len() == wanted.len() && both.all(|(seen, wanted)| wanted.stands(seen))
    }

    /// Takes what they say from what others say.
    pub(super) fn share(&mut self, mut share: impl FnMut(&Arc<Said>) -> Arc<Said>) {
        for seen in &mut self.0 {
            seen.said = share(&seen.said);
        }
    }
}

// === impl Seen ===

impl Seen {
    pub(super) fn status(&self) -> Status {
        self.said.status
    }

    pub(super) fn reason(&self) -> &str {
        &self.said.reason
    }

    pub(super) fn message(&self) -> &str {
        &self.said.message
    }

    /// What it says, as it stands in the object.
    pub(super) fn said(&self) -> Value {
        let Said {
            status,
            reason,
            message,
            ..
        } = &*self.said;
        json!({"status": status.text(), "reason": reason, "message": message})
    }

    /// Since when its status is what it is, in whole seconds.
    pub(super) fn since(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.since?.into()).ok()
    }

    fn generation(&self) -> Option<i64> {
        self.said.generation
    }
}

// === impl Raw ===

impl Raw<'_> {
    fn seen(&self, kind: &'static str) -> Seen {
        let said = Said {
            kind,
            status: match self.status {
                "True" => Status::True,
                "False" => Status::False,
                _ => Status::Unknown,
            },
            reason: self.reason.into(),
            message: self.message.into(),
            generation: self.generation,
        };
        let since = self.since.map(Timestamp::as_second);
        Seen {
            said: Arc::new(said),
            since: since.and_then(|seconds| seconds.try_into().ok()),
        }
    }
}

impl<'a> From<&'a PodCondition> for Raw<'a> {
    fn from(from: &'a PodCondition) -> Self {
        Self {
            kind: &from.type_,
            status: &from.status,
            reason: from.reason.as_deref().unwrap_or_default(),
            message: from.message.as_deref().unwrap_or_default(),
            generation: from.observed_generation,
            since: from.last_transition_time.as_ref().map(|time| time.0),
        }
    }
}

impl<'a> From<&'a NamespaceCondition> for Raw<'a> {
    fn from(from: &'a NamespaceCondition) -> Self {
        Self {
            kind: &from.type_,
            status: &from.status,
            reason: from.reason.as_deref().unwrap_or_default(),
            message: from.message.as_deref().unwrap_or_default(),
            generation: None,
            since: from.last_transition_time.as_ref().map(|time| time.0),
        }
    }
}

impl<'a> From<&'a v1::Condition> for Raw<'a> {
    fn from(from: &'a v1::Condition) -> Self {
        Self {
            kind: &from.type_,
            status: &from.status,
            reason: &from.reason,
            message: &from.message,
            generation: from.observed_generation,
            since: Some(from.last_transition_time.0),
        }
    }
}

impl<'a> From<&'a Value> for Raw<'a> {
    fn from(from: &'a Value) -> Self {
        let text = |field: &str| from[field].as_str();
        let some = |field: &str| text(field).unwrap_or_default();
        Self {
            kind: some("type"),
            status: some("status"),
            reason: some("reason"),
            message: some("message"),
            generation: from["observedGeneration"].as_i64(),
            since: text("lastTransitionTime").and_then(|time| time.parse().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "ambit.mesh/InMesh";

    fn seen(status: &str, generation: i64) -> Conditions {
        let all = json!([
            {"type": "Theirs", "status": "True", "reason": "R", "message": "m"},
            {"type": KIND, "status": status, "reason": "R", "message": "m", "observedGeneration": generation,
             "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]);
        Conditions::read(&[KIND], &all)
    }

    #[test]
    fn what_others_wrote_is_not_kept() {
        assert!(seen("True", 1).find("Theirs").is_none());
        assert!(seen("True", 1).holds(KIND) && !seen("False", 1).holds(KIND));
        assert!(!seen("Maybe", 1).holds(KIND));
    }

    #[test]
    fn the_time_is_that_of_the_write_when_the_status_flips_and_kept_when_it_does_not() {
        let now: Timestamp = "2026-11-26T12:00:00.5Z".parse().expect("a time");
        let time = |status: &str, wanted: Condition| {
            let wanted = wanted.after(&seen(status, 1), Some(2));
            wanted.json(now)["lastTransitionTime"].clone()
        };
        let yes = || Condition::yes(KIND, "Other", "words");
        assert_eq!(time("True", yes()), "2026-01-01T00:00:00Z");
        assert_eq!(time("False", yes()), "2026-11-26T12:00:00Z");
        assert_eq!(time("Unknown", yes()), "2026-11-26T12:00:00Z");
    }

    #[test]
    fn it_stands_when_nothing_would_change() {
        let wanted = |generation, seen: &Conditions| {
            Condition::yes(KIND, "R", "m").after(seen, Some(generation))
        };
        let there = seen("True", 3);
        assert!(there.are(&[wanted(3, &there)]));
        assert!(there.are(&[wanted(2, &there)]), "a newer one has looked");
        assert!(!there.are(&[wanted(4, &there)]));
        assert!(!seen("False", 3).are(&[wanted(3, &there)]));
        assert!(!there.are(&[]) && !Conditions::default().are(&[wanted(3, &there)]));
    }
}
