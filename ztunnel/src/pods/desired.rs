//! What a pod shall be, and what became of it.

use std::time::Duration;

use mesh::enrolment::Enrolment;
use tokio::time::Instant;

use super::node::Sandbox;
use crate::netns::NetnsId;

/// What becomes of this node's ztunnel after this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Another follows.
    Restart,
    /// None follows: the node goes back to what it was.
    ForGood,
}

/// What a pod shall be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum DesiredState {
    /// Nothing yet.
    Undecided,
    /// In the mesh.
    In {
        enrolment: Enrolment,
        sandbox: Option<Sandbox>,
    },
    /// Left alone.
    Out { enrolment: Enrolment },
    /// Its sandbox is no more; another may come.
    SandboxGone,
    /// It is no more.
    Removed,
    /// This ztunnel goes, and another follows: served until that one does, or until then.
    HandOver { until: Instant },
    /// This ztunnel goes, and none follows.
    LeaveForGood,
}

/// What has become of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// Nothing yet.
    Pending,
    /// It is in the mesh, captured in this namespace.
    Captured(NetnsId),
    /// It is left alone.
    Out,
    /// It is not as it should be.
    Failed(String),
}

/// How long a pod that is in the mesh stays there after the control plane has ceased to mention it.
///
/// A pod that shall leave the mesh is mentioned, as one to leave alone; one that is gone loses its sandbox, which the
/// node sees by itself. What is left is a control plane that knows less than it did, and cannot tell: a replica that
/// knows that it lags behind the one before it removes nothing until it has caught up.
pub(crate) const UNMENTIONED_GRACE: Duration = Duration::from_secs(60);

impl DesiredState {
    /// Whether the pod goes on as it is, although the control plane has not mentioned it for `time`.
    pub(crate) fn outlasts_silence(&self, time: Duration) -> bool {
        match self {
            Self::In { .. } => time < UNMENTIONED_GRACE,
            // There is nothing that could be lost.
            Self::Undecided | Self::Out { .. } | Self::SandboxGone | Self::Removed => false,
            // Their end is decided, and not by the control plane.
            Self::HandOver { .. } | Self::LeaveForGood => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_ends_only_what_has_nothing_to_lose_or_lasts_too_long() {
        let enrolment = Enrolment {
            uid: "u".into(),
            name: "a".into(),
            namespace: "ns".into(),
            service_account: "sa".into(),
            addresses: vec![],
            capture: true,
            bypass_inbound: false,
        };
        let captured = DesiredState::In {
            enrolment: enrolment.clone(),
            sandbox: None,
        };
        let short = UNMENTIONED_GRACE - Duration::from_millis(1);
        assert!(captured.outlasts_silence(Duration::ZERO));
        assert!(captured.outlasts_silence(short));
        assert!(!captured.outlasts_silence(UNMENTIONED_GRACE));
        for at_once in [
            DesiredState::Undecided,
            DesiredState::Out { enrolment },
            DesiredState::SandboxGone,
        ] {
            assert!(!at_once.outlasts_silence(Duration::ZERO), "{at_once:?}");
        }
        assert!(DesiredState::LeaveForGood.outlasts_silence(UNMENTIONED_GRACE));
    }
}
