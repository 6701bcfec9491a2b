//! What proxies are told of services and of what is behind them: whose it is, which ports it serves and what is spoken there.

mod support;

use std::time::Duration;

use mesh::proto::workload::{AppProtocol, NetworkMode, Service, WorkloadStatus, WorkloadType};
use mesh::service::session_affinity;
use serde_json::{Value, json};

use support::{World, namespace, node, pod, service};

#[test]
fn a_workload_says_whose_it_is_and_which_ports_it_serves() {
    let mut one = pod(
        "shop",
        "cart-abc-1",
        "10.0.0.1",
        json!({"app": "cart", "version": "v2", "pod-template-hash": "abc"}),
    );
    one["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-abc", "uid": "r", "controller": true}]);
    one["spec"]["serviceAccountName"] = json!("buyer");
    one["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
    let mut world = World::new();
    world.apply([
        namespace("shop", json!({})),
        one.clone(),
        service("shop", "cart", "10.96.0.1", "cart", json!({})),
        service("shop", "other", "10.96.0.2", "other", json!({})),
        service("elsewhere", "cart", "10.96.0.3", "cart", json!({})),
        json!({"kind": "Node", "apiVersion": "v1",
               "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}}),
    ]);
    let workload = world.workload("Pod/shop/cart-abc-1").expect("known");
    assert_eq!(
        (workload.workload_type(), &*workload.workload_name),
        (WorkloadType::Deployment, "cart")
    );
    assert_eq!(
        (&*workload.canonical_name, &*workload.canonical_revision),
        ("cart", "v2")
    );
    assert_eq!(
        (
            &*workload.service_account,
            &*workload.trust_domain,
            &*workload.node
        ),
        ("buyer", "", "n1")
    );
    assert_eq!(
        workload
            .addresses
            .iter()
            .map(|ip| ip.len())
            .collect::<Vec<_>>(),
        [4, 16]
    );
    assert_eq!(
        workload.locality.as_ref().map(|place| &*place.zone),
        Some("z1")
    );
    assert_eq!(
        workload.services.keys().collect::<Vec<_>>(),
        ["shop/cart.shop.svc.cluster.local"]
    );
    let ports = &workload.services["shop/cart.shop.svc.cluster.local"].ports;
    assert_eq!((ports[0].service_port, ports[0].target_port), (80, 8080));
    assert_eq!(workload.status(), WorkloadStatus::Healthy);

    one["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.apply([one.clone()]);
    assert_eq!(
        world
            .workload("Pod/shop/cart-abc-1")
            .expect("known")
            .status(),
        WorkloadStatus::Unhealthy
    );
    one["status"]["phase"] = json!("Succeeded");
    world.apply([one]);
    assert!(world.workload("Pod/shop/cart-abc-1").is_none());
    assert!(world.enrolment("n1", "cart-abc-1").is_none());
}

#[test]
fn services_say_what_is_spoken() {
    let mut one = service("shop", "cart", "10.96.0.1", "cart", json!({}));
    one["spec"]["clusterIPs"] = json!(["10.96.0.1", "fd00:96::1"]);
    one["spec"]["ports"] = json!([
        {"name": "http-web", "port": 80, "targetPort": 8080},
        {"name": "grpc", "port": 81},
        {"name": "x", "port": 82, "appProtocol": "kubernetes.io/h2c"},
        {"name": "tls-x", "port": 83},
        {"name": "mysql", "port": 84},
        {"name": "other", "port": 85, "targetPort": "web"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    let mut world = World::new();
    world.apply([one]);
    let service = world.service("shop", "cart").expect("known");
    assert_eq!(service.addresses.len(), 2);
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| (p.service_port, p.target_port, p.app_protocol()))
        .collect();
    assert_eq!(
        ports,
        [
            (80, 8080, AppProtocol::Http11),
            (81, 81, AppProtocol::Grpc),
            (82, 82, AppProtocol::Http2),
            (83, 83, AppProtocol::Tls),
            (84, 84, AppProtocol::Tcp),
            (85, 0, AppProtocol::Unknown),
        ]
    );
    let mut headless = support::service("shop", "pods", "None", "cart", json!({}));
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let mut alias = support::service("shop", "alias", "", "cart", json!({}));
    alias["spec"]["type"] = json!("ExternalName");
    world.apply([headless, alias]);
    assert!(
        world
            .service("shop", "pods")
            .expect("known")
            .addresses
            .is_empty()
    );
    assert!(world.service("shop", "alias").is_none());
}

#[test]
fn endpoints_that_are_no_pods_are_workloads() {
    let mut outside = service("default", "kubernetes", "10.96.0.1", "-", json!({}));
    outside["spec"]["selector"] = json!(null);
    outside["spec"]["ports"] = json!([{"name": "https", "port": 443, "targetPort": 6443}]);
    let slice = json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["172.18.0.10"]}, {"addresses": ["10.0.0.7"]}],
        "ports": [{"name": "https", "port": 6443}],
    });
    let mut world = World::new();
    world.apply([outside, slice, node("n1", "172.18.0.10")]);
    let uid = |ip: &str| format!("discovery.k8s.io/EndpointSlice/default/kubernetes/{ip}");
    let workload = world.workload(&uid("172.18.0.10")).expect("known");
    assert_eq!(workload.network_mode(), NetworkMode::HostNetwork);
    let ports = &workload.services["default/kubernetes.default.svc.cluster.local"].ports;
    assert_eq!((ports[0].service_port, ports[0].target_port), (443, 6443));
    assert!(world.workload(&uid("10.0.0.7")).is_some());

    // A pod at that address is the endpoint; there must not be two workloads at one address.
    world.apply([pod("default", "p", "10.0.0.7", json!({}))]);
    assert!(world.workload(&uid("10.0.0.7")).is_none());
    let workload = world.workload("Pod/default/p").expect("known");
    assert_eq!(
        workload.services["default/kubernetes.default.svc.cluster.local"].ports[0].target_port,
        6443
    );
}

/// What kube-proxy would do with a Service, proxies are told.
#[test]
fn a_service_says_how_far_its_traffic_goes_and_who_stays_where() {
    use mesh::proto::workload::load_balancing::{Mode, Scope};
    let near = [Scope::Network, Scope::Region, Scope::Zone];
    let nearer = [&near[..], &[Scope::Subzone, Scope::Node]].concat();
    for (spec, mode, scopes) in [
        (json!({}), Mode::UnspecifiedMode, &[][..]),
        (
            json!({"internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"}),
            Mode::Strict,
            &[Scope::Node],
        ),
        (
            json!({"trafficDistribution": "PreferSameZone"}),
            Mode::Failover,
            &near,
        ),
        (
            json!({"trafficDistribution": "PreferClose"}),
            Mode::Failover,
            &near,
        ),
        (
            json!({"trafficDistribution": "PreferSameNode"}),
            Mode::Failover,
            &nearer,
        ),
    ] {
        let balancing = told(&spec).load_balancing.unwrap_or_default();
        let said = (balancing.mode(), balancing.routing_preference().collect());
        assert_eq!(said, (mode, scopes.to_vec()), "{spec}");
    }
    let seconds = |spec| told(&spec).extensions;
    let kept = |seconds| vec![session_affinity(Duration::from_secs(seconds))];
    assert_eq!(seconds(json!({"sessionAffinity": "None"})), []);
    let client_ip = json!({"sessionAffinity": "ClientIP"});
    assert_eq!(seconds(client_ip.clone()), kept(10_800));
    let mut short = client_ip;
    short["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
    assert_eq!(seconds(short), kept(60));
}

/// What proxies are told of a Service whose spec says this besides.
fn told(spec: &Value) -> Service {
    let mut cart = service("shop", "cart", "10.96.0.1", "cart", json!({}));
    for (field, value) in spec.as_object().into_iter().flatten() {
        cart["spec"][field] = value.clone();
    }
    let mut world = World::new();
    world.apply([namespace("shop", json!({})), cart]);
    world.service("shop", "cart").expect("known")
}
