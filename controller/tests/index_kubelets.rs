//! What kubelets write into statuses, and tenants into Services: addresses of others that are named there are not theirs.

#[path = "support/addresses.rs"]
mod addresses;
mod support;

use controller::index::changes::Kind;
use serde_json::{Value, json};

use addresses::{at, ranged, shop};
use support::{World, in_turns, node, pod, service};

#[test]
fn a_node_that_names_a_pods_address_is_told_and_has_nothing_of_it() {
    let mut world = shop();
    world.apply([ranged("n2", "10.0.0.1", "10.0.1.0/24")]);
    assert_eq!(at(&world, [10, 0, 0, 1]), ["db"]);
    assert_eq!(
        world.events(),
        [
            "Node n2 AddressTaken: address 10.0.0.1 is that of pod shop/db: in the mesh it leads there"
        ]
    );
}

/// `evil/liar` on n2, whose status names these addresses.
fn liar(addresses: &[&str]) -> Value {
    let mut liar = pod("evil", "liar", addresses[0], json!({}));
    let named = addresses.iter().map(|address| json!({"ip": address}));
    liar["spec"]["nodeName"] = json!("n2");
    liar["status"]["podIPs"] = named.collect();
    liar
}

/// The addresses under which a pod is known.
fn known_at(world: &World, pod: &str) -> Vec<Vec<u8>> {
    let workload = world.workload(&format!("Pod/{pod}"));
    let addresses = workload.map(|one| one.addresses).unwrap_or_default();
    addresses.iter().map(|one| one.to_vec()).collect()
}

#[test]
fn a_pod_that_names_a_cluster_ip_is_told_and_has_nothing_of_it() {
    let objects = [
        // Even where that is in its range.
        ranged("n2", "192.168.0.2", "10.96.0.0/16"),
        service("shop", "cart", "10.96.0.1", "cart", json!({})),
        liar(&["10.96.0.1", "10.96.7.7"]),
    ];
    for mut world in in_turns(&objects) {
        assert!(at(&world, [10, 96, 0, 1]).is_empty());
        assert_eq!(
            known_at(&world, "evil/liar"),
            [[10, 96, 7, 7]],
            "its others stay"
        );
        assert_eq!(
            world.events(),
            [
                "Pod evil/liar AddressTaken: address 10.96.0.1 is that of Service shop/cart: in the mesh it leads there"
            ]
        );
        // One that names nothing else is nowhere.
        world.apply([liar(&["10.96.0.1"])]);
        assert!(world.workload("Pod/evil/liar").is_none());
        world.delete(Kind::Service, "shop", "cart");
        assert_eq!(at(&world, [10, 96, 0, 1]), ["liar"]);
        assert!(world.events().is_empty(), "{:?}", world.events());
    }
}

#[test]
fn a_node_that_names_a_cluster_ip_is_told() {
    let mut world = shop();
    world.apply([ranged("n2", "10.96.0.1", "10.0.1.0/24")]);
    assert_eq!(
        world.events(),
        [
            "Node n2 AddressTaken: address 10.96.0.1 is that of Service shop/cart: in the mesh it leads there"
        ]
    );
}

#[test]
fn what_tenants_write_into_services_takes_no_pod_its_address() {
    let mut headless = service("evil", "headless", "None", "-", json!({}));
    headless["spec"]["externalIPs"] = json!(["10.0.0.1"]);
    let mut balanced = service("evil", "balanced", "10.96.0.66", "-", json!({}));
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalIPs"] = json!(["10.0.0.1"]);
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}});
    let objects = [pod("shop", "db", "10.0.0.1", json!({})), headless, balanced];
    for world in in_turns(&objects) {
        assert_eq!(at(&world, [10, 0, 0, 1]), ["db"]);
    }
}

#[test]
fn no_node_takes_a_pod_its_address() {
    // A Node's addresses are its kubelet's word as well. Nor does a range say anything that the CNI does not use.
    for spec in [
        json!({}),
        json!({"podCIDRs": ["fd00::/64"]}),
        json!({"podCIDRs": ["10.9.0.0/24"]}),
    ] {
        let mut host = node("n1", "192.168.0.1");
        host["spec"] = spec;
        let objects = [
            host,
            node("n2", "10.0.0.1"),
            pod("shop", "db", "10.0.0.1", json!({})),
        ];
        for world in in_turns(&objects) {
            assert_eq!(at(&world, [10, 0, 0, 1]), ["db"]);
            let events = world.events();
            assert!(events[0].starts_with("Node n2 AddressTaken"), "{events:?}");
        }
    }
}
