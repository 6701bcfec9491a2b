//! Namespaces: whether their pods are enrolled, which waypoint they use.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use mesh::proto::node::{EnrolledNamespace, MeshState};
use mesh::xds::{ENROLLED_NAMESPACE_TYPE, Encoded, MESH_STATE_NAME, MESH_STATE_TYPE};

use super::State;
use super::binding::asks_for;
use super::changes::{ConditionsAt, How, Notice, Resources, Scope, Target, Write};
use super::condition::{Condition, Conditions};
use super::enrolment::UNKNOWN_MODE;
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
        let matters = |namespace: &Self| (namespace.labels.clone(), namespace.enrolled_since());
        if before.map(matters) != now.map(matters) {
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
        namespace.write(key, state.namespace_condition(key, namespace))
    }
}

impl State {
    fn namespace_condition(&self, key: &Key, namespace: &Namespace) -> Option<Condition> {
        match &namespace.mode {
            _ if self.leaving => None,
            Mode::Unknown(value) => {
                let message = unknown_mode(value);
                Some(Condition::no(IN_MESH, UNKNOWN_MODE, message))
            }
            _ if self.enrolled_namespace(&key.name) => Some(Condition::yes(
                IN_MESH,
                "Enrolled",
                "its pods are in the mesh unless they opt out; the condition of each says whether it is",
            )),
            _ => None,
        }
    }
}

impl Namespace {
    /// From when on every new pod is in the mesh from its first packet on, unless it opts out: the controllers' own word,
    /// and so the same for each of them.
    pub(super) fn enrolled_since(&self) -> Option<Timestamp> {
        let enrolled = self.conditions.find(IN_MESH)?;
        let holds = self.mode == Mode::Ambient && self.conditions.holds(IN_MESH);
        enrolled.since().filter(|_| holds)
    }

    fn write(&self, key: &Key, condition: Option<Condition>) -> Option<Write> {
        let target = Target::new(Kind::Namespace, key);
        let wanted = condition.map(|condition| condition.after(&self.conditions, None));
        let wanted: Vec<Condition> = wanted.into_iter().collect();
        if self.conditions.are(&wanted) {
            return None;
        }
        let body = target.patch(&self.uid);
        let notices = match &self.mode {
            Mode::Unknown(value) if !wanted.is_empty() => vec![Notice {
                target,
                uid: self.uid.clone(),
                warning: true,
                reason: UNKNOWN_MODE.to_owned(),
                note: unknown_mode(value),
            }],
            _ => Vec::new(),
        };
        let conditions = match wanted.is_empty() {
            true => Vec::new(),
            false => vec![ConditionsAt::status(wanted)],
        };
        Some(Write {
            how: How::Apply,
            body,
            conditions,
            notices,
        })
    }
}

/// The sentence for a label with an unknown value.
pub(super) fn unknown_mode(value: &str) -> String {
    format!(
        "unknown value {DATAPLANE_MODE}={value:?}; allowed: ambient, none. It is treated as not enrolled"
    )
}
