//! What a granted connection stands on, and whether that still holds: a verdict is a lease.

use std::net::IpAddr;

use hbone::{Peer, SpiffeId};

use crate::names::Uid;
use crate::workload::Workload;
use crate::world::Snapshot;

/// What one connection stands on. When that changes, it is judged again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Of a tunnel that arrives: the mesh knew a workload with the peer's proven identity at the peer's address.
    Peer {
        /// Where the peer is.
        at: IpAddr,
        /// Whom it has proven to be.
        id: SpiffeId,
    },
    /// Of a connection that leaves: the workload at its other end.
    Endpoint {
        /// The workload.
        uid: Uid,
        /// Whom it must prove to be.
        id: SpiffeId,
    },
}

/// The one thing by whose change a lease is looked at again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// Who has this address.
    Address(IpAddr),
    /// What is said of this workload.
    Workload(Uid),
}

/// Why a connection that was granted must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Revoked {
    /// The mesh no longer knows the peer's identity at its address: the pod is gone, or the address is another's.
    #[error("{id} is no longer at {at}")]
    Peer {
        /// Where the peer is.
        at: IpAddr,
        /// Whom it had proven to be.
        id: SpiffeId,
    },
    /// The workload at the other end is gone, or is somebody else now.
    #[error("workload {0} is gone")]
    Endpoint(Uid),
}

// === impl Lease ===

impl Lease {
    /// Of a tunnel from a proven peer. Nothing where the mesh does not know it there (yet): what was never known cannot go.
    pub fn of_peer(peer: &Peer, world: &Snapshot) -> Option<Self> {
        let lease = Self::Peer {
            at: peer.addr.ip().to_canonical(),
            id: peer.id.clone(),
        };
        lease.holds(world).is_ok().then_some(lease)
    }

    /// Of a connection to a workload.
    pub fn of_endpoint(workload: &Workload) -> Self {
        Self::Endpoint {
            uid: workload.uid.clone(),
            id: workload.identity(),
        }
    }

    /// What it stands on.
    pub fn input(&self) -> Input {
        match self {
            Self::Peer { at, .. } => Input::Address(*at),
            Self::Endpoint { uid, .. } => Input::Workload(uid.clone()),
        }
    }

    /// Judges again. A workload that leaves the mesh, or may receive nothing new, is still who it was: what is open to it
    /// lives on.
    pub fn holds(&self, world: &Snapshot) -> Result<(), Revoked> {
        match self {
            Self::Peer { at, id } => match world.workload_at(*at) {
                Some(there) if there.identity() == *id => Ok(()),
                _ => Err(Revoked::Peer {
                    at: *at,
                    id: id.clone(),
                }),
            },
            Self::Endpoint { uid, id } => match world.workload(uid) {
                Some(there) if there.identity() == *id => Ok(()),
                _ => Err(Revoked::Endpoint(uid.clone())),
            },
        }
    }
}

// === impl Revoked ===

impl Revoked {
    /// A stable word for logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Peer { .. } => "peer_gone",
            Self::Endpoint(_) => "endpoint_gone",
        }
    }
}

#[cfg(test)]
mod tests;
