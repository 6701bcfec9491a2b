//! What an update changed, for those who hold something that stood on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::names::Uid;
use crate::workload::Workload;

/// What became different in one update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    workloads: BTreeSet<Uid>,
    addresses: BTreeSet<IpAddr>,
    enrolments: bool,
    everything: bool,
}

/// The changes of a mesh from a moment on, in order.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Arc<Changed>>);

/// Workloads that are named one by one. Beyond, as when a proxy starts, all is said to be different: the names would cost
/// more than looking at everything once.
const MAX_NAMED: usize = 1024;

/// Updates that a reader may be behind. Beyond, all is different for it.
pub(super) const BEHIND: usize = 64;

// === impl Changed ===

impl Changed {
    /// All of it.
    pub fn everything() -> Self {
        Self {
            enrolments: true,
            everything: true,
            ..Self::default()
        }
    }

    /// Whether anything may be different. What is not named here is as before.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// The workloads that came, went, or are told otherwise.
    pub fn workloads(&self) -> impl Iterator<Item = &Uid> {
        self.workloads.iter()
    }

    /// The addresses that such a workload has or had, in any network.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// Whether what the controller wishes of pods or says of namespaces is different, or of the mesh as a whole.
    pub fn enrolments(&self) -> bool {
        self.enrolments
    }

    pub(super) fn workload(&mut self, workload: &Workload) {
        if self.everything {
            return;
        }
        self.workloads.insert(workload.uid.clone());
        self.addresses
            .extend(workload.addresses.iter().map(IpAddr::to_canonical));
        if self.workloads.len() > MAX_NAMED {
            *self = Self {
                enrolments: self.enrolments,
                everything: true,
                ..Self::default()
            };
        }
    }

    pub(super) fn enrolment(&mut self) {
        self.enrolments = true;
    }
}

// === impl Changes ===

impl Changes {
    pub(super) fn of(receiver: broadcast::Receiver<Arc<Changed>>) -> Self {
        Self(receiver)
    }

    /// What the next update changed; nothing once nobody writes any more.
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Arc<Changed>> {
        match self.0.recv().await {
            Ok(changed) => Some(changed),
            Err(RecvError::Lagged(_)) => Some(Arc::new(Changed::everything())),
            Err(RecvError::Closed) => None,
        }
    }

    /// Returns once an update has changed enrolments; false once nobody writes any more.
    pub async fn enrolments(&mut self) -> bool {
        while let Some(changed) = self.next().await {
            if changed.enrolments() {
                return true;
            }
        }
        false
    }
}
