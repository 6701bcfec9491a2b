//! What is wished of a pod, and what became of it.

use mesh::enrolment::Enrolment;
use tokio::time::Instant;

use super::{netns::NetnsId, node::Place};

/// What shall become of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wish {
    /// Nothing yet.
    Undecided,
    /// In the mesh.
    In {
        enrolment: Enrolment,
        place: Option<Place>,
    },
    /// Left alone.
    Out { enrolment: Enrolment },
    /// Its sandbox is no more; another may come.
    SandboxGone,
    /// It is no more.
    Gone,
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
