//! Decides where one captured connection goes next.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hbone::{Destination, Expect, Target};

use super::OrigDst;
use crate::{
    names::{ServiceName, Uid},
    pod::Pod,
    ports,
    service::Service,
    workload::{Tunnel, WaypointRef, Workload},
    world::{Endpoint, Family, Snapshot},
};

/// Where a captured connection goes, and what is known about that place.
#[derive(Debug, Clone)]
pub struct Route {
    /// The next hop.
    pub hop: NextHop,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// The workload at the other end of the hop.
    pub to: Option<Arc<Workload>>,
}

/// Where a captured connection goes next.
#[derive(Debug, Clone)]
pub enum NextHop {
    /// Into the mesh: a tunnel to a peer that proves to be who is expected, asked for `target`.
    Tunnel {
        /// Whom to connect to, and whom that must prove to be.
        destination: Destination,
        /// What the peer is asked for.
        target: Target,
    },
    /// The application's own bytes, to an address outside the mesh.
    Plain(SocketAddr),
}

/// Why a captured connection goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pod dialled one of its own proxy's ports.
    #[error("{0} is a port of the mesh itself")]
    OwnProxy(SocketAddr),
    /// The service has no such port.
    #[error("service {0} has no port {1}")]
    UnknownPort(ServiceName, u16),
    /// The service has no endpoint that may receive traffic.
    #[error("service {0} has no healthy endpoint for port {1}")]
    NoEndpoint(ServiceName, u16),
    /// The destination says that it is behind a waypoint that we do not know (yet).
    #[error("{0} is behind a waypoint that is not known: {1}")]
    UnknownWaypoint(String, String),
    /// The destination's waypoint has no instance that may receive traffic.
    #[error("waypoint {0} has no healthy instance")]
    NoWaypoint(ServiceName),
}

/// The captured connection's source, as far as the decision cares.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The pod itself, known from its enrolment.
    pub pod: &'a Pod,
    /// What the control plane says of it, if it has said anything yet.
    pub record: Option<&'a Workload>,
}

/// Decides from what the mesh knows; reads no socket and awaits nothing. Endpoints in `tried` have just failed.
pub fn decide(
    source: Source<'_>,
    dst: OrigDst,
    world: &Snapshot,
    tried: &[Uid],
) -> Result<Route, Refusal> {
    let OrigDst(addr) = dst;
    if ports::is_ours(addr.port()) && source.pod.owns(addr.ip()) {
        return Err(Refusal::OwnProxy(addr));
    }
    if let Some(service) = world.service_at(addr) {
        return to_service(source, addr, service, world, tried);
    }
    match world.workload_at(addr.ip()) {
        Some(workload) => to_workload(source, addr, workload, world, tried),
        None => Ok(Route {
            hop: NextHop::Plain(addr),
            service: None,
            to: None,
        }),
    }
}

fn to_service(
    source: Source<'_>,
    addr: SocketAddr,
    service: &Arc<Service>,
    world: &Snapshot,
    tried: &[Uid],
) -> Result<Route, Refusal> {
    if !service.ports.iter().any(|p| p.port == addr.port()) {
        return Err(Refusal::UnknownPort(service.id.clone(), addr.port()));
    }
    if let Some(waypoint) = &service.waypoint {
        let behind = || format!("service {}", service.id);
        if let Some(hop) = through(source, waypoint, addr, world, tried, behind)? {
            return Ok(Route {
                service: Some(service.clone()),
                ..hop
            });
        }
    }
    let endpoint = pick(service, addr.port(), addr.ip(), world, tried)
        .ok_or_else(|| Refusal::NoEndpoint(service.id.clone(), addr.port()))?;
    let ip = address(&endpoint.workload, addr.ip())
        .ok_or_else(|| Refusal::NoEndpoint(service.id.clone(), addr.port()))?;
    let expect = Expect::any_of(
        std::iter::once(endpoint.workload.identity())
            .chain(service.subject_alt_names.iter().cloned()),
    );
    Ok(direct(
        source,
        SocketAddr::new(ip, endpoint.target),
        endpoint.workload,
        expect,
        Some(service.clone()),
    ))
}

fn to_workload(
    source: Source<'_>,
    addr: SocketAddr,
    workload: &Arc<Workload>,
    world: &Snapshot,
    tried: &[Uid],
) -> Result<Route, Refusal> {
    if let Some(waypoint) = &workload.template.waypoint {
        let behind = || format!("workload {}", workload.uid);
        if let Some(route) = through(source, waypoint, addr, world, tried, behind)? {
            return Ok(route);
        }
    }
    let expect = Some(Expect::one(workload.identity()));
    let service = guess_service(workload, addr.port(), world);
    Ok(direct(source, addr, workload.clone(), expect, service))
}

/// The hop to one workload: a tunnel where it has one, unless that would be a tunnel in a tunnel or to oneself.
fn direct(
    source: Source<'_>,
    addr: SocketAddr,
    workload: Arc<Workload>,
    expect: Option<Expect>,
    service: Option<Arc<Service>>,
) -> Route {
    let own = source.pod.owns(addr.ip());
    let tunnels_itself =
        source.record.is_some_and(|r| r.template.native_tunnel) && addr.port() == hbone::PORT;
    let hop = match (workload.protocol, expect) {
        (Tunnel::Hbone, Some(expect)) if !own && !tunnels_itself => NextHop::Tunnel {
            destination: Destination {
                addr: SocketAddr::new(addr.ip(), hbone::PORT),
                expect,
                workload: Arc::from(workload.uid.as_str()),
            },
            target: Target::Addr(addr),
        },
        _ => NextHop::Plain(addr),
    };
    Route {
        hop,
        service,
        to: Some(workload),
    }
}

/// The hop to a waypoint, which chooses the endpoint and so is told what the application dialled;
/// nothing where the source is that waypoint.
fn through(
    source: Source<'_>,
    waypoint: &WaypointRef,
    addr: SocketAddr,
    world: &Snapshot,
    tried: &[Uid],
    behind: impl Fn() -> String,
) -> Result<Option<Route>, Refusal> {
    let unknown = || Refusal::UnknownWaypoint(behind(), waypoint_text(waypoint));
    let (instance, ip, port) = match waypoint {
        WaypointRef::Service(name, port) => {
            let service = world.service(name).ok_or_else(unknown)?;
            if is_instance(source, service) {
                return Ok(None);
            }
            instance(service, *port, addr.ip(), world, tried)?
        }
        WaypointRef::Address(network, _) if !world.is_local(network) => return Err(unknown()),
        WaypointRef::Address(_, at) => match (world.service_at(*at), world.workload_at(at.ip())) {
            (Some(service), _) => {
                if is_instance(source, service) {
                    return Ok(None);
                }
                instance(service, at.port(), addr.ip(), world, tried)?
            }
            (None, Some(_)) if source.pod.owns(at.ip()) => return Ok(None),
            (None, Some(workload)) => (workload.clone(), at.ip(), at.port()),
            (None, None) => return Err(unknown()),
        },
    };
    let destination = Destination {
        addr: SocketAddr::new(ip, port),
        expect: Expect::one(instance.identity()),
        workload: Arc::from(instance.uid.as_str()),
    };
    let hop = NextHop::Tunnel {
        destination,
        target: Target::Addr(addr),
    };
    Ok(Some(Route {
        hop,
        service: None,
        to: Some(instance),
    }))
}

fn instance(
    waypoint: &Arc<Service>,
    port: u16,
    family_of: IpAddr,
    world: &Snapshot,
    tried: &[Uid],
) -> Result<(Arc<Workload>, IpAddr, u16), Refusal> {
    let none = || Refusal::NoWaypoint(waypoint.id.clone());
    let endpoint = pick(waypoint, port, family_of, world, tried)
        .or_else(|| any_instance(waypoint, port, world, tried))
        .ok_or_else(none)?;
    let ip = address(&endpoint.workload, family_of).ok_or_else(none)?;
    Ok((endpoint.workload, ip, endpoint.target))
}

/// Where no instance is healthy: one that is leaving still serves who comes, and one that is coming up
/// refuses at once, so that the next is tried. Nobody gets past the waypoint either way.
fn any_instance(
    waypoint: &Service,
    port: u16,
    world: &Snapshot,
    tried: &[Uid],
) -> Option<Endpoint> {
    let all = || world.endpoints(&waypoint.id, port);
    all()
        .find(|e| !tried.contains(&e.workload.uid))
        .or_else(|| all().next())
}

fn is_instance(source: Source<'_>, waypoint: &Service) -> bool {
    source
        .record
        .is_some_and(|record| record.services().any(|(name, _)| *name == waypoint.id))
}

/// The mesh chooses; an endpoint that has just failed is chosen again only if the mesh has no other.
fn pick(
    service: &Service,
    port: u16,
    family_of: IpAddr,
    world: &Snapshot,
    tried: &[Uid],
) -> Option<Endpoint> {
    let family = Family::of(family_of);
    let first = world.pick(service, port, Some(family)).ok()?;
    if !tried.contains(&first.workload.uid) {
        return Some(first);
    }
    world
        .endpoints(&service.id, port)
        .find(|e| e.healthy && !tried.contains(&e.workload.uid))
        .or(Some(first))
}

/// The address of the family that was dialled, else of the other: the tunnel does not mind.
fn address(workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    let same = |ip: &&IpAddr| ip.is_ipv4() == like.is_ipv4();
    workload
        .addresses
        .iter()
        .find(same)
        .or(workload.addresses.first())
        .copied()
}

/// For logs and metrics only: the service a pod was probably dialled for.
fn guess_service(workload: &Workload, port: u16, world: &Snapshot) -> Option<Arc<Service>> {
    let (name, _) = workload
        .services()
        .find(|(_, ports)| ports.iter().any(|p| p.target == port))?;
    world.service(name).cloned()
}

fn waypoint_text(waypoint: &WaypointRef) -> String {
    match waypoint {
        WaypointRef::Service(name, port) => format!("{name}:{port}"),
        WaypointRef::Address(_, addr) => addr.to_string(),
    }
}

impl Refusal {
    /// A stable word for logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OwnProxy(_) => "own_proxy_port",
            Self::UnknownPort(..) => "unknown_service_port",
            Self::NoEndpoint(..) => "no_endpoint",
            Self::UnknownWaypoint(..) => "unknown_waypoint",
            Self::NoWaypoint(_) => "no_waypoint_instance",
        }
    }
}

#[cfg(test)]
mod tests;
