//! Each address has one owner, whatever is claimed and in whichever order it is heard.

#[path = "support/mesh.rs"]
mod told;

use std::net::SocketAddr;

use bytes::Bytes;
use mesh::balance::Ask;
use mesh::names::Uid;
use mesh::proto::workload as wds;
use mesh::workload::Tunnel;
use mesh::xds::{ADDRESS_TYPE, Update};
use proptest::prelude::*;
use told::{Mesh, addr, ip, octets, pod, service};

const CONTESTED: &str = "10.0.0.1";

/// Somebody who claims [`CONTESTED`].
#[derive(Clone, Copy, Debug)]
enum Claim {
    Pod,
    MeshedPod,
    /// Ready no more.
    SickMeshedPod,
    Host,
    Slice,
    /// Says that it can be reached by a tunnel.
    MeshedSlice,
    Entry,
}

fn claim(claim: Claim) -> (String, Bytes) {
    let uid = match claim {
        Claim::Pod => "c//Pod/ns/plain",
        Claim::MeshedPod => "c//Pod/ns/meshed",
        Claim::SickMeshedPod => "c//Pod/ns/sick",
        Claim::Host => "c//Pod/ns/host",
        Claim::Slice => "c/discovery.k8s.io/EndpointSlice/evil/grab/10.0.0.1",
        Claim::MeshedSlice => "a/discovery.k8s.io/EndpointSlice/evil/grab/10.0.0.1",
        Claim::Entry => "c/networking.istio.io/WorkloadEntry/ns/vm",
    };
    pod(&format!("{claim:?}"), &[CONTESTED], |w| {
        w.uid = uid.into();
        if let Claim::MeshedPod | Claim::SickMeshedPod | Claim::MeshedSlice = claim {
            w.set_tunnel_protocol(wds::TunnelProtocol::Hbone);
        }
        if let Claim::SickMeshedPod = claim {
            w.set_status(wds::WorkloadStatus::Unhealthy);
        }
        if let Claim::Host = claim {
            w.set_network_mode(wds::NetworkMode::HostNetwork);
        }
    })
}

fn owner(mesh: &Mesh) -> String {
    let name = |w: &std::sync::Arc<mesh::workload::Workload>| w.name().to_string();
    let owner = mesh.world.look(|w| w.workload_at(ip(CONTESTED)).map(name));
    owner.unwrap_or_else(|| "nobody".to_owned())
}

#[test]
fn of_two_claims_the_better_owns_the_address_in_either_order() {
    use Claim::{Entry, Host, MeshedPod, MeshedSlice, Pod, SickMeshedPod, Slice};
    // The winner first.
    let cases = [
        ([Pod, Slice], "Pod"),
        ([MeshedPod, Slice], "MeshedPod"),
        // A pod is what it says; a slice may say anything.
        ([Pod, MeshedSlice], "Pod"),
        ([Pod, Entry], "Pod"),
        ([Pod, Host], "Pod"),
        // Its node's: no workload has it.
        ([Host, Slice], "nobody"),
        ([Host, MeshedSlice], "nobody"),
        ([MeshedPod, Pod], "MeshedPod"),
        ([SickMeshedPod, Pod], "SickMeshedPod"),
        ([MeshedPod, SickMeshedPod], "MeshedPod"),
        ([MeshedSlice, Entry], "MeshedSlice"),
        ([Slice, Entry], "Slice"),
    ];
    for ([winner, loser], expected) in cases {
        for order in [[winner, loser], [loser, winner]] {
            let mut mesh = Mesh::new();
            for each in order {
                mesh.tell(ADDRESS_TYPE, vec![claim(each)]).unwrap();
            }
            assert_eq!(owner(&mesh), expected, "{order:?}");
            // Said again, as after a resync or by whoever touches his object.
            mesh.tell(ADDRESS_TYPE, vec![claim(loser)]).unwrap();
            assert_eq!(owner(&mesh), expected, "{order:?}, and the loser again");
            mesh.forget(ADDRESS_TYPE, &claim(loser).0);
            assert_eq!(owner(&mesh), expected, "{order:?}, and the loser is gone");
            mesh.tell(ADDRESS_TYPE, vec![claim(loser)]).unwrap();
            mesh.forget(ADDRESS_TYPE, &claim(winner).0);
            let next = if matches!(loser, Host) {
                "nobody".to_owned()
            } else {
                format!("{loser:?}")
            };
            assert_eq!(owner(&mesh), next, "{order:?}, and the winner is gone");
            mesh.tell(ADDRESS_TYPE, vec![claim(winner)]).unwrap();
            assert_eq!(owner(&mesh), expected, "{order:?}, and the winner is back");
        }
    }
}

/// A service at an address with one port.
fn at(name: &str, vip: &str, port: u32) -> (String, Bytes) {
    service(name, vip, |s| s.ports[0].service_port = port)
}

/// As an entry of `evil` that takes whatever host name and addresses it likes.
fn entry(host: &str, vip: &str, port: u32) -> (String, Bytes) {
    service("entry", vip, |s| {
        s.namespace = "evil".into();
        s.hostname = host.into();
        s.ports[0].service_port = port;
    })
}

fn at_port(mesh: &Mesh, to: &str) -> Option<String> {
    let host = |s: &std::sync::Arc<mesh::service::Service>| s.id.hostname.to_string();
    mesh.world.look(|w| w.service_at(addr(to)).map(host))
}

#[test]
fn a_service_address_is_claimed_by_port() {
    const SHOP: &str = "shop.ns.svc.cluster.local";
    const LB: &str = "lb.ns.svc.cluster.local";
    // `lb` has the cluster IP of `shop` as a further address, on a port of its own and on one of `shop`'s.
    let lb = || {
        service("lb", "10.96.0.9", |s| {
            s.addresses.push(wds::NetworkAddress {
                address: octets("10.96.0.1"),
                ..Default::default()
            });
            s.ports.push(wds::Port {
                service_port: 81,
                ..s.ports[0]
            });
        })
    };
    let claims = || {
        [
            at("shop", "10.96.0.1", 80),
            lb(),
            entry("a.example", "10.96.0.1", 80),
            entry("shop.ns.svc.cluster.local", "10.96.0.1", 82),
        ]
    };
    let orders: [[usize; 4]; 4] = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]];
    for order in orders {
        let mut mesh = Mesh::new();
        for index in order {
            let told = claims()[index].clone();
            mesh.tell(ADDRESS_TYPE, vec![told]).unwrap();
        }
        assert_eq!(at_port(&mesh, "10.96.0.1:80").as_deref(), Some(SHOP));
        assert_eq!(at_port(&mesh, "10.96.0.1:81").as_deref(), Some(LB));
        let evil = mesh.world.look(|w| {
            w.service_at(addr("10.96.0.1:82"))
                .map(|s| s.id.namespace.to_string())
        });
        assert_eq!(evil.as_deref(), Some("evil"));
        // Nobody's port is the first one's to refuse.
        assert_eq!(at_port(&mesh, "10.96.0.1:443").as_deref(), Some(SHOP));
        mesh.forget(ADDRESS_TYPE, "ns/shop.ns.svc.cluster.local");
        assert_eq!(at_port(&mesh, "10.96.0.1:80").as_deref(), Some(LB));
        mesh.forget(ADDRESS_TYPE, "ns/lb.ns.svc.cluster.local");
        assert_eq!(at_port(&mesh, "10.96.0.1:80").as_deref(), Some("a.example"));
        mesh.tell(ADDRESS_TYPE, claims().to_vec()).unwrap();
        assert_eq!(at_port(&mesh, "10.96.0.1:80").as_deref(), Some(SHOP));
    }
}

#[test]
fn a_service_refuses_the_other_ports_of_its_cluster_ips_only() {
    let mut mesh = Mesh::new();
    let shop = service("shop", "10.96.0.1", |s| {
        s.addresses
            .extend(
                ["fd00::1", "203.0.113.1", "2001:db8::1"].map(|address| wds::NetworkAddress {
                    address: octets(address),
                    ..Default::default()
                }),
            );
    });
    mesh.tell(ADDRESS_TYPE, vec![shop]).unwrap();
    let shop = Some("shop.ns.svc.cluster.local");
    for whole in ["10.96.0.1:443", "[fd00::1]:443"] {
        assert_eq!(at_port(&mesh, whole).as_deref(), shop, "{whole}");
    }
    for further in ["203.0.113.1", "[2001:db8::1]"] {
        let at = |port: u16| at_port(&mesh, &format!("{further}:{port}"));
        assert_eq!(at(80).as_deref(), shop, "{further}");
        assert_eq!(at(443), None, "{further}: who knows who listens there");
    }
}

#[test]
fn a_service_address_hides_neither_a_pod_nor_the_other_ports_of_a_node() {
    for pod_first in [true, false] {
        let mut mesh = Mesh::new();
        let mut told = vec![
            at("grab", CONTESTED, 80),
            claim(Claim::Pod),
            at("lb", "10.0.0.2", 80),
            pod("host", &["10.0.0.2"], |w| {
                w.set_network_mode(wds::NetworkMode::HostNetwork);
            }),
        ];
        if pod_first {
            told.reverse();
        }
        for one in told {
            mesh.tell(ADDRESS_TYPE, vec![one]).unwrap();
        }
        assert_eq!(at_port(&mesh, "10.0.0.1:80"), None);
        assert_eq!(owner(&mesh), "Pod");
        let lb = "lb.ns.svc.cluster.local";
        assert_eq!(at_port(&mesh, "10.0.0.2:80").as_deref(), Some(lb));
        assert_eq!(at_port(&mesh, "10.0.0.2:22"), None);
        mesh.forget(ADDRESS_TYPE, "c//Pod/ns/plain");
        let grab = "grab.ns.svc.cluster.local";
        assert_eq!(at_port(&mesh, "10.0.0.1:80").as_deref(), Some(grab));
    }
}

#[test]
fn a_slice_that_lists_a_pod_means_that_pod() {
    let mut mesh = Mesh::new();
    let grab = service("grab", "10.96.0.7", |_| ());
    let slice = |ready: bool| {
        pod("grab", &[CONTESTED], |w| {
            w.uid = "c/discovery.k8s.io/EndpointSlice/evil/grab/10.0.0.1".into();
            let list = wds::PortList {
                ports: vec![wds::Port {
                    service_port: 80,
                    target_port: 5432,
                    ..Default::default()
                }],
            };
            w.services = [("ns/grab.ns.svc.cluster.local".to_owned(), list)].into();
            if !ready {
                w.set_status(wds::WorkloadStatus::Unhealthy);
            }
        })
    };
    mesh.tell(ADDRESS_TYPE, vec![slice(true), grab]).unwrap();
    let picked = |mesh: &Mesh| {
        mesh.world.look(|world| {
            let service = world.service_at(addr("10.96.0.7:80")).unwrap();
            let mut roll = fastrand::Rng::new();
            let endpoint = world.pick(service, 80, &Ask::default(), &mut roll).ok()?;
            let (workload, target) = (&endpoint.workload, endpoint.address.port());
            Some((workload.uid.to_string(), workload.protocol, target))
        })
    };
    // Nobody else is there: what the slice says is all that is known.
    assert_eq!(picked(&mesh).unwrap().1, Tunnel::None);
    mesh.tell(ADDRESS_TYPE, vec![claim(Claim::MeshedPod)])
        .unwrap();
    let meant = ("c//Pod/ns/meshed".to_owned(), Tunnel::Hbone, 5432);
    assert_eq!(picked(&mesh), Some(meant));
    // Whether that service may send there is still the slice's to say.
    mesh.tell(ADDRESS_TYPE, vec![slice(false)]).unwrap();
    assert_eq!(picked(&mesh), None);
}

#[test]
fn another_networks_addresses_are_not_ours() {
    let mut mesh = Mesh::in_network("east");
    let in_network =
        |name: &str, network: &str| pod(name, &[CONTESTED], |w| w.network = network.into());
    let vip = |name: &str, network: &str| {
        service(name, "10.96.0.1", |s| {
            s.addresses[0].network = network.into();
        })
    };
    let told = vec![
        in_network("there", "west"),
        in_network("nowhere", ""),
        vip("there", "west"),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    assert_eq!(owner(&mesh), "nobody");
    assert_eq!(at_port(&mesh, "10.96.0.1:80"), None);
    let endpoints = |mesh: &Mesh| {
        let shop = "ns/shop.ns.svc.cluster.local".parse().unwrap();
        mesh.world.look(|w| w.endpoints(&shop, 80).count())
    };
    assert_eq!(endpoints(&mesh), 0);
    let told = vec![in_network("here", "east"), vip("here", "east")];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    assert_eq!(owner(&mesh), "here");
    let here = "here.ns.svc.cluster.local";
    assert_eq!(at_port(&mesh, "10.96.0.1:80").as_deref(), Some(here));
    assert_eq!(endpoints(&mesh), 1);
    // By name it is known all the same.
    let there = Uid::pod("c", "ns", "there");
    assert!(mesh.world.look(|w| w.workload(&there).is_some()));
}

/// What one of a few objects is told to be, or that it is gone.
#[derive(Clone, Debug)]
enum Step {
    Workload {
        uid: usize,
        ips: Vec<usize>,
        hbone: bool,
        healthy: bool,
        host: bool,
        far: bool,
    },
    Service {
        name: usize,
        ips: Vec<usize>,
        ports: Vec<u32>,
        entry: bool,
    },
    GoneWorkload(usize),
    GoneService(usize),
}

const IPS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.3"];
const UIDS: [&str; 5] = [
    "c//Pod/ns/a",
    "c//Pod/ns/b",
    "c//Pod/ns/c",
    "c/discovery.k8s.io/EndpointSlice/ns/grab/1",
    "c/networking.istio.io/WorkloadEntry/ns/vm",
];
const PORTS: [u32; 3] = [80, 81, 82];

fn step() -> impl Strategy<Value = Step> {
    let ips = || prop::collection::vec(0..IPS.len(), 0..3);
    prop_oneof![
        6 => (0..UIDS.len(), ips(), any::<[bool; 4]>()).prop_map(
            |(uid, ips, [hbone, healthy, host, far])| Step::Workload { uid, ips, hbone, healthy, host, far }
        ),
        3 => (0..4usize, ips(), prop::collection::vec(prop::sample::select(&PORTS[..]), 1..3), any::<bool>())
            .prop_map(|(name, ips, ports, entry)| Step::Service { name, ips, ports, entry }),
        1 => (0..UIDS.len()).prop_map(Step::GoneWorkload),
        1 => (0..4usize).prop_map(Step::GoneService),
    ]
}

fn service_name(name: usize) -> String {
    format!("ns/s{name}.ns.svc.cluster.local")
}

/// The name of what the step is about, and its content; nothing: it is gone.
fn told(step: &Step) -> (String, Option<Bytes>) {
    match step {
        Step::Workload {
            uid,
            ips,
            hbone,
            healthy,
            host,
            far,
        } => {
            let ips: Vec<&str> = ips.iter().map(|ip| IPS[*ip]).collect();
            let (name, bytes) = pod("x", &ips, |w| {
                w.uid = UIDS[*uid].into();
                w.tunnel_protocol = i32::from(*hbone);
                w.status = i32::from(!*healthy);
                w.network_mode = i32::from(*host);
                w.network = if *far { "far" } else { "" }.into();
                w.services = (0..2)
                    .map(|name| {
                        (
                            service_name(name),
                            w.services.values().next().unwrap().clone(),
                        )
                    })
                    .collect();
            });
            (name, Some(bytes))
        }
        Step::Service {
            name,
            ips,
            ports,
            entry,
        } => {
            let (_, bytes) = service(&format!("s{name}"), "10.0.0.1", |s| {
                s.addresses = ips
                    .iter()
                    .map(|ip| wds::NetworkAddress {
                        address: octets(IPS[*ip]),
                        ..Default::default()
                    })
                    .collect();
                s.ports = ports
                    .iter()
                    .map(|port| wds::Port {
                        service_port: *port,
                        ..Default::default()
                    })
                    .collect();
                if *entry {
                    s.name = "entry".into();
                }
            });
            (service_name(*name), Some(bytes))
        }
        Step::GoneWorkload(uid) => (UIDS[*uid].to_owned(), None),
        Step::GoneService(name) => (service_name(*name), None),
    }
}

/// Everything that the world answers about addresses.
fn answers(mesh: &Mesh) -> Vec<String> {
    mesh.world.look(|world| {
        let mut all = Vec::new();
        for text in IPS {
            let owner = world.workload_at(ip(text)).map(|w| w.uid.to_string());
            all.push(format!("{text} {owner:?}"));
            for port in PORTS.into_iter().chain([443]) {
                let to = SocketAddr::new(ip(text), u16::try_from(port).unwrap());
                let service = world.service_at(to).map(|s| s.id.to_string());
                all.push(format!("{to} {service:?}"));
            }
        }
        for name in 0..2 {
            let name = service_name(name).parse().unwrap();
            let each = world
                .endpoints(&name, 80)
                .map(|e| (e.workload.uid.to_string(), e.target, e.healthy));
            all.push(format!("{name} {:?}", each.collect::<Vec<_>>()));
        }
        all
    })
}

proptest! {
    /// What the world answers follows from what it has been told last of each object, and from nothing else: not from
    /// the order, not from how it was cut into updates, not from what was once and is gone.
    #[test]
    fn only_the_last_word_on_each_object_counts(
        steps in prop::collection::vec(step(), 1..40),
        cuts in prop::collection::vec(1..6usize, 40),
        seed in any::<u64>(),
    ) {
        let mut mesh = Mesh::new();
        let mut last = std::collections::BTreeMap::new();
        let mut rest = &steps[..];
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            // Within one update a name appears once.
            let now: std::collections::BTreeMap<_, _> = now.iter().map(told).collect();
            last.extend(now.clone());
            let (updated, removed): (Vec<_>, Vec<_>) = now.into_iter().partition(|(_, bytes)| bytes.is_some());
            let update = Update {
                type_url: ADDRESS_TYPE,
                updated: updated.into_iter().map(|(name, bytes)| (name, bytes.unwrap())).collect(),
                removed: removed.into_iter().map(|(name, _)| name).collect(),
            };
            mesh.writer.apply(&update).unwrap();
        }
        let mut anew = Mesh::new();
        let mut left: Vec<_> = last.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut left);
        for one in left {
            anew.tell(ADDRESS_TYPE, vec![one]).unwrap();
        }
        prop_assert_eq!(answers(&mesh), answers(&anew));
    }
}
