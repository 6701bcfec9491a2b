//! Who has which address: objects that name some, and what proxies were told.
//!
//! A test file takes it with `#[path = "support/addresses.rs"] mod addresses;`, beside `mod support;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use mesh::proto::node::enrolment_report::State as Reported;
use mesh::proto::workload::NetworkMode;
use serde_json::{Value, json};

use crate::support::{World, namespace, node, pod, service};

/// An EndpointSlice of the Service `name`, with these addresses.
pub fn slice(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "namespace": namespace,
            "name": format!("{name}-1"),
            "uid": format!("slice-{namespace}-{name}"),
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// A Service whose endpoints somebody else writes.
pub fn manual(namespace: &str, name: &str, ip: &str) -> Value {
    let mut service = service(namespace, name, ip, "-", json!({}));
    service["spec"]["selector"] = json!(null);
    service
}

/// A node whose pods have addresses of this range.
pub fn ranged(name: &str, address: &str, range: &str) -> Value {
    let mut node = node(name, address);
    node["spec"] = json!({"podCIDRs": [range]});
    node
}

/// The same, whose first endpoint says that it is this pod.
pub fn naming(mut slice: Value, namespace: &str, pod: &str) -> Value {
    slice["endpoints"][0]["targetRef"] =
        json!({"kind": "Pod", "name": pod, "namespace": namespace});
    slice
}

/// `shop/db` in the mesh at 10.0.0.1, on node n1 at 192.168.0.1.
pub fn shop() -> World {
    let mut world = World::new();
    let changes = world.apply([
        namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})),
        namespace("evil", json!({})),
        ranged("n1", "192.168.0.1", "10.0.0.0/24"),
        pod("shop", "db", "10.0.0.1", json!({})),
        service("shop", "cart", "10.96.0.1", "cart", json!({})),
    ]);
    world.write(changes);
    let changes = world.report("n1", "db", Reported::Enrolled, "");
    world.write(changes);
    world
}

/// Names of the workloads that have an address.
pub fn at(world: &World, address: [u8; 4]) -> Vec<String> {
    let named = world.resources.iter().filter_map(|((_, name), _)| {
        let uid = name.strip_prefix("Kubernetes/")?;
        let workload = world.workload(uid.trim_start_matches('/'))?;
        let claims = workload.network_mode() == NetworkMode::Standard;
        (claims && workload.addresses.iter().any(|one| **one == address))
            .then(|| workload.name.clone())
    });
    named.collect()
}
