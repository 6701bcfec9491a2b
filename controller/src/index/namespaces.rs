//! Namespaces: whether their pods are enrolled, which waypoint they use.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::node::{EnrolledNamespace, MeshState};
use mesh::xds::{ENROLLED_NAMESPACE_TYPE, Encoded, MESH_STATE_NAME, MESH_STATE_TYPE};

use super::State;
use super::binding::asks_for;
use super::changes::{ConditionsAt, How, Notice, Resources, Scope, Target, Write};
use super::condition::{Condition, Conditions};
use super::kinds::{ApiKind, Kind, Watched};
use super::labels::Labels;
use super::lookup::Says;
use super::names::{DATAPLANE_MODE, IN_MESH, Key};
use super::output::Output;
use crate::index::desired::Item;

/// What a `istio.io/dataplane-mode` label asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing is asked.
    Unset,
    /// In the mesh.
    Ambient,
    /// Not in the mesh.
    None,
    /// An unknown value: treated as not enrolled, and said so.
    Unknown(String),
}

/// What matters of a Namespace.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Namespace {
    pub(super) uid: Arc<str>,
    pub(super) labels: Labels,
    pub(super) mode: Mode,
    pub(super) terminating: bool,
    /// Our condition as it is now.
    conditions: Conditions,
}

// === impl Mode ===

impl Mode {
    pub(super) fn of(labels: &Labels) -> Self {
        match labels.get(DATAPLANE_MODE).map(|mode| &**mode) {
            None => Self::Unset,
            Some("ambient") => Self::Ambient,
            Some("none") => Self::None,
            Some(other) => Self::Unknown(other.to_owned()),
        }
    }
}

// === impl Namespace ===

impl Says<Key> for Namespace {
    /// The Gateway that it asks for.
    fn says(&self, key: &Key) -> impl Iterator<Item = Key> {
        asks_for(&key.name, &self.labels).into_iter()
    }
}

impl Watched for Namespace {
    type Object = core::Namespace;
    const API: ApiKind = ApiKind::core("Namespace", "namespaces");

    fn parse(object: &core::Namespace) -> Option<Self> {
        let labels = Labels::of(object.metadata.labels.as_ref());
        let conditions = object
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            mode: Mode::of(&labels),
            labels,
            terminating: object.metadata.deletion_timestamp.is_some(),
            conditions: Conditions::of(&[IN_MESH], conditions.into_iter().flatten()),
        })
    }

    /// Its pods go before it: while the last of them seem to be there.
    fn waits_for(state: &State, key: &Key, now: Option<&Self>) -> &'static [Kind] {
        match now.is_none() && state.tables.pods.within(&key.name).next().is_some() {
            true => &[Kind::Pod],
            false => &[],
        }
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        if before.map(|before| &before.labels) != now.map(|now| &now.labels) {
            state.tables.pods.mark_within(&key.name);
            state.tables.services.mark_within(&key.name);
        }
        let system = *key.name == *state.settings.system_namespace;
        if system && now.is_some_and(|now| now.terminating) {
            state.leave();
        }
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        // The roots go with their namespace.
        let named = state.plans.keys().any(|plan| *plan.namespace == *key.name);
        let system = *key.name == *state.settings.system_namespace;
        if state.tables.namespaces.get(key).is_none() && !named && !system {
            output.desire(Item::Roots((*key.name).into()), None);
        }
    }

    fn resources(state: &State, key: &Key) -> Resources {
        let mut resources = Resources::default();
        if state.enrolled_namespace(&key.name) {
            let message = EnrolledNamespace {
                name: key.name.to_string(),
            };
            let resource = Encoded::new(ENROLLED_NAMESPACE_TYPE, &message);
            resources.insert(Scope::Namespaces, (*key.name).into(), resource);
        }
        // Said until the end, also when the namespace is gone already: a node that has not heard stays as it is.
        if state.leaving && *key.name == *state.settings.system_namespace {
            let resource = Encoded::new(MESH_STATE_TYPE, &MeshState { uninstalling: true });
            resources.insert(Scope::Nodes, MESH_STATE_NAME.into(), resource);
        }
        resources
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        let namespace = state.tables.namespaces.get(key)?;
        namespace.status(key, state.leaving)
    }
}

impl Namespace {
    /// The condition is there only to say that a label has an unknown value.
    fn status(&self, key: &Key, leaving: bool) -> Option<Write> {
        let target = Target::new(Kind::Namespace, key);
        let body = target.patch(&self.uid);
        let unknown = match &self.mode {
            Mode::Unknown(value) if !leaving => Some(value),
            _ => None,
        };
        let Some(value) = unknown else {
            let there = self.conditions.find(IN_MESH).is_some();
            return there.then_some(Write {
                how: How::Apply,
                body,
                conditions: Vec::new(),
                notices: Vec::new(),
            });
        };
        let message = unknown_mode(value);
        let condition = Condition::no(IN_MESH, "UnknownDataplaneMode", &*message);
        let wanted = vec![condition.after(&self.conditions, None)];
        if self.conditions.are(&wanted) {
            return None;
        }
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
            conditions: vec![ConditionsAt::status(wanted)],
            notices: vec![notice],
        })
    }
}

/// The sentence for a label with an unknown value.
pub(super) fn unknown_mode(value: &str) -> String {
    format!(
        "unknown value {DATAPLANE_MODE}={value:?}; allowed: ambient, none. It is treated as not enrolled"
    )
}
