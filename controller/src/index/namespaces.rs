//! Namespaces: whether their pods are enrolled, which waypoint they use.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::changes::{How, Kind, Notice, Target, Write};
use super::condition::{self, Condition};
use super::names::{DATAPLANE_MODE, IN_MESH, Key};

/// What a `istio.io/dataplane-mode` label asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing is asked.
    Unset,
    /// In the mesh.
    Ambient,
    /// Not in the mesh.
    None,
    /// A value that means nothing: taken as not in the mesh, and said so.
    Unknown(String),
}

/// What matters of a Namespace.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Namespace {
    pub(super) uid: Arc<str>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) mode: Mode,
    pub(super) terminating: bool,
    /// Our condition as it is now.
    conditions: Value,
}

// === impl Mode ===

impl Mode {
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Self {
        match labels.get(DATAPLANE_MODE).map(String::as_str) {
            None => Self::Unset,
            Some("ambient") => Self::Ambient,
            Some("none") => Self::None,
            Some(other) => Self::Unknown(other.to_owned()),
        }
    }
}

// === impl Namespace ===

impl Namespace {
    pub(super) fn parse(object: &core::Namespace) -> Self {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let conditions = object
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let ours = conditions
            .into_iter()
            .flatten()
            .filter(|condition| condition.type_ == IN_MESH);
        Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            mode: Mode::of(&labels),
            labels,
            terminating: object.metadata.deletion_timestamp.is_some(),
            conditions: ours.map(|condition| json!(condition)).collect(),
        }
    }

    /// The condition is there only to say that a label means nothing.
    pub(super) fn status(&self, name: &Arc<str>, leaving: bool) -> Option<Write> {
        let key = Key {
            namespace: "".into(),
            name: name.clone(),
        };
        let target = Target {
            kind: Kind::Namespace,
            key,
        };
        let mut body = target.patch(&self.uid);
        let unknown = match &self.mode {
            Mode::Unknown(value) if !leaving => Some(value),
            _ => None,
        };
        let Some(value) = unknown else {
            let there = condition::find(&self.conditions, IN_MESH).is_some();
            return there.then_some(Write {
                how: How::Apply,
                body,
                notices: Vec::new(),
            });
        };
        let message = unknown_mode(value);
        let condition = Condition::no(IN_MESH, "UnknownDataplaneMode", &*message);
        let wanted = json!([condition.json(&self.conditions, None)]);
        if wanted == self.conditions {
            return None;
        }
        body["status"]["conditions"] = wanted;
        let notice = Notice {
            target,
            uid: self.uid.clone(),
            warning: true,
            reason: "UnknownDataplaneMode".to_owned(),
            note: message,
        };
        Some(Write {
            how: How::Apply,
            body,
            notices: vec![notice],
        })
    }
}

/// The sentence for a label that means nothing.
pub(super) fn unknown_mode(value: &str) -> String {
    format!(
        "label {DATAPLANE_MODE}={value:?} means nothing: use \"ambient\" or \"none\"; taken as not in the mesh"
    )
}
