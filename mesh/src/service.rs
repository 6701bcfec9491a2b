//! A service: its addresses and ports, and who must be asked for it.

mod affinity;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::SpiffeId;

pub use self::affinity::session_affinity;
use crate::balance::Reach;
use crate::names::{Network, ServiceName};
use crate::proto::workload as wire;
use crate::workload::{self, InvalidWorkload, WaypointRef};

/// One service. Its endpoints are the workloads that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and host name.
    pub id: ServiceName,
    /// The short name.
    pub name: Arc<str>,
    /// Its own addresses, each with its network, the cluster's own first; none where it is headless.
    pub vips: Box<[(Network, IpAddr)]>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who must be asked instead of its endpoints.
    pub waypoint: Option<WaypointRef>,
    /// Endpoints that are not ready get traffic, too.
    pub publish_not_ready: bool,
    /// How far from a client its endpoints may be.
    pub reach: Reach,
    /// Each client stays with its endpoint until it has not come for so long.
    pub affinity: Option<Duration>,
    /// Its endpoints may prove to be one of these as well.
    pub subject_alt_names: Vec<SpiffeId>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's.
    pub port: u16,
    /// The endpoints'; 0 where each workload says.
    pub target: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Nobody said.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
    /// TLS of the application's own.
    Tls,
}

// === impl Service ===

impl Service {
    /// One of its ports.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }

    /// Whether an address of its list is its own with all ports: of a Kubernetes Service that is the first of each
    /// family, its cluster IP. What stands behind is a load balancer's, a node's or anybody's.
    pub(crate) fn has_whole(&self, ip: IpAddr) -> bool {
        let mut vips = self.vips.iter().map(|(_, vip)| *vip);
        let first = vips.find(|vip| vip.is_ipv4() == ip.is_ipv4());
        !self.is_kubernetes() || first == Some(ip)
    }

    /// Its host name is that of a Kubernetes Service of its namespace, so the cluster has given it its addresses.
    pub(crate) fn is_kubernetes(&self) -> bool {
        let rest = self.id.hostname.strip_prefix(&*self.name);
        let rest = rest.and_then(|rest| rest.strip_prefix('.'));
        let rest = rest.and_then(|rest| rest.strip_prefix(&*self.id.namespace));
        rest.is_some_and(|rest| rest.starts_with(".svc."))
    }
}

impl TryFrom<wire::Service> for Service {
    type Error = InvalidWorkload;

    fn try_from(from: wire::Service) -> Result<Self, Self::Error> {
        let balancing = from.load_balancing.unwrap_or_default();
        Ok(Self {
            id: format!("{}/{}", from.namespace, from.hostname).parse()?,
            name: from.name.into(),
            vips: vips(&from.addresses)?.into(),
            ports: from.ports.iter().map(port).collect::<Result<_, _>>()?,
            waypoint: from.waypoint.map(workload::waypoint).transpose()?,
            publish_not_ready: balancing.health_policy()
                == wire::load_balancing::HealthPolicy::AllowAll,
            reach: Reach::decode(&balancing)?,
            affinity: affinity::read(&from.extensions)?,
            subject_alt_names: from
                .subject_alt_names
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()?,
        })
    }
}

fn vips(all: &[wire::NetworkAddress]) -> Result<Vec<(Network, IpAddr)>, InvalidWorkload> {
    let vips: Result<Vec<_>, _> = all.iter().map(vip).collect();
    Ok(workload::distinct(vips?))
}

fn vip(from: &wire::NetworkAddress) -> Result<(Network, IpAddr), InvalidWorkload> {
    let ip = workload::address(&from.address)?;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    match from.length {
        Some(length) if length != whole => Err(InvalidWorkload::Network(format!("{ip}/{length}"))),
        _ => Ok((from.network.as_str().into(), ip)),
    }
}

fn port(from: &wire::Port) -> Result<ServicePort, InvalidWorkload> {
    Ok(ServicePort {
        port: workload::port(from.service_port)?,
        target: match from.target_port {
            0 => 0,
            target => workload::port(target)?,
        },
        protocol: match wire::AppProtocol::try_from(from.app_protocol) {
            Ok(wire::AppProtocol::Http11) => AppProtocol::Http1,
            Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
            Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
            Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
            Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
            Ok(wire::AppProtocol::Unknown) => AppProtocol::Unknown,
            Err(_) => {
                return Err(InvalidWorkload::Unknown("app protocol", from.app_protocol));
            }
        },
    })
}
