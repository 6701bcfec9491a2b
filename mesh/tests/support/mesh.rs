//! A world, and words to say to it.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use mesh::proto::workload as wds;
use mesh::world::{World, WorldWriter, world_in};
use mesh::xds::{Rejected, Update};
use prost::Message;

pub(crate) struct Mesh {
    pub(crate) writer: WorldWriter,
    pub(crate) world: World,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::in_network("")
    }

    pub(crate) fn in_network(network: &str) -> Self {
        let (writer, world) = world_in(network.into());
        Self { writer, world }
    }

    pub(crate) fn tell(
        &mut self,
        type_url: &'static str,
        updated: Vec<(String, Bytes)>,
    ) -> Result<(), Rejected> {
        let removed = vec![];
        self.writer.apply(&Update {
            type_url,
            updated,
            removed,
        })
    }

    pub(crate) fn forget(&mut self, type_url: &'static str, name: &str) {
        let (updated, removed) = (vec![], vec![name.to_owned()]);
        let update = Update {
            type_url,
            updated,
            removed,
        };
        self.writer.apply(&update).unwrap();
    }
}

pub(crate) fn octets(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn pod(
    name: &str,
    ips: &[&str],
    change: impl FnOnce(&mut wds::Workload),
) -> (String, Bytes) {
    let ports = [(80, 8080), (81, 8081)].map(|(service_port, target_port)| wds::Port {
        service_port,
        target_port,
        ..Default::default()
    });
    let mut workload = wds::Workload {
        uid: format!("c//Pod/ns/{name}"),
        name: name.into(),
        namespace: "ns".into(),
        addresses: ips.iter().map(|ip| octets(ip).into()).collect(),
        services: [(
            "ns/shop.ns.svc.cluster.local".into(),
            wds::PortList {
                ports: ports.into(),
            },
        )]
        .into(),
        ..Default::default()
    };
    change(&mut workload);
    let name = workload.uid.clone();
    let address = wds::Address {
        r#type: Some(wds::address::Type::Workload(workload)),
    };
    (name, address.encode_to_vec().into())
}

pub(crate) fn service(
    name: &str,
    vip: &str,
    change: impl FnOnce(&mut wds::Service),
) -> (String, Bytes) {
    let mut service = wds::Service {
        name: name.into(),
        namespace: "ns".into(),
        hostname: format!("{name}.ns.svc.cluster.local"),
        addresses: vec![wds::NetworkAddress {
            address: octets(vip),
            ..Default::default()
        }],
        ports: vec![wds::Port {
            service_port: 80,
            target_port: 0,
            ..Default::default()
        }],
        ..Default::default()
    };
    change(&mut service);
    let name = format!("{}/{}", service.namespace, service.hostname);
    let address = wds::Address {
        r#type: Some(wds::address::Type::Service(service)),
    };
    (name, address.encode_to_vec().into())
}
