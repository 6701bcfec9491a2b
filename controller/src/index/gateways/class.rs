//! GatewayClasses: which are ours, and that ours exist.

use std::sync::Arc;

use kube::core::DynamicObject;

use super::super::State;
use super::super::changes::{ConditionsAt, How, Target, Write};
use super::super::condition::{Condition, Conditions};
use super::super::kinds::{ApiKind, Kind, Watched};
use super::super::names::{CLASSES, CONTROLLER_NAME, Key, WAYPOINT_FOR};
use super::super::output::Output;
use super::{label, notice};
use crate::gateway_api::{self, GatewayClassSpec};
use crate::index::desired::{Entry, Item, Wanted};

/// What matters of a GatewayClass.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::index) struct Class {
    uid: Arc<str>,
    generation: Option<i64>,
    controller: Option<String>,
    spec: Result<GatewayClassSpec, String>,
    pub(super) waypoint_for: Option<String>,
    conditions: Conditions,
}

// === impl Class ===

impl Watched for Class {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::gateway("GatewayClass", "gatewayclasses");

    fn parse(object: &DynamicObject) -> Option<Self> {
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation: object.metadata.generation,
            controller: object.data["spec"]["controllerName"]
                .as_str()
                .map(ToOwned::to_owned),
            spec: gateway_api::read(&object.data["spec"]).map_err(|error| error.to_string()),
            waypoint_for: label(object, WAYPOINT_FOR),
            conditions: Conditions::read(&["Accepted"], &object.data["status"]["conditions"]),
        })
    }

    fn touch(state: &mut State, key: &Key, _before: Option<&Self>, _now: Option<&Self>) {
        state.touch_class(&key.name);
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        if CLASSES.contains(&&*key.name) {
            let missing = state.missing_class(&key.name).then_some(Wanted::Class);
            let item = Item::Class((*key.name).into());
            output.desire(item, missing.map(Entry::leader));
        }
    }

    fn status(state: &State, key: &Key) -> Option<Write> {
        let class = state.tables.classes.get(key)?;
        class.status(key).filter(|_| !state.leaving)
    }
}

impl Class {
    pub(in crate::index) fn ours(&self) -> bool {
        self.controller.as_deref() == Some(CONTROLLER_NAME)
    }

    fn status(&self, key: &Key) -> Option<Write> {
        if !self.ours() {
            return None;
        }
        let condition = match &self.spec {
            Err(error) => Condition::no(
                "Accepted",
                "InvalidParameters",
                format!("spec cannot be read: {error}"),
            ),
            Ok(spec) if spec.parameters_ref.is_some() => Condition::no(
                "Accepted",
                "InvalidParameters",
                "spec.parametersRef is not supported",
            ),
            Ok(_) => Condition::yes(
                "Accepted",
                "Accepted",
                "Gateways of this class become waypoints",
            ),
        };
        let condition = condition.after(&self.conditions, self.generation);
        let seen = self.conditions.find(condition.kind);
        if seen.is_some_and(|seen| condition.stands(seen)) {
            return None;
        }
        let target = Target::new(Kind::GatewayClass, key);
        let body = target.patch(&self.uid);
        let notices = if condition.on {
            Vec::new()
        } else {
            vec![notice(target, &self.uid, &condition)]
        };
        Some(Write {
            how: How::Apply,
            body,
            conditions: vec![ConditionsAt::status(vec![condition])],
            notices,
        })
    }
}
