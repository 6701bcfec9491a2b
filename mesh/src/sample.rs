//! A small mesh for the tests of decisions: what a controller would announce, as words.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use hbone::{SpiffeId, TrustDomain};
use prost::Message;

use crate::pod::Pod;
use crate::{
    names::Uid,
    proto::workload as wds,
    world::{World, world},
    xds::{ADDRESS_TYPE, Update},
};

/// What a test announces.
#[derive(Default)]
pub(crate) struct Sample(Vec<(String, Bytes)>);

/// A waypoint's service, at `10.96.9.9` with one instance, `wp-0`, at `10.0.9.9`.
pub(crate) const WAYPOINT: &str = "wp";

impl Sample {
    /// A pod of namespace `ns` with one IPv4 address, changed by `f`.
    pub(crate) fn pod(mut self, name: &str, ip: &str, f: impl FnOnce(&mut wds::Workload)) -> Self {
        let mut workload = wds::Workload {
            uid: format!("Kubernetes//Pod/ns/{name}"),
            name: name.into(),
            namespace: "ns".into(),
            service_account: name.into(),
            addresses: vec![octets(ip)],
            ..wds::Workload::default()
        };
        f(&mut workload);
        let uid = workload.uid.clone();
        self.add(uid, wds::address::Type::Workload(workload));
        self
    }

    /// A service of namespace `ns` with one VIP and port 80, changed by `f`.
    pub(crate) fn service(
        mut self,
        name: &str,
        vip: &str,
        f: impl FnOnce(&mut wds::Service),
    ) -> Self {
        let mut service = wds::Service {
            name: name.into(),
            namespace: "ns".into(),
            hostname: hostname(name),
            addresses: vec![address(vip)],
            ports: vec![port(80, 8080)],
            ..wds::Service::default()
        };
        f(&mut service);
        self.add(
            format!("ns/{}", hostname(name)),
            wds::address::Type::Service(service),
        );
        self
    }

    /// The waypoint.
    pub(crate) fn waypoint(self) -> Self {
        self.service(WAYPOINT, "10.96.9.9", |s| {
            s.ports = vec![port(15008, 15008)];
        })
        .pod("wp-0", "10.0.9.9", |w| {
            serves(w, WAYPOINT, 15008, 15008);
            w.native_tunnel = true;
            hbone(w);
        })
    }

    fn add(&mut self, name: String, r#type: wds::address::Type) {
        let message = wds::Address {
            r#type: Some(r#type),
        };
        self.0.push((name, message.encode_to_vec().into()));
    }

    pub(crate) fn world(self) -> World {
        let (mut writer, world) = world();
        let update = Update {
            type_url: ADDRESS_TYPE,
            updated: self.0,
            removed: vec![],
        };
        writer.apply(&update).unwrap();
        world
    }
}

pub(crate) fn hostname(service: &str) -> String {
    format!("{service}.ns.svc.cluster.local")
}

pub(crate) fn hbone(workload: &mut wds::Workload) {
    workload.set_tunnel_protocol(wds::TunnelProtocol::Hbone);
}

pub(crate) fn serves(workload: &mut wds::Workload, service: &str, port: u16, target: u16) {
    let list = wds::PortList {
        ports: vec![self::port(port, target)],
    };
    workload
        .services
        .insert(format!("ns/{}", hostname(service)), list);
}

/// By the waypoint's service name.
pub(crate) fn behind_waypoint() -> Option<wds::GatewayAddress> {
    let hostname = wds::NamespacedHostname {
        namespace: "ns".into(),
        hostname: hostname(WAYPOINT),
    };
    Some(wds::GatewayAddress {
        destination: Some(wds::gateway_address::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    })
}

/// By an address.
pub(crate) fn behind_address(ip: &str) -> Option<wds::GatewayAddress> {
    Some(wds::GatewayAddress {
        destination: Some(wds::gateway_address::Destination::Address(address(ip))),
        hbone_mtls_port: 15008,
    })
}

pub(crate) fn port(service_port: u16, target_port: u16) -> wds::Port {
    wds::Port {
        service_port: service_port.into(),
        target_port: target_port.into(),
        ..wds::Port::default()
    }
}

fn address(ip: &str) -> wds::NetworkAddress {
    wds::NetworkAddress {
        address: octets(ip).to_vec(),
        ..wds::NetworkAddress::default()
    }
}

pub(crate) fn octets(ip: &str) -> Bytes {
    match ip.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}

pub(crate) fn id(service_account: &str) -> SpiffeId {
    SpiffeId::for_service_account(&TrustDomain::default(), "ns", service_account).unwrap()
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A pod of this node, as its enrolment describes it.
pub(crate) fn own(name: &str, ips: &[&str]) -> Pod {
    Pod {
        uid: name.into(),
        name: name.into(),
        namespace: "ns".into(),
        addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        identity: id(name),
        workload: Uid::pod("Kubernetes", "ns", name),
    }
}
