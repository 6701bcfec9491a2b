//! Decides where one captured connection goes next.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hbone::{Destination, Expect, Target};

use super::OrigDst;
use crate::{
    balance::{Ask, Choice, EndpointStats, Family, NoEndpoint, Place, Readiness},
    names::{ServiceName, Uid},
    pod::Pod,
    ports,
    service::Service,
    workload::{Tunnel, WaypointRef, Workload},
    world::Snapshot,
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
    /// What is seen of it, where it was chosen among others.
    pub chosen: Option<Arc<EndpointStats>>,
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
    /// The service has no endpoint that may receive traffic, or not from here.
    #[error("service {0} has {2} for port {1}")]
    NoEndpoint(ServiceName, u16, NoEndpoint),
    /// The destination says that it is behind a waypoint that we do not know (yet).
    #[error("{0} is behind a waypoint that is not known: {1}")]
    UnknownWaypoint(String, String),
    /// The destination is to be in the mesh, and its node has not got it there.
    #[error(
        "{0} is to be in the mesh and is not (its pod's condition ambit.mesh/InMesh says why): nobody of the mesh sends it plaintext"
    )]
    Awaited(Uid),
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
    /// The connection's source address.
    pub client: IpAddr,
    /// Where the proxy accepted it. Redirection changes that: one that was dialled there would be led there again.
    pub accepted: SocketAddr,
    /// Where it is.
    pub place: Place<'a>,
}

/// Decides from what the mesh knows; reads no socket and awaits nothing. Endpoints in `tried` have just failed.
pub fn decide(
    source: Source<'_>,
    dst: OrigDst,
    world: &Snapshot,
    tried: &[Uid],
) -> Result<Route, Refusal> {
    let OrigDst(addr) = dst;
    // Addresses that every namespace has lead to the pod as well as its own do, and so does one at which we accepted it.
    let within = addr.ip().is_loopback() || addr.ip().is_unspecified();
    if ports::is_ours(addr.port()) && (within || source.pod.owns(addr.ip()))
        || addr == source.accepted
    {
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
            chosen: None,
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
    let port = addr.port();
    let found = pick(source, service, addr, world, tried, Readiness::Ready);
    let endpoint = found.map_err(|none| Refusal::NoEndpoint(service.id.clone(), port, none))?;
    let expect = Expect::any_of(
        std::iter::once(endpoint.workload.identity())
            .chain(service.subject_alt_names.iter().cloned()),
    );
    let direct = direct(
        source,
        endpoint.address,
        endpoint.workload,
        expect,
        Some(service.clone()),
    )?;
    Ok(Route {
        chosen: Some(endpoint.stats),
        ..direct
    })
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
    direct(source, addr, workload.clone(), expect, service)
}

/// The hop to one workload: a tunnel where it has one, unless that would be a tunnel in a tunnel or to oneself.
fn direct(
    source: Source<'_>,
    addr: SocketAddr,
    workload: Arc<Workload>,
    expect: Option<Expect>,
    service: Option<Arc<Service>>,
) -> Result<Route, Refusal> {
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
        (Tunnel::Awaited, _) if !own => return Err(Refusal::Awaited(workload.uid.clone())),
        _ => NextHop::Plain(addr),
    };
    Ok(Route {
        hop,
        service,
        to: Some(workload),
        chosen: None,
    })
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
    let instance = match waypoint {
        WaypointRef::Service(name, port) => {
            let service = world.service(name).ok_or_else(unknown)?;
            if is_instance(source, service) {
                return Ok(None);
            }
            instance(source, service, *port, addr.ip(), world, tried)?
        }
        WaypointRef::Address(network, _) if !world.is_local(network) => return Err(unknown()),
        WaypointRef::Address(_, at) => match (world.service_at(*at), world.workload_at(at.ip())) {
            (Some(service), _) => {
                if is_instance(source, service) {
                    return Ok(None);
                }
                instance(source, service, at.port(), addr.ip(), world, tried)?
            }
            (None, Some(_)) if source.pod.owns(at.ip()) => return Ok(None),
            (None, Some(workload)) => Choice {
                workload: workload.clone(),
                address: *at,
                stats: Arc::default(),
            },
            (None, None) => return Err(unknown()),
        },
    };
    let destination = Destination {
        addr: instance.address,
        expect: Expect::one(instance.workload.identity()),
        workload: Arc::from(instance.workload.uid.as_str()),
    };
    let hop = NextHop::Tunnel {
        destination,
        target: Target::Addr(addr),
    };
    Ok(Some(Route {
        hop,
        service: None,
        to: Some(instance.workload),
        chosen: Some(instance.stats),
    }))
}

/// Where no instance is healthy, any: one that is leaving still serves who comes, and one that is coming up
/// refuses at once, so that the next is tried. Nobody gets past the waypoint either way.
fn instance(
    source: Source<'_>,
    waypoint: &Service,
    port: u16,
    family_of: IpAddr,
    world: &Snapshot,
    tried: &[Uid],
) -> Result<Choice, Refusal> {
    let like = SocketAddr::new(family_of, port);
    let pick = |readiness| pick(source, waypoint, like, world, tried, readiness);
    let found = pick(Readiness::Ready).or_else(|_| pick(Readiness::Any));
    found.map_err(|_| Refusal::NoWaypoint(waypoint.id.clone()))
}

fn is_instance(source: Source<'_>, waypoint: &Service) -> bool {
    source
        .record
        .is_some_and(|record| record.services().any(|(name, _)| *name == waypoint.id))
}

/// The mesh chooses an endpoint of a port, at an address of the family that was dialled, else of the other: the tunnel
/// does not mind.
fn pick(
    source: Source<'_>,
    service: &Service,
    like: SocketAddr,
    world: &Snapshot,
    tried: &[Uid],
    readiness: Readiness,
) -> Result<Choice, NoEndpoint> {
    let ask = Ask {
        family: Some(Family::of(like.ip())),
        client: Some(source.client),
        place: source.place,
        tried,
        readiness,
    };
    world.pick(service, like.port(), &ask, &mut fastrand::Rng::new())
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
            Self::Awaited(_) => "endpoint_not_in_mesh",
        }
    }
}

#[cfg(test)]
mod tests;
