//! Which endpoint of a service takes a connection or a request: one choice, for every program that makes it.
//!
//! [`set`] is what can be chosen, [`policy`] which of it may be, [`choose`] which of that is, [`stats`] what this process
//! has seen of each endpoint meanwhile, and [`sticky`] which clients stay with theirs. [`reach`](self::reach()) tries them.

mod choose;
mod policy;
mod reach;
mod set;
mod stats;
mod sticky;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::names::Uid;
use crate::workload::Workload;

pub use self::policy::{Circle, Place, Reach, Readiness};
pub use self::reach::{Tries, Why, reach};
pub use self::stats::{EndpointStats, InFlight};
pub(crate) use self::{
    choose::{How, again, pick},
    set::{Member, PortSets, Reused, Sets},
    stats::StatsTable,
    sticky::{Client, Sticky},
};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Who asks for an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Endpoints with an address of this family come before others.
    pub family: Option<Family>,
    /// Its address, for services that keep each client at one endpoint.
    pub client: Option<IpAddr>,
    /// Where the client is.
    pub place: Place<'a>,
    /// Workloads that were tried for it already: chosen again only where there is no other.
    pub tried: &'a [Uid],
    /// Whom it may be.
    pub readiness: Readiness,
}

/// The endpoint that takes it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Where it serves the port, at an address of the family asked for if it has one.
    pub address: SocketAddr,
    /// What this process has seen of it.
    pub stats: Arc<EndpointStats>,
}

/// Why a service has no endpoint to pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// No workload serves this port.
    #[error("no endpoint")]
    None,
    /// Some do, and none of them may receive traffic.
    #[error("no healthy endpoint")]
    Unhealthy,
    /// Some do, they are to be in the mesh, and their nodes have not got them there.
    #[error(
        "no endpoint that is in the mesh as it is to be (its pod's condition ambit.mesh/InMesh says why)"
    )]
    Awaited,
    /// Some may, and the service allows none that is so far from this client.
    #[error("no healthy endpoint as near to the client as its internalTrafficPolicy wants")]
    TooFar,
}

impl Family {
    /// Of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.to_canonical().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    pub(crate) fn has(self, ip: IpAddr) -> bool {
        Self::of(ip) == self
    }
}
