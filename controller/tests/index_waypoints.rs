//! Gateways in; bindings, plans and status out.

mod support;

use controller::index::changes::{Changes, Kind, Role};
use controller::index::names::Key;
use mesh::proto::workload::{TunnelProtocol, gateway_address::Destination};
use serde_json::json;

use support::{
    DesiredChanges, USE, World, bound, gateway, namespace, our_class, pod, service, shop, waypoint,
};

fn bound_to(world: &World, service: &str) -> Option<String> {
    let waypoint = world.service("shop", service).expect("known").waypoint?;
    assert_eq!(waypoint.hbone_mtls_port, 15008);
    match waypoint.destination? {
        Destination::Hostname(name) => Some(name.hostname),
        Destination::Address(_) => panic!("an address"),
    }
}

#[test]
fn a_service_is_bound_when_its_waypoint_is_ready_and_stays_so() {
    let mut world = World::new();
    let changes = world.apply([
        namespace("shop", json!({})),
        our_class(),
        service("shop", "cart", "10.96.0.1", "cart", bound()),
    ]);
    let told = world.write(changes);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        world.condition(Kind::Service, "shop", "cart", "istio.io/WaypointBound"),
        "False WaypointIsNotReady"
    );

    let changes = world.apply([gateway("shop", "gate")]);
    world.write(changes);
    assert_eq!(
        world.condition(Kind::Gateway, "shop", "gate", "Accepted"),
        "True Accepted"
    );
    assert_eq!(
        world.condition(Kind::Gateway, "shop", "gate", "Programmed"),
        "False AddressNotAssigned"
    );
    assert_eq!(bound_to(&world, "cart"), None);

    let [gate, gate_pod, set, deployment] = waypoint("shop", "gate");
    let changes = world.apply([gate, gate_pod.clone(), set, deployment]);
    let told = world.write(changes);
    assert!(
        told.contains(&"WaypointAccepted: attached to waypoint shop/gate".to_owned()),
        "{told:?}"
    );
    assert_eq!(
        bound_to(&world, "cart").as_deref(),
        Some("gate.shop.svc.cluster.local")
    );
    assert_eq!(
        world.condition(Kind::Gateway, "shop", "gate", "Programmed"),
        "True Programmed"
    );
    let status = &world.objects[&(Kind::Gateway, Key::new("shop", "gate"))]["status"];
    assert_eq!(
        status["addresses"][0],
        json!({"type": "Hostname", "value": "gate.shop.svc.cluster.local"})
    );
    assert_eq!(
        status["addresses"][1],
        json!({"type": "IPAddress", "value": "10.96.0.99"})
    );

    // Once ready, an unready waypoint keeps what is bound to it: plain traffic would be a surprise.
    let mut unready = gate_pod;
    unready["status"]["conditions"] = json!([]);
    let changes = world.apply([unready]);
    world.write(changes);
    assert_eq!(
        world.condition(Kind::Gateway, "shop", "gate", "Programmed"),
        "False Pending"
    );
    assert_eq!(
        bound_to(&world, "cart").as_deref(),
        Some("gate.shop.svc.cluster.local")
    );

    world.delete(Kind::Gateway, "shop", "gate");
    assert_eq!(bound_to(&world, "cart"), None);
}

#[test]
fn a_waypoint_speaks_hbone_itself() {
    let world = shop();
    let workload = world.workload("Pod/shop/gate-0").expect("known");
    assert!(workload.native_tunnel);
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::Hbone);
    assert!(workload.waypoint.is_none());
    let workload = world.workload("Pod/shop/a").expect("known");
    assert!(!workload.native_tunnel);
}

#[test]
fn behind_the_service_of_a_gateway_that_comes_to_be_ours_stand_its_own_pods_alone() {
    let name = json!({"gateway.networking.k8s.io/gateway-name": "gate"});
    let mut foreign = gateway("shop", "gate");
    foreign["spec"]["gatewayClassName"] = json!("others");
    let mut world = World::new();
    world.apply([namespace("shop", json!({})), our_class(), foreign.clone()]);
    world.apply(waypoint("shop", "gate"));
    world.apply([pod("shop", "decoy", "10.244.9.10", name)]);
    let behind = |world: &World| {
        let workload = world.workload("Pod/shop/decoy").expect("known");
        workload
            .services
            .contains_key("shop/gate.shop.svc.cluster.local")
    };
    assert!(behind(&world));
    world.apply([gateway("shop", "gate")]);
    assert!(!behind(&world));
    world.apply([foreign]);
    assert!(behind(&world), "as it was before");
}

#[test]
fn labels_choose_the_waypoint() {
    let mut world = shop();
    // From the namespace.
    world.apply([namespace("shop", bound())]);
    assert!(bound_to(&world, "plain").is_some());
    assert!(
        world
            .workload("Pod/shop/a")
            .expect("known")
            .waypoint
            .is_none(),
        "a service waypoint takes no pod traffic"
    );
    // The object's word beats it, also when it leads nowhere.
    let changes = world.apply([
        service("shop", "plain", "10.96.0.2", "plain", json!({USE: "none"})),
        service("shop", "cart", "10.96.0.1", "cart", json!({USE: "absent"})),
    ]);
    world.write(changes);
    assert_eq!(bound_to(&world, "plain"), None);
    assert_eq!(bound_to(&world, "cart"), None);
    assert_eq!(
        world.condition(Kind::Service, "shop", "plain", "istio.io/WaypointBound"),
        "absent"
    );
    assert_eq!(
        world.condition(Kind::Service, "shop", "cart", "istio.io/WaypointBound"),
        "False WaypointIsNotReady"
    );
    // For workloads.
    let mut for_all = gateway("shop", "gate");
    for_all["metadata"]["labels"] = json!({"istio.io/waypoint-for": "workload"});
    let changes = world.apply([
        for_all,
        service("shop", "cart", "10.96.0.1", "cart", bound()),
    ]);
    world.write(changes);
    assert!(
        world
            .workload("Pod/shop/a")
            .expect("known")
            .waypoint
            .is_some()
    );
    assert_eq!(
        world.condition(Kind::Service, "shop", "cart", "istio.io/WaypointBound"),
        "False UnsupportedTrafficType"
    );
}

#[test]
fn other_namespaces_need_to_be_admitted() {
    let mut world = shop();
    let labels = json!({USE: "gate", "istio.io/use-waypoint-namespace": "shop"});
    let bill = service("till", "bill", "10.96.0.5", "bill", labels);
    let changes = world.apply([namespace("till", json!({"tier": "a"})), bill]);
    world.write(changes);
    let condition =
        |world: &World| world.condition(Kind::Service, "till", "bill", "istio.io/WaypointBound");
    assert_eq!(condition(&world), "False AttachmentDenied");
    for (namespaces, admitted) in [
        (
            json!({"from": "Selector", "selector": {"matchLabels": {"tier": "b"}}}),
            false,
        ),
        (
            json!({"from": "Selector", "selector": {"matchLabels": {"tier": "a"}}}),
            true,
        ),
        (json!({"from": "Same"}), false),
        (json!({"from": "All"}), true),
    ] {
        let mut gate = world.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
        gate["spec"]["listeners"][0]["allowedRoutes"] = json!({"namespaces": namespaces});
        let changes = world.apply([gate]);
        world.write(changes);
        let expected = if admitted {
            "True WaypointAccepted"
        } else {
            "False AttachmentDenied"
        };
        assert_eq!(condition(&world), expected, "{namespaces}");
    }
}

#[test]
fn a_gateway_that_becomes_wrong_says_so_and_keeps_what_it_has() {
    let mut world = shop();
    let mut wrong = world.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
    wrong["metadata"]["generation"] = json!(2);
    wrong["spec"]["listeners"] = json!([{"name": "web", "port": 80, "protocol": "HTTP"}]);
    let changes = world.apply([wrong]);
    assert!(changes.waypoints().is_empty(), "what runs is left running");
    let told = world.write(changes);
    assert!(
        told.iter()
            .any(|note| note.starts_with("UnsupportedProtocol: listener web")),
        "{told:?}"
    );
    assert_eq!(
        world.condition(Kind::Gateway, "shop", "gate", "Accepted"),
        "False ListenersNotValid"
    );
    assert!(bound_to(&world, "cart").is_some());
}

#[test]
fn a_waypoint_is_not_its_own_and_pods_are_told_of_theirs() {
    let mut world = shop();
    let mut gate = waypoint("shop", "gate")[0].clone();
    gate["metadata"]["labels"] =
        json!({"gateway.istio.io/managed": "ambit.mesh-waypoint-controller"});
    let labels = json!({"app": "cart", USE: "gate"});
    let changes = world.apply([
        namespace("shop", bound()),
        gate,
        pod("shop", "a", "10.0.0.1", labels),
    ]);
    world.write(changes);
    assert_eq!(bound_to(&world, "gate"), None);
    assert!(bound_to(&world, "plain").is_some());
    assert_eq!(
        world.condition(Kind::Pod, "shop", "a", "istio.io/WaypointBound"),
        "False UnsupportedTrafficType"
    );
    let changes = world.apply([pod("shop", "a", "10.0.0.1", json!({"app": "cart"}))]);
    world.write(changes);
    assert_eq!(
        world.condition(Kind::Pod, "shop", "a", "istio.io/WaypointBound"),
        "absent"
    );
}

#[test]
fn a_gateway_that_was_wrong_when_the_controller_started_still_serves_what_it_served() {
    let ready = shop();
    let mut wrong = ready.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
    wrong["spec"]["listeners"] = json!([]);
    let mut world = World::new();
    world.apply([
        namespace("shop", json!({})),
        our_class(),
        wrong,
        service("shop", "cart", "10.96.0.1", "cart", bound()),
    ]);
    assert!(bound_to(&world, "cart").is_some());
}

#[test]
fn labels_make_no_waypoint() {
    let [of_waypoint, real, set, deployment] = waypoint("shop", "gate");
    let mut without_owner = real.clone();
    without_owner["metadata"]["ownerReferences"] = json!([]);
    let mut other_account = real.clone();
    other_account["spec"]["serviceAccountName"] = json!("default");
    let mut other_uid = set.clone();
    other_uid["metadata"]["uid"] = json!("forged");
    let mut not_of_the_gateway = deployment.clone();
    not_of_the_gateway["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    for (what, objects) in [
        (
            "no owner",
            vec![without_owner, set.clone(), deployment.clone()],
        ),
        (
            "another account",
            vec![other_account, set.clone(), deployment.clone()],
        ),
        (
            "another ReplicaSet",
            vec![real.clone(), other_uid, deployment.clone()],
        ),
        (
            "another Gateway",
            vec![real.clone(), set.clone(), not_of_the_gateway],
        ),
        ("no Deployment", vec![real.clone(), set.clone()]),
    ] {
        let mut world = World::new();
        world.apply([
            namespace("shop", json!({})),
            our_class(),
            gateway("shop", "gate"),
            of_waypoint.clone(),
        ]);
        let changes = world.apply(objects);
        assert_eq!(role(&changes), Role::Application, "{what}");
        let workload = world.workload("Pod/shop/gate-0").expect("known");
        assert!(!workload.native_tunnel, "{what}");
        assert!(workload.services.is_empty(), "{what}: nobody is led to it");
    }
    // Whole, but its Gateway is not there, or is not ours.
    let mut world = World::new();
    let changes = world.apply([real.clone(), set.clone(), deployment.clone(), our_class()]);
    assert_eq!(role(&changes), Role::Application);
    // In any order it becomes one, and stays one no longer than its Gateway.
    let changes = world.apply([gateway("shop", "gate")]);
    assert_eq!(role(&changes), Role::Waypoint(Key::new("shop", "gate")));
    assert!(
        world
            .workload("Pod/shop/gate-0")
            .expect("known")
            .native_tunnel
    );
    let changes = world.delete(Kind::Gateway, "shop", "gate");
    assert_eq!(role(&changes), Role::Application);
}

fn role(changes: &Changes) -> Role {
    let placement = changes
        .placements
        .iter()
        .rfind(|(uid, _)| &**uid == "gate-0");
    let placement = placement.and_then(|(_, placement)| placement.clone());
    placement.expect("placed").role.clone()
}

#[test]
fn a_service_without_an_address_is_not_bound_to_a_service_waypoint() {
    let mut world = shop();
    let mut headless = service("shop", "db", "None", "db", bound());
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let changes = world.apply([headless]);
    let told = world.write(changes);
    assert_eq!(
        world.condition(Kind::Service, "shop", "db", "istio.io/WaypointBound"),
        "False NoAddress"
    );
    assert!(
        told.iter().any(|note| note.contains("no cluster IP")),
        "{told:?}"
    );
    assert_eq!(bound_to(&world, "db"), None);
}
