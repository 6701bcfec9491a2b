//! Who is in the mesh: what labels ask for, what the node reports, what the pod's status says of it.

use std::borrow::Cow;

use mesh::proto::node::{Capture, Enrolment};
use serde_json::json;

use super::State;
use super::binding::{Binding, Traffic};
use super::changes::{ConditionsAt, How, Notice, Target, Write};
use super::condition::{Condition, Seen};
use super::kinds::Kind;
use super::names::{IN_MESH, Key, REDIRECTION, USE_WAYPOINT, WAYPOINT_BOUND};
use super::namespaces::{Mode, unknown_mode};
use super::pods::Pod;
use super::reports::Report;
use super::services::octets;

/// The reason of a condition that waits for the node's word.
pub(super) const PENDING: &str = "Pending";
/// The reason of a pod that labels ask for and that has no identity.
pub(super) const NO_IDENTITY: &str = "NoIdentity";
/// The reason of a condition that tells of a label without meaning.
pub(super) const UNKNOWN_MODE: &str = "UnknownDataplaneMode";

// === impl State ===

impl State {
    /// Whether a namespace's pods are enrolled unless they opt out.
    pub(super) fn enrolled_namespace(&self, name: &str) -> bool {
        !self.leaving && !self.excluded(name) && self.ambient(name)
    }

    /// Whether the pod is to be in the mesh: labels ask for it, and it can be.
    pub(super) fn wanted(&self, key: &Key, pod: &Pod) -> bool {
        // Without an identity there is no certificate, and so no tunnel.
        self.asked_for(key, pod) && pod.identity().is_some()
    }

    /// What labels ask for this pod.
    fn asked_for(&self, key: &Key, pod: &Pod) -> bool {
        if self.leaving
            || self.excluded(&key.namespace)
            || pod.host_network
            || pod.sidecar
            || pod.finished
        {
            return false;
        }
        match Mode::of(pod.labels()) {
            Mode::Ambient => true,
            Mode::None | Mode::Unknown(_) => false,
            Mode::Unset => self.ambient(&key.namespace),
        }
    }

    /// Whether the object's namespace has been told of.
    pub(super) fn knows_namespace(&self, key: &Key) -> bool {
        self.tables.namespaces.named("", &key.namespace).is_some()
    }

    fn excluded(&self, namespace: &str) -> bool {
        self.settings
            .excluded_namespaces
            .iter()
            .any(|excluded| excluded == namespace)
    }

    /// A namespace that is being deleted keeps its pods enrolled to their end.
    fn ambient(&self, namespace: &str) -> bool {
        self.tables
            .namespaces
            .named("", namespace)
            .is_some_and(|namespace| namespace.mode == Mode::Ambient)
    }

    /// Whether redirection is in place, as far as the node has said.
    fn redirected(&self, pod: &Pod) -> bool {
        self.said(pod)
            .is_some_and(|report| *report == Report::Enrolled)
    }

    /// In the mesh, by wish and in fact: others may send HBONE.
    ///
    /// Announced only once the pod's own condition says so, also by the replica that heard the node: every replica then
    /// announces the same, and one that takes over takes nothing back. The node's word alone withdraws at once.
    pub(super) fn captured(&self, key: &Key, pod: &Pod) -> bool {
        self.wanted(key, pod) && self.redirected(pod) && pod.conditions.holds(IN_MESH)
    }

    /// To be in the mesh, not there, and nobody of the mesh shall speak plaintext to it: its node could not get it in, or
    /// it was made when its namespace was enrolled already and its node has not spoken of it yet. One that was there
    /// before its namespace was enrolled is reached as before until its node has it.
    pub(super) fn awaited(&self, key: &Key, pod: &Pod) -> bool {
        if self.settings.plaintext_to_awaited || !self.wanted(key, pod) || self.captured(key, pod) {
            return false;
        }
        match self.said(pod).as_deref() {
            Some(Report::Failed(_)) => true,
            Some(Report::Enrolled | Report::Removed) | None => self.enrolled_before(key, pod),
        }
    }

    /// Whether its namespace was enrolled before the pod was made. Both times are of whole seconds.
    fn enrolled_before(&self, key: &Key, pod: &Pod) -> bool {
        let namespace = self.tables.namespaces.named("", &key.namespace);
        let since = namespace.and_then(|namespace| namespace.enrolled_since());
        since.is_some_and(|since| since.as_millisecond() < pod.created)
    }

    pub(super) fn enrolment(&self, key: &Key, pod: &Pod) -> Enrolment {
        let capture = if self.wanted(key, pod) {
            Capture::In
        } else {
            Capture::Out
        };
        Enrolment {
            uid: pod.uid_on_node().to_string(),
            name: key.name.to_string(),
            namespace: key.namespace.to_string(),
            service_account: pod.identity().map(ToString::to_string).unwrap_or_default(),
            addresses: pod.ips.iter().map(|ip| octets(*ip).into()).collect(),
            capture: capture.into(),
            bypass_inbound: pod.bypass_inbound,
        }
    }

    fn pod_condition(&self, key: &Key, pod: &Pod) -> Option<Condition> {
        if self.leaving {
            return None;
        }
        if let Mode::Unknown(value) = Mode::of(pod.labels()) {
            return Some(Condition::no(IN_MESH, UNKNOWN_MODE, unknown_mode(&value)));
        }
        let enrolled = Condition::yes(
            IN_MESH,
            "Enrolled",
            "traffic is redirected to the node's ztunnel",
        );
        if !self.wanted(key, pod) {
            // It is still in the mesh until the node says that it is not.
            return match self.redirected(pod) {
                true => Some(enrolled),
                false => self.asked_for(key, pod).then(no_identity),
            };
        }
        if self.redirected(pod) {
            return Some(enrolled);
        }
        Some(match self.said(pod).map(Cow::into_owned) {
            Some(Report::Failed(failure)) => {
                Condition::no(IN_MESH, failure.reason, failure.message)
            }
            _ if pod.node.is_empty() => Condition::no(IN_MESH, PENDING, "not scheduled yet"),
            _ => Condition::no(
                IN_MESH,
                PENDING,
                format!("waiting for the ztunnel of node {}", pod.node),
            ),
        })
    }

    /// A pod's own label that names a waypoint which does not serve it; what namespaces say is told on services.
    fn pod_waypoint_condition(&self, key: &Key, pod: &Pod) -> Option<Condition> {
        if self.leaving || self.native_tunnel(key, pod) || !pod.labels().contains_key(USE_WAYPOINT)
        {
            return None;
        }
        match self.binding(&key.namespace, pod.labels(), Traffic::Workload) {
            Binding::Unasked | Binding::OptedOut => None,
            Binding::Bound(gateway) => {
                let message = format!("attached to waypoint {gateway}");
                Some(Condition::yes(WAYPOINT_BOUND, "WaypointAccepted", message))
            }
            Binding::Refused { reason, message } => {
                Some(Condition::no(WAYPOINT_BOUND, reason, message))
            }
        }
    }

    pub(super) fn pod_status(&self, key: &Key) -> Option<Write> {
        let pod = self.tables.pods.get(key)?;
        if pod.finished && !self.leaving {
            return None;
        }
        let enrolled = self.pod_condition(key, pod);
        let redirected = enrolled.as_ref().is_some_and(|condition| condition.on);
        let waypoint = self.pod_waypoint_condition(key, pod);
        let same =
            [(IN_MESH, &enrolled), (WAYPOINT_BOUND, &waypoint)].map(|(kind, wanted)| {
                match (wanted, pod.conditions.find(kind)) {
                    (None, None) => true,
                    (Some(wanted), Some(seen)) => wanted.says(seen),
                    _ => false,
                }
            });
        if same == [true, true] && redirected == pod.redirected {
            return None;
        }
        let seen = pod.conditions.find(IN_MESH);
        let mut body = Target::new(Kind::Pod, key).patch(&pod.uid);
        if redirected {
            body["metadata"]["annotations"] = json!({REDIRECTION: "enabled"});
        }
        let wanted = [&enrolled, &waypoint].into_iter().flatten();
        let wanted = wanted.map(|one| one.clone().after(&pod.conditions, None));
        let wanted: Vec<_> = wanted.collect();
        let mut conditions = Vec::new();
        if !wanted.is_empty() {
            conditions.push(ConditionsAt::status(wanted));
        }
        let mut notices = Vec::new();
        if !same[0] {
            notices.extend(enrolment_notice(key, pod, enrolled));
        }
        if let (false, Some(waypoint)) = (same[1], waypoint) {
            notices.push(notice(
                key,
                pod,
                !waypoint.on,
                waypoint.reason.into_owned(),
                waypoint.message,
            ));
        }
        Some(Write {
            how: How::ApplyOver(seen.map(Seen::said).unwrap_or_default()),
            body,
            conditions,
            notices,
        })
    }
}

/// Of a pod that labels ask for, and that nobody can give a certificate.
fn no_identity() -> Condition {
    let message = "a static pod, or one without a service account, has no identity: its traffic is not redirected";
    Condition::no(IN_MESH, NO_IDENTITY, message)
}

fn enrolment_notice(key: &Key, pod: &Pod, condition: Option<Condition>) -> Option<Notice> {
    let was_in = pod.conditions.holds(IN_MESH);
    match condition {
        // Waiting is no news.
        Some(condition) if condition.reason == PENDING => None,
        Some(condition) => Some(notice(
            key,
            pod,
            !condition.on,
            condition.reason.into_owned(),
            condition.message,
        )),
        None => was_in.then(|| {
            notice(
                key,
                pod,
                false,
                "LeftMesh".to_owned(),
                "traffic is no longer redirected".to_owned(),
            )
        }),
    }
}

fn notice(key: &Key, pod: &Pod, warning: bool, reason: String, note: String) -> Notice {
    Notice {
        target: Target::new(Kind::Pod, key),
        uid: pod.uid.clone(),
        warning,
        reason,
        note,
    }
}
