//! A proxy's copy of the mesh: updates in, answers out.

#[path = "support/mesh.rs"]
mod told;

use bytes::Bytes;
use futures_util::FutureExt;
use mesh::balance::{Ask, Family, NoEndpoint};
use mesh::names::{ServiceName, Uid};
use mesh::proto::{node, waypoint, workload as wds};
use mesh::workload::{Tunnel, WaypointRef};
use mesh::xds::{
    ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, MESH_STATE_NAME, MESH_STATE_TYPE,
    ROUTE_TYPE, Update,
};
use prost::Message;
use told::{Mesh, addr, ip, octets, pod, service};

fn shop() -> ServiceName {
    "ns/shop.ns.svc.cluster.local".parse().unwrap()
}

#[test]
fn workloads_and_services_are_found_where_they_are() {
    let mut mesh = Mesh::new();
    let told = vec![
        pod("a", &["10.0.0.1", "fd00::1"], |w| {
            w.set_tunnel_protocol(wds::TunnelProtocol::Hbone);
        }),
        pod("b", &["10.0.0.2"], |w| {
            w.set_network_mode(wds::NetworkMode::HostNetwork);
        }),
        service("shop", "10.96.0.1", |_| ()),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    mesh.world.look(|world| {
        for text in ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"] {
            let found = world.workload_at(ip(text)).unwrap();
            assert_eq!(found.name(), "a");
            assert_eq!(found.protocol, Tunnel::Hbone);
            let id = found.identity().to_string();
            assert_eq!(id, "spiffe://cluster.local/ns/ns/sa/default");
        }
        // Its address is its node's.
        assert!(world.workload_at(ip("10.0.0.2")).is_none());
        assert!(world.workload(&Uid::pod("c", "ns", "b")).is_some());
        assert_eq!(world.service_at(addr("10.96.0.1:80")).unwrap().id, shop());
        let targets: Vec<u16> = world.endpoints(&shop(), 81).map(|e| e.target).collect();
        assert_eq!(targets, [8081, 8081]);
        assert_eq!(world.endpoints(&shop(), 82).count(), 0);
    });
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/a");
    mesh.forget(ADDRESS_TYPE, "ns/shop.ns.svc.cluster.local");
    mesh.world.look(|world| {
        assert!(world.workload_at(ip("fd00::1")).is_none());
        assert!(world.service_at(addr("10.96.0.1:80")).is_none());
        assert!(world.service(&shop()).is_none());
        // Endpoints outlive their service, and are there before it is.
        assert_eq!(world.endpoints(&shop(), 80).count(), 1);
    });
}

#[test]
fn an_address_that_is_used_again_belongs_to_the_living() {
    let mut mesh = Mesh::new();
    let dying = |w: &mut wds::Workload| w.set_status(wds::WorkloadStatus::Unhealthy);
    mesh.tell(ADDRESS_TYPE, vec![pod("new", &["10.0.0.1"], |_| ())])
        .unwrap();
    mesh.tell(ADDRESS_TYPE, vec![pod("old", &["10.0.0.1"], dying)])
        .unwrap();
    let at = |mesh: &Mesh| {
        mesh.world
            .look(|w| w.workload_at(ip("10.0.0.1")).map(|w| w.name().to_string()))
    };
    assert_eq!(at(&mesh).as_deref(), Some("new"));
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/old");
    assert_eq!(at(&mesh).as_deref(), Some("new"));
    // One that moves leaves its place.
    mesh.tell(ADDRESS_TYPE, vec![pod("new", &["10.0.0.9"], |_| ())])
        .unwrap();
    assert_eq!(at(&mesh), None);
}

#[test]
fn picks_only_what_may_receive_traffic_and_prefers_the_family() {
    let mut mesh = Mesh::new();
    let sick = |w: &mut wds::Workload| w.set_status(wds::WorkloadStatus::Unhealthy);
    let told = vec![
        pod("four", &["10.0.0.1"], |_| ()),
        pod("six", &["fd00::2"], |_| ()),
        pod("sick", &["10.0.0.3"], sick),
        service("shop", "10.96.0.1", |_| ()),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    let picked = |mesh: &Mesh, family| {
        mesh.world.look(|world| {
            let service = world.service(&shop()).unwrap();
            let ask = Ask {
                family,
                ..Ask::default()
            };
            world
                .pick(service, 80, &ask, &mut fastrand::Rng::new())
                .map(|e| e.workload.name().to_string())
        })
    };
    for _ in 0..50 {
        assert_eq!(picked(&mesh, Some(Family::V4)).unwrap(), "four");
        assert_eq!(picked(&mesh, Some(Family::V6)).unwrap(), "six");
        assert_ne!(picked(&mesh, None).unwrap(), "sick");
    }
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/six");
    assert_eq!(picked(&mesh, Some(Family::V6)).unwrap(), "four");
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/four");
    assert_eq!(picked(&mesh, None), Err(NoEndpoint::Unhealthy));
    let all = service("shop", "10.96.0.1", |s| {
        let mut balancing = wds::LoadBalancing::default();
        balancing.set_health_policy(wds::load_balancing::HealthPolicy::AllowAll);
        s.load_balancing = Some(balancing);
    });
    mesh.tell(ADDRESS_TYPE, vec![all]).unwrap();
    assert_eq!(picked(&mesh, None).unwrap(), "sick");
    // Nor does that bring anybody to one that is to be in the mesh and is not there.
    let awaited = pod("late", &["10.0.0.9"], |w| {
        w.extensions.push(mesh::workload::awaited());
    });
    mesh.tell(ADDRESS_TYPE, vec![awaited]).unwrap();
    for _ in 0..50 {
        assert_eq!(picked(&mesh, None).unwrap(), "sick");
    }
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/sick");
    assert_eq!(picked(&mesh, None), Err(NoEndpoint::Awaited));
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/late");
    assert_eq!(picked(&mesh, None), Err(NoEndpoint::None));
}

#[test]
fn what_cannot_be_taken_whole_is_refused_whole_with_names_and_reasons() {
    let mut mesh = Mesh::new();
    let good = || pod("good", &["10.0.0.1"], |_| ());
    let cases = [
        (
            pod("bad", &[], |w| w.addresses = vec![vec![1, 2, 3].into()]),
            "3 bytes",
        ),
        (
            pod("bad", &[], |w| w.tunnel_protocol = 77),
            "tunnel protocol",
        ),
        (
            pod("bad", &[], |w| w.trust_domain = "Not Good".into()),
            "trust domain",
        ),
        (pod("bad", &[], |w| w.namespace.clear()), "namespace"),
        (
            pod("bad", &[], |w| {
                w.services.insert("noslash".into(), Default::default());
            }),
            "noslash",
        ),
        (
            pod("bad", &[], |w| {
                w.waypoint = Some(wds::GatewayAddress::default());
            }),
            "port",
        ),
        (
            service("bad", "10.96.0.1", |s| s.ports[0].service_port = 70_000),
            "70000",
        ),
        (
            service("bad", "10.96.0.0", |s| s.addresses[0].length = Some(16)),
            "10.96.0.0/16",
        ),
        (("x".to_owned(), Bytes::from_static(b"\xff")), "parsed"),
        (("other".to_owned(), good().1), "does not match its content"),
        (("empty".to_owned(), Bytes::new()), "neither"),
    ];
    for (bad, reason) in cases {
        let name = bad.0.clone();
        let rejected = mesh.tell(ADDRESS_TYPE, vec![good(), bad]).unwrap_err();
        assert_eq!(rejected.resources.len(), 1);
        assert_eq!(rejected.resources[0].0, name);
        assert!(rejected.to_string().contains(reason), "{rejected}");
        assert!(
            mesh.world
                .look(|world| world.workload_at(ip("10.0.0.1")).is_none())
        );
    }
    assert_eq!(*mesh.world.changed().borrow(), 0);
    mesh.tell(ADDRESS_TYPE, vec![good()]).unwrap();
    assert_eq!(*mesh.world.changed().borrow(), 1);
}

#[test]
fn waypoints_are_named_by_service_or_address() {
    let mut mesh = Mesh::new();
    let by_name = wds::NamespacedHostname {
        namespace: "ns".into(),
        hostname: "shop.ns.svc.cluster.local".into(),
    };
    let by_address = wds::NetworkAddress {
        address: octets("fd96::1"),
        ..Default::default()
    };
    let to = |destination| {
        Some(wds::GatewayAddress {
            destination: Some(destination),
            hbone_mtls_port: 15008,
        })
    };
    use wds::gateway_address::Destination;
    let told = vec![
        pod("a", &["10.0.0.1"], |w| {
            w.waypoint = to(Destination::Hostname(by_name));
        }),
        service("web", "10.96.0.2", |s| {
            s.waypoint = to(Destination::Address(by_address));
        }),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    mesh.world.look(|world| {
        let pod = world.workload_at(ip("10.0.0.1")).unwrap();
        assert_eq!(
            pod.template.waypoint,
            Some(WaypointRef::Service(shop(), 15008))
        );
        let web = world.service_at(addr("10.96.0.2:80")).unwrap();
        let address = WaypointRef::Address("".into(), addr("[fd96::1]:15008"));
        assert_eq!(web.waypoint, Some(address));
    });
}

#[test]
fn routes_belong_to_ports() {
    let route = |name: &str, port| {
        let route = waypoint::Route {
            namespace: "ns".into(),
            name: name.into(),
            parents: vec![waypoint::Parent {
                namespace: "ns".into(),
                hostname: "shop.ns.svc.cluster.local".into(),
                port,
            }],
            rules: vec![waypoint::Rule::default()],
            ..Default::default()
        };
        (format!("ns/{name}"), Bytes::from(route.encode_to_vec()))
    };
    let mut mesh = Mesh::new();
    let has = |mesh: &Mesh, port| mesh.world.look(|w| w.routes(&shop(), port).is_some());
    mesh.tell(ROUTE_TYPE, vec![route("one", 80)]).unwrap();
    assert!(has(&mesh, 80) && !has(&mesh, 81));
    mesh.tell(ROUTE_TYPE, vec![route("all", 0)]).unwrap();
    assert!(has(&mesh, 80) && has(&mesh, 81));
    mesh.tell(ROUTE_TYPE, vec![route("one", 82)]).unwrap();
    mesh.forget(ROUTE_TYPE, "ns/all");
    assert!(has(&mesh, 82) && !has(&mesh, 80) && !has(&mesh, 81));
    mesh.forget(ROUTE_TYPE, "ns/one");
    assert!(!has(&mesh, 82));
}

#[test]
fn a_routes_table_is_right_however_many_routes_come_at_once() {
    let route = |name: &str, services: &[&str]| {
        let parent = |service: &&str| waypoint::Parent {
            namespace: "ns".into(),
            hostname: format!("{service}.ns.svc.cluster.local"),
            port: 80,
        };
        let route = waypoint::Route {
            namespace: "ns".into(),
            name: name.into(),
            parents: services.iter().map(parent).collect(),
            rules: vec![waypoint::Rule::default()],
            ..Default::default()
        };
        (format!("ns/{name}"), Bytes::from(route.encode_to_vec()))
    };
    let mut mesh = Mesh::new();
    let has = |mesh: &Mesh, service: &str| {
        let name: ServiceName = format!("ns/{service}.ns.svc.cluster.local")
            .parse()
            .unwrap();
        mesh.world.look(|w| w.routes(&name, 80).is_some())
    };
    let told = vec![
        route("one", &["a", "b"]),
        route("two", &["b"]),
        route("three", &["c"]),
    ];
    mesh.tell(ROUTE_TYPE, told).unwrap();
    assert!(["a", "b", "c"].iter().all(|s| has(&mesh, s)));
    // One moves, one goes, in one message.
    mesh.writer
        .apply(&Update {
            type_url: ROUTE_TYPE,
            updated: vec![route("one", &["c", "d"])],
            removed: vec!["ns/three".into()],
        })
        .unwrap();
    let known: Vec<&str> = ["a", "b", "c", "d"]
        .into_iter()
        .filter(|s| has(&mesh, s))
        .collect();
    assert_eq!(known, ["b", "c", "d"]);
    mesh.forget(ROUTE_TYPE, "ns/two");
    mesh.forget(ROUTE_TYPE, "ns/one");
    assert!(!["a", "b", "c", "d"].iter().any(|s| has(&mesh, s)));
}

#[test]
fn enrolments_and_namespaces() {
    let mut mesh = Mesh::new();
    let enrolment = |capture: node::Capture| {
        let enrolment = node::Enrolment {
            uid: "u1".into(),
            name: "a".into(),
            namespace: "ns".into(),
            service_account: "sa".into(),
            capture: capture.into(),
            ..Default::default()
        };
        vec![("u1".to_owned(), Bytes::from(enrolment.encode_to_vec()))]
    };
    let refused = mesh.tell(ENROLMENT_TYPE, enrolment(node::Capture::Unspecified));
    assert!(refused.unwrap_err().to_string().contains("neither"));
    mesh.tell(ENROLMENT_TYPE, enrolment(node::Capture::In))
        .unwrap();
    let name = node::EnrolledNamespace { name: "ns".into() };
    let name = vec![("ns".to_owned(), Bytes::from(name.encode_to_vec()))];
    mesh.tell(ENROLLED_NAMESPACE_TYPE, name).unwrap();
    mesh.world.look(|world| {
        assert!(
            world
                .enrolments()
                .all(|e| e.capture && e.uid.as_str() == "u1")
        );
        assert!(world.enrolled_namespace("ns") && !world.enrolled_namespace("other"));
        assert_eq!(world.enrolled_namespaces().collect::<Vec<_>>(), ["ns"]);
    });
    mesh.forget(ENROLMENT_TYPE, "u1");
    mesh.forget(ENROLLED_NAMESPACE_TYPE, "ns");
    mesh.world.look(|world| {
        assert_eq!(world.enrolments().count(), 0);
        assert!(!world.enrolled_namespace("ns"));
    });
}

#[test]
fn only_the_controllers_word_says_that_the_mesh_is_uninstalled() {
    let mut mesh = Mesh::new();
    let state = |name: &str, uninstalling| {
        let state = node::MeshState { uninstalling };
        vec![(name.to_owned(), Bytes::from(state.encode_to_vec()))]
    };
    let uninstalling = |mesh: &Mesh| mesh.world.look(|world| world.uninstalling());
    assert!(!uninstalling(&mesh));
    let refused = mesh.tell(MESH_STATE_TYPE, state("another", true));
    assert!(refused.unwrap_err().to_string().contains("does not match"));
    mesh.tell(MESH_STATE_TYPE, state(MESH_STATE_NAME, false))
        .unwrap();
    assert!(!uninstalling(&mesh));
    mesh.tell(MESH_STATE_TYPE, state(MESH_STATE_NAME, true))
        .unwrap();
    mesh.forget(MESH_STATE_TYPE, "another");
    assert!(uninstalling(&mesh));
    mesh.forget(MESH_STATE_TYPE, MESH_STATE_NAME);
    assert!(!uninstalling(&mesh));
}

#[tokio::test]
async fn a_mesh_without_our_network_is_not_ours_yet() {
    let elsewhere = |name: &str, network: &str, address: &str| {
        let network = network.to_owned();
        pod(name, &[address], move |w| w.network = network)
    };
    let located = |mesh: &Mesh| mesh.world.located().now_or_never().is_some();
    let mut mesh = Mesh::in_network("west");
    assert!(located(&mesh), "nothing is known");
    // As a controller says it whose only network has no name.
    mesh.tell(ADDRESS_TYPE, vec![elsewhere("a", "", "10.0.0.1")])
        .unwrap();
    assert!(!located(&mesh));
    let world = mesh.world.clone();
    let waits = tokio::spawn(async move { world.located().await });
    mesh.tell(ADDRESS_TYPE, vec![elsewhere("b", "east", "10.0.0.2")])
        .unwrap();
    tokio::task::yield_now().await;
    assert!(!located(&mesh) && !waits.is_finished());
    mesh.tell(ADDRESS_TYPE, vec![elsewhere("c", "west", "10.0.0.3")])
        .unwrap();
    waits.await.unwrap();
    assert!(located(&mesh));
    // A service is enough, and no longer there it counts no more.
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/c");
    assert!(!located(&mesh));
    let told = service("shop", "10.96.0.1", |s| {
        s.addresses[0].network = "west".into();
    });
    mesh.tell(ADDRESS_TYPE, vec![told]).unwrap();
    assert!(located(&mesh));
}
