//! Status conditions: what ours should say, beside what the object says now.

use std::borrow::Cow;

use serde_json::{Value, json};

/// Stands where a time belongs until the write is made, so that two equal wishes compare equal.
const NOW: &str = "@now";

/// One condition as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// Its type.
    pub(super) kind: &'static str,
    /// Its status.
    pub(super) on: bool,
    /// One word for programs.
    pub(super) reason: Cow<'static, str>,
    /// A sentence for people.
    pub(super) message: String,
}

// === impl Condition ===

impl Condition {
    /// A condition that holds.
    pub(super) fn yes(
        kind: &'static str,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            on: true,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A condition that does not hold.
    pub(super) fn no(
        kind: &'static str,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            on: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// Whether the object already says so.
    pub(super) fn says(&self, seen: &Value) -> bool {
        let status = if self.on { "True" } else { "False" };
        seen["status"] == status
            && seen["reason"] == *self.reason
            && seen["message"] == *self.message
    }

    /// The condition as JSON; its time is kept from `seen` unless its status flips.
    pub(super) fn json(&self, seen: &Value, generation: Option<i64>) -> Value {
        let status = if self.on { "True" } else { "False" };
        let before = find(seen, self.kind);
        let since = before
            .filter(|before| before["status"] == status)
            .and_then(|before| before["lastTransitionTime"].as_str())
            .unwrap_or(NOW);
        let mut json = json!({
            "type": self.kind,
            "status": status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since,
        });
        if let Some(generation) = generation {
            // A newer controller may already have looked at a newer object.
            let seen = before
                .and_then(|before| before["observedGeneration"].as_i64())
                .unwrap_or(0);
            json["observedGeneration"] = generation.max(seen).into();
        }
        json
    }
}

/// The condition of this type in a list of conditions.
pub(super) fn find<'a>(conditions: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Whether the condition of this type says so.
pub(super) fn holds(conditions: &Value, kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Puts the time into every condition whose status flips.
pub(super) fn stamp(value: &mut Value, now: &str) {
    match value {
        Value::String(text) if text == NOW => now.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| stamp(item, now)),
        Value::Object(fields) => fields.values_mut().for_each(|field| stamp(field, now)),
        _ => {}
    }
}
