//! Addresses have one owner: whoever lists, claims or repeats another's address gets nothing of it, and is told.

#[path = "support/addresses.rs"]
mod addresses;
mod support;

use controller::index::changes::Kind;
use mesh::proto::workload::{NetworkMode, TunnelProtocol};
use serde_json::{Value, json};

use addresses::{at, manual, naming, ranged, shop, slice};
use support::{World, in_turns, namespace, pod, service};

#[test]
fn a_slice_of_another_namespace_that_lists_a_pod_means_that_pod() {
    let mut world = shop();
    let before = world.workload("Pod/shop/db").expect("known");
    for order in [true, false] {
        let objects = [
            manual("evil", "steal", "10.96.0.66"),
            slice("evil", "steal", &["10.0.0.1"]),
        ];
        let objects: Vec<Value> = if order {
            objects.into_iter().collect()
        } else {
            objects.into_iter().rev().collect()
        };
        world.apply(objects);
        assert_eq!(at(&world, [10, 0, 0, 1]), ["db"], "one owner");
        let now = world.workload("Pod/shop/db").expect("known");
        assert_eq!(now.tunnel_protocol(), TunnelProtocol::Hbone);
        assert_eq!(
            (&now.namespace, &now.service_account, &now.waypoint),
            (&before.namespace, &before.service_account, &before.waypoint)
        );
        // It is an endpoint of theirs like any other.
        let port = &now.services["evil/steal.evil.svc.cluster.local"].ports[0];
        assert_eq!((port.service_port, port.target_port), (80, 8080));
        world.delete(Kind::EndpointSlice, "evil", "steal-1");
        assert_eq!(world.workload("Pod/shop/db").as_ref(), Some(&before));
        world.delete(Kind::Service, "evil", "steal");
    }
}

#[test]
fn a_slice_that_was_there_first_gives_way_to_the_pod() {
    let mut world = World::new();
    world.apply([
        namespace("evil", json!({})),
        manual("evil", "steal", "10.96.0.66"),
        slice("evil", "steal", &["10.0.0.1"]),
    ]);
    assert_eq!(at(&world, [10, 0, 0, 1]), ["steal-1-10.0.0.1"]);
    world.apply([pod("shop", "db", "10.0.0.1", json!({}))]);
    assert_eq!(at(&world, [10, 0, 0, 1]), ["db"]);
    let mut finished = pod("shop", "db", "10.0.0.1", json!({}));
    finished["status"]["phase"] = json!("Succeeded");
    world.apply([finished]);
    assert_eq!(
        at(&world, [10, 0, 0, 1]),
        ["steal-1-10.0.0.1"],
        "who has ended owns nothing"
    );
}

#[test]
fn a_slice_of_kubernetes_own_counts_while_its_service_has_no_selector() {
    let mut world = shop();
    let slice = |namespace: &str, name: &str, addresses: &[&str]| {
        let mut slice = slice(namespace, name, addresses);
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] =
            json!("endpointslice-controller.k8s.io");
        slice
    };
    let steals = |world: &World| {
        let pod = world.workload("Pod/evil/late");
        pod.map(|pod| {
            pod.services
                .contains_key("evil/steal.evil.svc.cluster.local")
        })
    };
    world.apply([
        service("evil", "steal", "10.96.0.66", "-", json!({})),
        slice("evil", "steal", &["10.0.0.9"]),
    ]);
    assert!(at(&world, [10, 0, 0, 9]).is_empty());
    world.apply([manual("evil", "steal", "10.96.0.66")]);
    assert_eq!(at(&world, [10, 0, 0, 9]), ["steal-1-10.0.0.9"]);
    world.apply([pod("evil", "late", "10.0.0.9", json!({}))]);
    assert_eq!(at(&world, [10, 0, 0, 9]), ["late"], "the slice is found");
    assert_eq!(steals(&world), Some(true));
    world.apply([service("evil", "steal", "10.96.0.66", "-", json!({}))]);
    assert_eq!(steals(&world), Some(false));
    world.delete(Kind::Pod, "evil", "late");
    assert!(at(&world, [10, 0, 0, 9]).is_empty());
    world.apply([manual("evil", "steal", "10.96.0.66")]);
    assert_eq!(at(&world, [10, 0, 0, 9]), ["steal-1-10.0.0.9"]);
}

#[test]
fn a_slice_that_people_write_counts_beside_a_selector() {
    let mut world = shop();
    let behind = |world: &World, pod: &str| {
        let pod = world.workload(pod).expect("known");
        pod.services
            .contains_key("evil/both.evil.svc.cluster.local")
    };
    let mut selected = pod("evil", "selected", "10.0.0.8", json!({"app": "both"}));
    selected["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    world.apply([
        selected,
        pod("evil", "listed", "10.0.0.9", json!({})),
        service("evil", "both", "10.96.0.67", "both", json!({})),
    ]);
    assert!(behind(&world, "Pod/evil/selected") && !behind(&world, "Pod/evil/listed"));
    world.apply([slice("evil", "both", &["10.0.0.9"])]);
    assert!(behind(&world, "Pod/evil/selected") && behind(&world, "Pod/evil/listed"));
    // Unready there, by its name.
    let mut unready = slice("evil", "both", &["10.0.0.9"]);
    unready["endpoints"][0]["conditions"] = json!({"ready": false});
    unready["endpoints"][0]["targetRef"] =
        json!({"kind": "Pod", "name": "listed", "namespace": "evil"});
    world.apply([unready]);
    assert!(!behind(&world, "Pod/evil/listed"));
    world.apply([slice("evil", "both", &["10.0.0.9"])]);
    world.delete(Kind::EndpointSlice, "evil", "both-1");
    assert!(behind(&world, "Pod/evil/selected") && !behind(&world, "Pod/evil/listed"));
}

#[test]
fn a_slice_claims_no_node_and_no_service() {
    let mut world = shop();
    world.apply([
        manual("evil", "steal", "10.96.0.66"),
        slice(
            "evil",
            "steal",
            &["192.168.0.1", "10.96.0.1", "203.0.113.9"],
        ),
    ]);
    // On a node there is something to dial, but dialling the node is not dialling it.
    let host = world
        .workload("discovery.k8s.io/EndpointSlice/evil/steal-1/192.168.0.1")
        .expect("an endpoint");
    assert_eq!(host.network_mode(), NetworkMode::HostNetwork);
    assert!(at(&world, [192, 168, 0, 1]).is_empty());
    assert!(
        world
            .workload("discovery.k8s.io/EndpointSlice/evil/steal-1/10.96.0.1")
            .is_none()
    );
    assert_eq!(at(&world, [203, 0, 113, 9]), ["steal-1-203.0.113.9"]);
    assert_eq!(
        world.events(),
        [
            "EndpointSlice evil/steal-1 AddressTaken: address 10.96.0.1 is that of Service shop/cart: it is no endpoint in the mesh"
        ]
    );
    world.delete(Kind::Service, "shop", "cart");
    assert!(world.events().is_empty(), "{:?}", world.events());
    assert!(
        world
            .workload("discovery.k8s.io/EndpointSlice/evil/steal-1/10.96.0.1")
            .is_some()
    );
}

#[test]
fn of_two_pods_with_one_address_one_has_it_in_any_order() {
    let mut stale = pod("shop", "stale", "10.0.0.7", json!({}));
    stale["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut fresh = pod("shop", "fresh", "10.0.0.7", json!({}));
    fresh["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    // A kubelet may lie, and make pods without identity wherever it likes; its own range it cannot choose.
    let mut liar = pod("shop", "liar", "10.0.0.7", json!({}));
    liar["metadata"]["creationTimestamp"] = json!("2026-01-03T00:00:00Z");
    liar["spec"]["nodeName"] = json!("n2");
    let mut mirror = liar.clone();
    mirror["metadata"]["name"] = json!("mirror");
    mirror["metadata"]["uid"] = json!("mirror");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let nodes = [
        ranged("n1", "192.168.0.1", "10.0.0.0/24"),
        ranged("n2", "192.168.0.2", "10.0.1.0/24"),
    ];
    let objects: Vec<Value> = [stale, fresh, liar, mirror]
        .into_iter()
        .chain(nodes)
        .collect();
    for mut world in in_turns(&objects) {
        assert_eq!(at(&world, [10, 0, 0, 7]), ["fresh"]);
        let events = world.events();
        for loser in ["stale", "liar", "mirror"] {
            let wanted = format!(
                "Pod shop/{loser} AddressTaken: address 10.0.0.7 is that of pod shop/fresh: in the mesh it leads there"
            );
            assert!(events.contains(&wanted), "{events:?}");
        }
        assert_eq!(events.len(), 3, "{events:?}");
        world.delete(Kind::Pod, "shop", "fresh");
        assert_eq!(at(&world, [10, 0, 0, 7]), ["stale"]);
    }
}

#[test]
fn a_pod_on_the_hosts_network_is_an_endpoint_where_a_slice_names_it() {
    let mut world = shop();
    let mut host = pod("evil", "agent", "192.168.0.1", json!({}));
    host["spec"]["hostNetwork"] = json!(true);
    let named = naming(slice("evil", "agents", &["192.168.0.1"]), "evil", "agent");
    world.apply([host, manual("evil", "agents", "10.96.0.67"), named]);
    let workload = world.workload("Pod/evil/agent").expect("known");
    assert!(
        workload
            .services
            .contains_key("evil/agents.evil.svc.cluster.local")
    );
    assert!(
        world
            .workload("discovery.k8s.io/EndpointSlice/evil/agents-1/192.168.0.1")
            .is_none(),
        "never twice"
    );
    assert!(world.events().is_empty(), "{:?}", world.events());
}

#[test]
fn an_endpoint_that_says_it_is_another_pod_brings_nothing() {
    let mut world = shop();
    let before = world.workload("Pod/shop/db").expect("known");
    let listed = slice("evil", "steal", &["10.0.0.1"]);
    world.apply([
        pod("evil", "there", "10.0.0.9", json!({})),
        manual("evil", "steal", "10.96.0.66"),
    ]);
    for name in ["nobody", "there"] {
        world.apply([naming(listed.clone(), "evil", name)]);
        assert_eq!(world.workload("Pod/shop/db").as_ref(), Some(&before));
        assert_eq!(
            world.events(),
            [
                "EndpointSlice evil/steal-1 AddressTaken: address 10.0.0.1 is that of pod shop/db: it is no endpoint in the mesh"
            ]
        );
    }
    // One that names a pod of another namespace is listed by address alone, and counts as such.
    world.apply([naming(listed, "shop", "db")]);
    let now = world.workload("Pod/shop/db").expect("known");
    assert!(
        now.services
            .contains_key("evil/steal.evil.svc.cluster.local")
    );
    assert!(world.events().is_empty(), "{:?}", world.events());
}

#[test]
fn the_bound_on_endpoints_is_not_passed_by_naming_pods_of_other_namespaces() {
    let mut world = World::new();
    let addresses: Vec<String> = (0..1100)
        .map(|n| format!("10.1.{}.{}", n / 250, n % 250))
        .collect();
    let pods = addresses
        .iter()
        .enumerate()
        .map(|(n, address)| pod("shop", &format!("p{n}"), address, json!({})));
    world.apply(pods);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut all = slice("evil", "all", &addresses);
    for endpoint in all["endpoints"].as_array_mut().expect("endpoints") {
        endpoint["targetRef"] = json!({"kind": "Pod", "name": "x", "namespace": "shop"});
    }
    world.apply([manual("evil", "all", "10.96.0.1"), all]);
    let behind = (0..1100).filter(|n| {
        let workload = world.workload(&format!("Pod/shop/p{n}"));
        workload.is_some_and(|one| !one.services.is_empty())
    });
    assert_eq!(behind.count(), 1000);
    let events = world.events();
    assert!(
        events.len() == 1 && events[0].ends_with("of this one: 100"),
        "{events:?}"
    );
}

#[test]
fn an_ipv4_address_written_as_ipv6_is_the_same_address() {
    let mut world = shop();
    world.apply([
        manual("evil", "steal", "10.96.0.66"),
        slice(
            "evil",
            "steal",
            &["::ffff:192.168.0.1", "::ffff:10.96.0.1", "::ffff:10.0.0.1"],
        ),
        ranged("n2", "::ffff:10.96.0.1", "10.0.1.0/24"),
        pod("evil", "again", "::ffff:10.0.0.1", json!({})),
        manual("till", "mapped", "::ffff:10.96.0.99"),
    ]);
    let host = world
        .workload("discovery.k8s.io/EndpointSlice/evil/steal-1/192.168.0.1")
        .expect("an endpoint");
    assert_eq!(host.network_mode(), NetworkMode::HostNetwork);
    let db = world.workload("Pod/shop/db").expect("known");
    assert!(
        db.services
            .contains_key("evil/steal.evil.svc.cluster.local")
    );
    let service = world.service("till", "mapped").expect("known");
    assert_eq!(*service.addresses[0].address, [10, 96, 0, 99]);
    let events = world.events();
    for said in [
        "Pod evil/again AddressTaken: address 10.0.0.1 is that of pod shop/db",
        "EndpointSlice evil/steal-1 AddressTaken: address 10.96.0.1 is that of Service shop/cart",
    ] {
        assert!(
            events.iter().any(|event| event.starts_with(said)),
            "{events:?}"
        );
    }
}

#[test]
fn a_namespace_brings_a_bounded_number_of_endpoints() {
    let mut world = World::new();
    let bring = |name: &str, third: usize, count: usize| {
        let addresses: Vec<String> = (0..count)
            .map(|n| format!("203.{third}.{}.{}", n / 250, n % 250))
            .collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        slice("evil", name, &addresses)
    };
    let known = |world: &World| {
        world
            .resources
            .keys()
            .filter(|(_, name)| name.contains("EndpointSlice/evil"))
            .count()
    };
    world.apply([
        manual("evil", "a", "10.96.0.1"),
        manual("evil", "b", "10.96.0.2"),
        manual("evil", "c", "10.96.0.3"),
    ]);
    world.apply([bring("b", 2, 700), bring("c", 3, 500)]);
    assert_eq!(known(&world), 1000);
    let events = world.events();
    assert_eq!(events.len(), 1);
    assert!(
        events[0].contains("evil/c-1 TooManyEndpoints") && events[0].ends_with("of this one: 200"),
        "{events:?}"
    );
    // Another order, the same choice.
    let mut other = World::new();
    other.apply([
        manual("evil", "c", "10.96.0.3"),
        bring("c", 3, 500),
        bring("b", 2, 700),
        manual("evil", "b", "10.96.0.2"),
    ]);
    let names = |world: &World| {
        world
            .resources
            .keys()
            .filter(|(_, name)| name.contains("EndpointSlice"))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&world), names(&other));
    // One that goes before takes its part, and gives it back.
    world.apply([bring("a", 1, 400)]);
    assert_eq!(known(&world), 1000);
    assert!(!names(&world).iter().any(|(_, name)| name.contains("/c-1/")));
    world.delete(Kind::EndpointSlice, "evil", "a-1");
    assert_eq!(names(&world), names(&other));
    world.delete(Kind::EndpointSlice, "evil", "b-1");
    assert_eq!(known(&world), 500);
    assert!(world.events().is_empty());
    // Others have theirs.
    world.apply([
        manual("shop", "a", "10.96.0.9"),
        slice("shop", "a", &["203.0.113.1"]),
    ]);
    assert!(
        world
            .workload("discovery.k8s.io/EndpointSlice/shop/a-1/203.0.113.1")
            .is_some()
    );
}
