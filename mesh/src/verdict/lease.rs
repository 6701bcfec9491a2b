//! What a granted connection stands on, and whether that still holds: a verdict is a lease.

use std::net::IpAddr;

use hbone::{Peer, SpiffeId};

use crate::names::Uid;
use crate::workload::Workload;
use crate::world::Snapshot;

/// What one connection stands on. When that changes, it is judged again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Of a tunnel that arrives: that the mesh knows a workload with the peer's proven identity at the peer's address.
    Peer {
        /// Where the peer is.
        at: IpAddr,
        /// Whom it has proven to be.
        id: SpiffeId,
        /// The mesh has known it there. Until then nothing can go: a pod may dial before its address is told.
        known: bool,
    },
    /// Of a connection that leaves: the workload at its other end.
    Endpoint {
        /// The workload.
        uid: Uid,
        /// Where it was dialled.
        at: IpAddr,
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
    /// The pod of the peer is gone.
    #[error("{id} is no longer at {at}")]
    PeerGone {
        /// Where the peer is.
        at: IpAddr,
        /// Whom it had proven to be.
        id: SpiffeId,
    },
    /// The peer's address is another's now.
    #[error("{at} is not {id} any more")]
    PeerReplaced {
        /// Where the peer is.
        at: IpAddr,
        /// Whom it had proven to be.
        id: SpiffeId,
    },
    /// The workload at the other end is gone.
    #[error("workload {0} is gone")]
    EndpointGone(Uid),
    /// The workload at the other end is another now: of that name, with another identity or address.
    #[error("workload {0} is not what it was")]
    EndpointReplaced(Uid),
}

// === impl Lease ===

impl Lease {
    /// Of a tunnel from a proven peer.
    pub fn of_peer(peer: &Peer) -> Self {
        Self::Peer {
            at: peer.addr.ip().to_canonical(),
            id: peer.id.clone(),
            known: false,
        }
    }

    /// Of a connection to a workload, dialled at this address.
    pub fn of_endpoint(workload: &Workload, at: IpAddr) -> Self {
        Self::Endpoint {
            uid: workload.uid.clone(),
            at: at.to_canonical(),
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
    pub fn judge(&mut self, world: &Snapshot) -> Result<(), Revoked> {
        match self {
            Self::Peer { at, id, known } => {
                let there = world.workload_at(*at);
                let is_there = there.is_some_and(|there| there.identity() == *id);
                *known |= is_there;
                if is_there || !*known {
                    return Ok(());
                }
                let (at, id) = (*at, id.clone());
                Err(match there {
                    Some(_) => Revoked::PeerReplaced { at, id },
                    None => Revoked::PeerGone { at, id },
                })
            }
            Self::Endpoint { uid, at, id } => match world.workload(uid) {
                None => Err(Revoked::EndpointGone(uid.clone())),
                Some(there) if there.identity() == *id && there.addresses.contains(at) => Ok(()),
                Some(_) => Err(Revoked::EndpointReplaced(uid.clone())),
            },
        }
    }
}

// === impl Revoked ===

impl Revoked {
    /// A stable word for logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PeerGone { .. } => "peer_gone",
            Self::PeerReplaced { .. } => "peer_replaced",
            Self::EndpointGone(_) => "endpoint_gone",
            Self::EndpointReplaced(_) => "endpoint_replaced",
        }
    }

    /// Whether nobody has taken the place: what moves is then what the one who went has left behind.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::PeerGone { .. } | Self::EndpointGone(_))
    }
}

#[cfg(test)]
mod tests;
