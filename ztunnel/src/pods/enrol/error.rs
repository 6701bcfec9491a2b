//! Why a pod is not in the mesh: a sentence for people, a reason for conditions and Events.

use std::io;

use hbone::InvalidSpiffeId;
use mesh::certs::CertError;

use crate::{
    capture::CaptureError,
    pods::{find::FindError, listeners::Holder},
    workers::WorkerError,
};

/// Why a pod is not in the mesh.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    #[error("its service account makes no identity: {0}")]
    Identity(#[from] InvalidSpiffeId),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Certificate(#[from] CertError),
    #[error("its network namespace cannot be entered: {0}")]
    Namespace(#[source] io::Error),
    #[error("cannot listen in its network namespace: {0}")]
    Listen(#[source] io::Error),
    #[error(
        "its own process {} ({}) listens on port {port}, which the mesh needs", holder.pid, holder.name
    )]
    PortTaken { port: u16, holder: Holder },
    #[error(transparent)]
    Serve(#[from] WorkerError),
    #[error("cannot redirect its connections: {0}")]
    Capture(#[from] CaptureError),
}

// === impl EnrolError ===

impl EnrolError {
    /// Whether it may be only a moment between two states of the pod.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Find(FindError::NoProcess(_)))
    }

    /// The reason for a condition or an Event.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Identity(_) => "InvalidIdentity",
            Self::Find(_) => "NamespaceNotFound",
            Self::Certificate(_) => "NoCertificate",
            Self::Namespace(_) => "NamespaceUnreachable",
            Self::Listen(_) | Self::Serve(_) => "ListenersFailed",
            Self::PortTaken { .. } => "PortTaken",
            Self::Capture(_) => "RedirectionFailed",
        }
    }
}
