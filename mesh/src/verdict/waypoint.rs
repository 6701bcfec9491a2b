//! DECISION: is a tunnel's target this waypoint's business, and is it HTTP?

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hbone::{Refusal, Target, TrustDomain};
use http::StatusCode;

use crate::names::ServiceName;
use crate::service::{AppProtocol, Service};
use crate::workload::{WaypointRef, Workload};
use crate::world::Snapshot;

/// Who this waypoint is.
#[derive(Clone, Debug)]
pub struct SelfInfo {
    /// Its own service, by which others are bound to it.
    pub service: ServiceName,
    /// Its pod's address.
    pub address: Option<IpAddr>,
    /// Clients must be of this trust domain.
    pub trust_domain: TrustDomain,
}

/// What a tunnel was admitted for.
#[derive(Clone, Debug)]
pub enum To {
    /// A service that is bound to this waypoint.
    Service {
        /// The service.
        service: Arc<Service>,
        /// Its port, as the client dialled it.
        port: u16,
    },
    /// A workload that is bound to this waypoint.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// The port of the workload.
        port: u16,
    },
}

/// A tunnel that may be opened. Only [`admit`] makes one.
#[derive(Clone, Debug)]
pub struct Admitted {
    to: To,
    http: bool,
}

/// Why a tunnel is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Nothing in the mesh has this address or name.
    Unknown(Target),
    /// It is in the mesh, but not behind this waypoint.
    NotBound(Arc<str>),
    /// The service has no such port.
    NoPort(ServiceName, u16),
}

/// Judges a target from what the mesh knows.
///
/// `lately(service)` says that the service was bound to this waypoint until just now: its clients
/// hear of the change at another time than we do, and lose nothing in between.
pub fn admit(
    world: &Snapshot,
    me: &SelfInfo,
    target: &Target,
    lately: impl Fn(&ServiceName) -> bool,
) -> Result<Admitted, NotAdmitted> {
    let (service, port) = match target {
        Target::Addr(addr) => match world.service_at(*addr) {
            Some(service) => (service, addr.port()),
            None => return workload(world, me, target, addr.ip().to_canonical(), addr.port()),
        },
        Target::Host { host, port } => {
            let named = service_name(host).and_then(|name| world.service(&name));
            (
                named.ok_or_else(|| NotAdmitted::Unknown(target.clone()))?,
                *port,
            )
        }
    };
    let bound = match &service.waypoint {
        Some(at) => is_me(world, me, at),
        None => lately(&service.id),
    };
    if !bound {
        return Err(NotAdmitted::NotBound(Arc::from(service.id.to_string())));
    }
    let Some(declared) = protocol(service, port) else {
        return Err(NotAdmitted::NoPort(service.id.clone(), port));
    };
    let http = match declared {
        declared if is_http(declared) => true,
        // Never guessed from the bytes: a server that speaks first would wait for ever.
        AppProtocol::Unknown => world.routes(&service.id, port).is_some(),
        _ => false,
    };
    Ok(Admitted {
        to: To::Service {
            service: Arc::clone(service),
            port,
        },
        http,
    })
}

fn workload(
    world: &Snapshot,
    me: &SelfInfo,
    target: &Target,
    ip: IpAddr,
    port: u16,
) -> Result<Admitted, NotAdmitted> {
    let workload = world
        .workload_at(ip)
        .ok_or_else(|| NotAdmitted::Unknown(target.clone()))?;
    if !workload
        .template
        .waypoint
        .as_ref()
        .is_some_and(|at| is_me(world, me, at))
    {
        return Err(NotAdmitted::NotBound(Arc::from(workload.uid.to_string())));
    }
    let http = workload.services().any(|(name, ports)| {
        let service = world.service(name);
        let served = ports.iter().filter(|map| map.target == port);
        service.is_some_and(|service| {
            served
                .into_iter()
                .any(|map| protocol(service, map.service).is_some_and(is_http))
        })
    });
    Ok(Admitted {
        to: To::Workload {
            workload: Arc::clone(workload),
            port,
        },
        http,
    })
}

/// The declared protocol of a port; `None`: there is no such port.
pub fn protocol(service: &Service, port: u16) -> Option<AppProtocol> {
    service
        .ports
        .iter()
        .find(|known| known.port == port)
        .map(|known| known.protocol)
}

/// Whether a declared protocol is one of HTTP's.
fn is_http(declared: AppProtocol) -> bool {
    matches!(
        declared,
        AppProtocol::Http1 | AppProtocol::Http2 | AppProtocol::Grpc
    )
}

/// Whether a service is bound to this waypoint now.
pub fn is_bound(world: &Snapshot, me: &SelfInfo, service: &ServiceName) -> bool {
    let waypoint = world
        .service(service)
        .and_then(|service| service.waypoint.as_ref());
    waypoint.is_some_and(|waypoint| is_me(world, me, waypoint))
}

fn is_me(world: &Snapshot, me: &SelfInfo, at: &WaypointRef) -> bool {
    match at {
        WaypointRef::Service(name, _) => *name == me.service,
        WaypointRef::Address(network, addr) => {
            let service = world.service_at(*addr);
            world.is_local(network)
                && (me.address == Some(addr.ip().to_canonical())
                    || service.is_some_and(|service| service.id == me.service))
        }
    }
}

/// `name.namespace.svc.…` names its own namespace.
fn service_name(host: &str) -> Option<ServiceName> {
    let mut labels = host.split('.');
    let (_, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
    (svc == "svc").then(|| ServiceName {
        namespace: Arc::from(namespace),
        hostname: Arc::from(host),
    })
}

// === impl To ===

impl To {
    /// The host of requests that name none.
    pub fn host(&self) -> String {
        match self {
            Self::Service { service, port } => format!("{}:{port}", service.id.hostname),
            Self::Workload { workload, port } => format!("{}:{port}", workload.name()),
        }
    }

    /// The service, where it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, port } => write!(f, "{} port {port}", service.id),
            Self::Workload { workload, port } => write!(f, "{} port {port}", workload.uid),
        }
    }
}

// === impl Admitted ===

impl Admitted {
    /// What the tunnel is for.
    pub fn to(&self) -> &To {
        &self.to
    }

    /// Whether the bytes in it are HTTP.
    pub fn is_http(&self) -> bool {
        self.http
    }
}

// === impl NotAdmitted ===

impl NotAdmitted {
    /// Whether a change that is under way may still admit it.
    pub fn may_change(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::NotBound(_))
    }

    /// What the client's side is told.
    pub fn refusal(&self) -> Refusal {
        let (code, reason) = match self {
            Self::Unknown(target) => (
                "unknown_destination",
                format!("nothing in the mesh is at {target}"),
            ),
            Self::NotBound(who) => (
                "not_bound_here",
                format!("{who} is not behind this waypoint"),
            ),
            Self::NoPort(service, port) => {
                ("unknown_port", format!("{service} has no port {port}"))
            }
        };
        Refusal {
            status: StatusCode::BAD_REQUEST,
            code: Cow::Borrowed(code),
            reason,
        }
    }
}
