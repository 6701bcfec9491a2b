//! From the wire: whole, or refused with the reason.

use std::net::{IpAddr, SocketAddr};

use hbone::{InvalidSpiffeId, SpiffeId, TrustDomain};

use super::extensions::{is_awaited, is_draining};
use super::interner::Interner;
use super::{Location, PortMap, Template, Tunnel, WaypointRef, Workload, WorkloadType};
use crate::names::{InvalidServiceName, ServiceName, Uid};
use crate::proto::workload as wire;

/// Why a workload or a service is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWorkload {
    /// A field that must be there is empty.
    #[error("no {0}")]
    Missing(&'static str),
    /// An address of neither 4 nor 16 bytes.
    #[error("an address of {0} bytes")]
    Address(usize),
    /// A network that is not one address.
    #[error("{0} is a network, not an address")]
    Network(String),
    /// A number that is no port.
    #[error("{0} is no port")]
    Port(u32),
    /// A number that the wire does not define.
    #[error("unknown {0}: {1}")]
    Unknown(&'static str, i32),
    /// Namespace and service account, or a name given, make no identity.
    #[error(transparent)]
    Identity(#[from] InvalidSpiffeId),
    /// A service's name.
    #[error(transparent)]
    Service(#[from] InvalidServiceName),
}

impl Workload {
    /// Reads a workload; what it has in common with others is taken from `interner`.
    pub(crate) fn decode(
        from: wire::Workload,
        interner: &mut Interner,
    ) -> Result<Self, InvalidWorkload> {
        let uid = Uid::from(present("uid", &from.uid)?);
        let name = (uid.last_segment() != from.name).then(|| from.name.as_str().into());
        let protocol = match known("tunnel protocol", from.tunnel_protocol)? {
            wire::TunnelProtocol::Hbone => Tunnel::Hbone,
            wire::TunnelProtocol::None if is_awaited(&from.extensions) => Tunnel::Awaited,
            // A sidecar's own mutual TLS is not ours to speak; it takes plaintext, too.
            wire::TunnelProtocol::None | wire::TunnelProtocol::LegacyIstioMtls => Tunnel::None,
        };
        let host_network = known::<wire::NetworkMode>("network mode", from.network_mode)?
            == wire::NetworkMode::HostNetwork;
        let healthy =
            known::<wire::WorkloadStatus>("status", from.status)? == wire::WorkloadStatus::Healthy;
        let draining = !healthy && is_draining(&from.extensions);
        let addresses = addresses(&from.addresses)?;
        let location = location(&from, interner);
        let template = template(from, interner)?;
        Ok(Self {
            uid,
            addresses: distinct(addresses).into(),
            protocol,
            host_network,
            healthy,
            draining,
            template: interner.template(template),
            location: interner.location(location),
            name,
        })
    }
}

fn location(from: &wire::Workload, interner: &mut Interner) -> Location {
    let (region, zone) = match &from.locality {
        Some(locality) => (&*locality.region, &*locality.zone),
        None => ("", ""),
    };
    Location {
        cluster: interner.text(&from.cluster_id),
        network: interner.text(&from.network).into(),
        node: interner.text(&from.node),
        region: interner.text(region),
        zone: interner.text(zone),
    }
}

fn template(from: wire::Workload, interner: &mut Interner) -> Result<Template, InvalidWorkload> {
    let trust_domain = match from.trust_domain.as_str() {
        "" => TrustDomain::default(),
        given => given.parse()?,
    };
    let namespace = present("namespace", &from.namespace)?;
    let service_account = match from.service_account.as_str() {
        "" => "default",
        given => given,
    };
    let services = from.services.iter().map(|(name, list)| {
        let name: ServiceName = name.parse()?;
        let name = ServiceName {
            namespace: interner.text(&name.namespace),
            hostname: interner.text(&name.hostname),
        };
        Ok((name, ports(&list.ports)?))
    });
    Ok(Template {
        services: services.collect::<Result<_, InvalidWorkload>>()?,
        identity: SpiffeId::for_service_account(&trust_domain, namespace, service_account)?,
        namespace: interner.text(namespace),
        service_account: interner.text(service_account),
        trust_domain,
        native_tunnel: from.native_tunnel,
        waypoint: from.waypoint.map(waypoint).transpose()?,
        canonical_name: interner.text(&from.canonical_name),
        canonical_revision: interner.text(&from.canonical_revision),
        workload_name: interner.text(&from.workload_name),
        workload_type: match known("workload type", from.workload_type)? {
            wire::WorkloadType::Deployment => WorkloadType::Deployment,
            wire::WorkloadType::Cronjob => WorkloadType::CronJob,
            wire::WorkloadType::Job => WorkloadType::Job,
            wire::WorkloadType::Pod => WorkloadType::Pod,
        },
    })
}

fn present<'a>(what: &'static str, text: &'a str) -> Result<&'a str, InvalidWorkload> {
    match text {
        "" => Err(InvalidWorkload::Missing(what)),
        text => Ok(text),
    }
}

fn known<T: TryFrom<i32>>(what: &'static str, number: i32) -> Result<T, InvalidWorkload> {
    T::try_from(number).map_err(|_| InvalidWorkload::Unknown(what, number))
}

fn ports(ports: &[wire::Port]) -> Result<Box<[PortMap]>, InvalidWorkload> {
    let map = |p: &wire::Port| {
        Ok(PortMap {
            service: port(p.service_port)?,
            target: port(p.target_port)?,
        })
    };
    ports.iter().map(map).collect()
}

pub(crate) fn port(number: u32) -> Result<u16, InvalidWorkload> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(InvalidWorkload::Port(number)),
    }
}

pub(crate) fn addresses<B: AsRef<[u8]>>(all: &[B]) -> Result<Vec<IpAddr>, InvalidWorkload> {
    all.iter().map(|bytes| address(bytes.as_ref())).collect()
}

/// Each address once, where it stands first.
pub(crate) fn distinct<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut distinct = Vec::with_capacity(all.len());
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

pub(crate) fn address(bytes: &[u8]) -> Result<IpAddr, InvalidWorkload> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => Err(InvalidWorkload::Address(bytes.len())),
    }
}

pub(crate) fn waypoint(from: wire::GatewayAddress) -> Result<WaypointRef, InvalidWorkload> {
    use wire::gateway_address::Destination;
    let port = port(from.hbone_mtls_port)?;
    match from.destination {
        Some(Destination::Hostname(name)) => {
            let service = ServiceName {
                namespace: present("waypoint's namespace", &name.namespace)?.into(),
                hostname: present("waypoint's hostname", &name.hostname)?.into(),
            };
            Ok(WaypointRef::Service(service, port))
        }
        Some(Destination::Address(at)) => Ok(WaypointRef::Address(
            at.network.as_str().into(),
            SocketAddr::new(address(&at.address)?, port),
        )),
        None => Err(InvalidWorkload::Missing("waypoint's destination")),
    }
}
