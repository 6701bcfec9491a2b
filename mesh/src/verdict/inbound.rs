//! Decides whether a connection may reach the application, and on which address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hbone::{Peer, Target};
use http::StatusCode;

use super::OrigDst;
use crate::{pod::Pod, ports, service::Service, workload::Workload, world::Snapshot};

/// A connection that has passed every check. Only this module makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    to: SocketAddr,
    from: Option<IpAddr>,
}

/// Why a connection may not reach the application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address asked for is another pod's.
    #[error("{0} is not an address of pod {1}")]
    NotMine(Target, Arc<str>),
    /// The pod does not stand behind the service asked for, or not on that port.
    #[error("pod {1} does not serve {0}")]
    NotServed(Target, Arc<str>),
    /// The port is the mesh's own.
    #[error("port {0} is reserved for the mesh")]
    IllegalPort(u16),
}

/// What an application's socket and the log need to know of the way in.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The permission.
    pub admitted: Admitted,
    /// The service that was asked for by name.
    pub service: Option<Arc<Service>>,
}

/// Judges a tunnel whose peer is proven: `local` is the pod's address that the peer dialled.
pub fn tunnel(
    peer: &Peer,
    target: &Target,
    local: IpAddr,
    pod: &Pod,
    world: &Snapshot,
) -> Result<Entry, Refusal> {
    let (to, service) = match target {
        Target::Addr(addr) if pod.owns(addr.ip()) => (*addr, None),
        Target::Addr(_) => return Err(Refusal::NotMine(target.clone(), pod.name.clone())),
        Target::Host { host, port } => by_host(host, *port, local, pod, world)
            .ok_or_else(|| Refusal::NotServed(target.clone(), pod.name.clone()))?,
    };
    let from = Some(peer.addr.ip().to_canonical());
    admit(to, from, pod).map(|admitted| Entry { admitted, service })
}

/// Judges plaintext: nobody is proven, and in permissive mode nobody needs to be.
pub fn plaintext(peer: IpAddr, dst: OrigDst, pod: &Pod) -> Result<Admitted, Refusal> {
    if !pod.owns(dst.0.ip()) {
        return Err(Refusal::NotMine(Target::Addr(dst.0), pod.name.clone()));
    }
    admit(dst.0, Some(peer.to_canonical()), pod)
}

fn admit(to: SocketAddr, from: Option<IpAddr>, pod: &Pod) -> Result<Admitted, Refusal> {
    if ports::is_ours(to.port()) {
        return Err(Refusal::IllegalPort(to.port()));
    }
    // The pod calling itself through the mesh needs no disguise, and could not be told from itself.
    let from = from.filter(|ip| !pod.owns(*ip) && !ip.is_loopback());
    Ok(Admitted { to, from })
}

/// A service's hostname and port, as this pod serves it.
fn by_host(
    host: &str,
    port: u16,
    local: IpAddr,
    pod: &Pod,
    world: &Snapshot,
) -> Option<(SocketAddr, Option<Arc<Service>>)> {
    let record: &Workload = world.workload(&pod.workload)?;
    let (name, ports) = record
        .services()
        .find(|(name, _)| &*name.hostname == host)?;
    let target = ports.iter().find(|p| p.service == port)?.target;
    Some((SocketAddr::new(local, target), world.service(name).cloned()))
}

// === impl Admitted ===

impl Admitted {
    /// The application's address.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// The address that the application shall see as its client's.
    pub fn from(&self) -> Option<IpAddr> {
        self.from
    }
}

// === impl Refusal ===

impl Refusal {
    /// A stable word for logs and the peer.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotMine(..) => "not_my_address",
            Self::NotServed(..) => "not_my_service",
            Self::IllegalPort(_) => "illegal_port",
        }
    }

    /// The status for the peer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotMine(..) | Self::NotServed(..) | Self::IllegalPort(_) => {
                StatusCode::BAD_REQUEST
            }
        }
    }
}

#[cfg(test)]
mod tests;
