//! The addresses of a Service beside its cluster IPs: announced, unless another has a better right, and then the Service is told.

mod support;

use std::net::IpAddr;

use controller::index::changes::Kind;
use serde_json::{Value, json};

use support::{World, in_turns, namespace, node, pod, service};

/// A Service on a port, and the addresses that its load balancer has.
fn balanced(namespace: &str, name: &str, ip: &str, port: u16, balancer: &[&str]) -> Value {
    let mut service = service(namespace, name, ip, name, json!({}));
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["ports"][0]["port"] = json!(port);
    let ingress: Vec<Value> = balancer.iter().map(|ip| json!({"ip": ip})).collect();
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    service
}

/// A Service on a port, and the external IPs that its author wrote; made on that day.
fn external(ns: &str, name: &str, ip: &str, port: u16, day: u8, external: &[&str]) -> Value {
    let mut service = service(ns, name, ip, name, json!({}));
    service["metadata"]["creationTimestamp"] = json!(format!("2026-01-{day:02}T00:00:00Z"));
    service["spec"]["ports"][0]["port"] = json!(port);
    service["spec"]["externalIPs"] = json!(external);
    service
}

/// The addresses that a Service has in the mesh.
fn vips(world: &World, namespace: &str, name: &str) -> Vec<String> {
    let service = world.service(namespace, name).expect("known");
    let addresses = service.addresses.iter().map(|one| {
        let octets: [u8; 4] = one.address[..].try_into().expect("an IPv4 address");
        IpAddr::from(octets).to_string()
    });
    addresses.collect()
}

#[test]
fn the_public_addresses_of_a_service_lead_to_it_behind_its_cluster_ip() {
    let mut world = World::new();
    world.apply([
        namespace("shop", json!({})),
        balanced("shop", "front", "10.96.0.1", 80, &["203.0.113.1"]),
        external("shop", "back", "10.96.0.2", 80, 1, &["203.0.113.2"]),
    ]);
    assert_eq!(vips(&world, "shop", "front"), ["10.96.0.1", "203.0.113.1"]);
    assert_eq!(vips(&world, "shop", "back"), ["10.96.0.2", "203.0.113.2"]);
    assert!(world.events().is_empty(), "{:?}", world.events());
    // The load balancer takes its address away.
    world.apply([balanced("shop", "front", "10.96.0.1", 80, &[])]);
    assert_eq!(vips(&world, "shop", "front"), ["10.96.0.1"]);
}

#[test]
fn what_kube_proxy_would_not_answer_is_not_announced() {
    let mut passed = balanced("shop", "passed", "10.96.0.1", 80, &["203.0.113.1"]);
    passed["status"]["loadBalancer"]["ingress"][0]["ipMode"] = json!("Proxy");
    let mut guarded = balanced("shop", "guarded", "10.96.0.2", 80, &["203.0.113.2"]);
    guarded["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    let mut inner = balanced("shop", "inner", "10.96.0.3", 80, &["203.0.113.3"]);
    inner["spec"]["type"] = json!("ClusterIP");
    let other_family = external("shop", "six", "10.96.0.4", 80, 1, &["2001:db8::1"]);
    let mut headless = external("shop", "headless", "None", 80, 1, &["203.0.113.5"]);
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let mut world = World::new();
    world.apply([passed, guarded, inner, other_family, headless]);
    assert_eq!(vips(&world, "shop", "passed"), ["10.96.0.1"]);
    assert_eq!(vips(&world, "shop", "guarded"), ["10.96.0.2"]);
    assert_eq!(vips(&world, "shop", "inner"), ["10.96.0.3"]);
    assert_eq!(vips(&world, "shop", "six"), ["10.96.0.4"]);
    assert!(vips(&world, "shop", "headless").is_empty());
    assert!(world.events().is_empty(), "{:?}", world.events());
}

#[test]
fn a_load_balancer_may_have_a_nodes_address_and_no_pods_and_no_cluster_ip() {
    let claims = ["192.168.0.1", "10.0.0.1", "10.96.0.1"];
    let objects = [
        node("n1", "192.168.0.1"),
        pod("shop", "db", "10.0.0.1", json!({})),
        service("shop", "cart", "10.96.0.1", "cart", json!({})),
        balanced("evil", "grab", "10.96.0.66", 80, &claims),
    ];
    for mut world in in_turns(&objects) {
        assert_eq!(vips(&world, "evil", "grab"), ["10.96.0.66", "192.168.0.1"]);
        assert_eq!(
            world.events(),
            [
                "Service evil/grab AddressTaken: address 10.0.0.1 is that of pod shop/db: in the mesh it does not lead to this Service",
                "Service evil/grab AddressTaken: address 10.96.0.1 is that of Service shop/cart: in the mesh it does not lead to this Service",
            ]
        );
        world.delete(Kind::Pod, "shop", "db");
        world.delete(Kind::Service, "shop", "cart");
        assert_eq!(vips(&world, "evil", "grab").len(), 4);
        assert!(world.events().is_empty(), "{:?}", world.events());
    }
}

#[test]
fn an_external_ip_never_beats_a_pod_a_node_or_another_service() {
    let claims = ["192.168.0.1", "10.0.0.1", "10.96.0.1", "203.0.113.1"];
    let objects = [
        node("n1", "192.168.0.1"),
        pod("shop", "db", "10.0.0.1", json!({})),
        service("shop", "cart", "10.96.0.1", "cart", json!({})),
        balanced("shop", "front", "10.96.0.2", 80, &["203.0.113.1"]),
        external("evil", "grab", "10.96.0.66", 80, 1, &claims),
    ];
    for world in in_turns(&objects) {
        assert_eq!(vips(&world, "evil", "grab"), ["10.96.0.66"]);
        assert_eq!(vips(&world, "shop", "front"), ["10.96.0.2", "203.0.113.1"]);
        let events = world.events();
        let owners = [
            "node n1",
            "pod shop/db",
            "Service shop/cart",
            "Service shop/front",
        ];
        for (address, owner) in claims.iter().zip(owners) {
            let said = format!("address {address} is that of {owner}:");
            assert!(
                events.iter().any(|event| event.contains(&said)),
                "{events:?}"
            );
        }
        assert_eq!(events.len(), 4, "{events:?}");
    }
}

#[test]
fn equals_share_an_address_by_port_and_the_older_has_a_port_that_both_have() {
    let shared = ["203.0.113.1"];
    let objects = [
        external("a", "young", "10.96.0.1", 80, 3, &shared),
        external("b", "old", "10.96.0.2", 80, 2, &shared),
        external("c", "other", "10.96.0.3", 443, 4, &shared),
    ];
    for mut world in in_turns(&objects) {
        assert_eq!(vips(&world, "a", "young"), ["10.96.0.1"]);
        assert_eq!(vips(&world, "b", "old"), ["10.96.0.2", "203.0.113.1"]);
        assert_eq!(vips(&world, "c", "other"), ["10.96.0.3", "203.0.113.1"]);
        assert_eq!(
            world.events(),
            [
                "Service a/young AddressTaken: address 203.0.113.1 is that of Service b/old: in the mesh it does not lead to this Service"
            ]
        );
        // It leaves the port.
        world.apply([external("b", "old", "10.96.0.2", 8080, 2, &shared)]);
        assert_eq!(vips(&world, "a", "young"), ["10.96.0.1", "203.0.113.1"]);
        assert!(world.events().is_empty(), "{:?}", world.events());
    }
}

#[test]
fn an_external_ip_written_as_ipv6_is_the_nodes_all_the_same() {
    let mut dual = external("evil", "grab", "10.96.0.66", 80, 1, &["::ffff:192.168.0.1"]);
    dual["spec"]["clusterIPs"] = json!(["10.96.0.66", "fd00::66"]);
    let mut world = World::new();
    world.apply([node("n1", "192.168.0.1"), dual]);
    let service = world.service("evil", "grab").expect("known");
    assert_eq!(service.addresses.len(), 2);
    let events = world.events();
    assert!(
        events.len() == 1 && events[0].contains("address 192.168.0.1 is that of node n1:"),
        "{events:?}"
    );
}

/// Addresses that nobody has, told apart by two numbers.
fn many(third: usize, count: usize) -> Vec<String> {
    let addresses = (0..count).map(|n| format!("203.{third}.{}.{}", n / 250, n % 250));
    addresses.collect()
}

/// A Service of `big` with so many external IPs.
fn greedy(name: &str, third: usize, count: usize) -> Value {
    let addresses = many(third, count);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let ip = format!("10.96.1.{third}");
    external("big", name, &ip, 80, 1, &addresses)
}

#[test]
fn a_service_has_a_bounded_number_of_further_addresses_and_the_load_balancers_come_first() {
    let mut world = World::new();
    let mut service = greedy("all", 1, 5000);
    service["spec"]["type"] = json!("LoadBalancer");
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    world.apply([service]);
    let known = vips(&world, "big", "all");
    assert_eq!(known.len(), 1 + 16);
    assert_eq!(known[1], "198.51.100.1");
    assert_eq!(
        world.events(),
        [
            "Service big/all TooManyAddresses: beside its cluster IPs a Service has at most 16 addresses in the mesh, and the Services of a namespace 256: 4985 of this Service do not lead to it there"
        ]
    );
    world.apply([greedy("all", 1, 16)]);
    assert!(world.events().is_empty(), "{:?}", world.events());
}

#[test]
fn the_services_of_a_namespace_have_a_bounded_number_of_further_addresses() {
    let name = |n: usize| format!("s{n:02}");
    let all = || (0..17).map(|n| greedy(&name(n), n, 16));
    let known = |world: &World| -> Vec<usize> {
        let each = (0..17).map(|n| vips(world, "big", &name(n)).len() - 1);
        each.collect()
    };
    let (mut world, mut other) = (World::new(), World::new());
    for service in all() {
        world.apply([service]);
    }
    for service in all().collect::<Vec<_>>().into_iter().rev() {
        other.apply([service]);
    }
    let expected: Vec<usize> = (0..17).map(|n| if n < 16 { 16 } else { 0 }).collect();
    assert_eq!(known(&world), expected);
    assert_eq!(known(&other), expected);
    let events = world.events();
    assert!(
        events.len() == 1 && events[0].starts_with("Service big/s16 TooManyAddresses:"),
        "{events:?}"
    );
    // What is beyond the bound keeps nobody else from the address.
    let address = &many(16, 1)[0];
    world.apply([external("shop", "young", "10.96.0.1", 80, 9, &[address])]);
    assert_eq!(vips(&world, "shop", "young"), ["10.96.0.1", address]);
    // One that goes before gives its part back.
    world.apply([greedy("s00", 0, 6)]);
    assert_eq!(known(&world)[16], 10);
    assert_eq!(vips(&world, "shop", "young"), ["10.96.0.1"]);
    world.delete(Kind::Service, "big", "s01");
    assert_eq!(vips(&world, "big", "s16").len(), 1 + 16);
    let events = world.events();
    assert!(
        events.len() == 1 && events[0].starts_with("Service shop/young AddressTaken:"),
        "{events:?}"
    );
}
