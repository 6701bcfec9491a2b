//! Gateways and routes in; bindings, routes of waypoints, plans and status out.

mod support;

use controller::index::Input;
use controller::index::changes::Kind;
use controller::index::names::Key;
use mesh::proto::waypoint::backend::To;
use mesh::proto::workload::{TunnelProtocol, gateway_address::Destination};
use serde_json::{Value, json};

use support::{World, class, gateway, namespace, our_class, pod, route, service, waypoint};

const USE: &str = "istio.io/use-waypoint";

fn bound() -> Value {
    json!({USE: "gate"})
}

fn to_cart() -> Value {
    json!([{"group": "", "kind": "Service", "name": "cart"}])
}

/// A namespace with a service `cart` that uses the waypoint `gate`, which is ready.
fn shop() -> World {
    let mut world = World::new();
    let mut changes = world.apply([
        namespace("shop", json!({})),
        our_class(),
        gateway("shop", "gate"),
        service("shop", "cart", "10.96.0.1", "cart", bound()),
        service("shop", "plain", "10.96.0.2", "plain", json!({})),
        pod("shop", "a", "10.0.0.1", json!({"app": "cart"})),
    ]);
    assert_eq!(changes.waypoints.len(), 1);
    assert_eq!(changes.waypoints[0].0, Key::new("shop", "gate"));
    let roots = changes
        .root_namespaces
        .take()
        .expect("the roots are wanted there");
    assert_eq!(
        roots.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["ambit-system", "shop"]
    );
    world.write(changes);
    let changes = world.apply(waypoint("shop", "gate"));
    world.write(changes);
    world
}

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

    let [gate, gate_pod] = waypoint("shop", "gate");
    let changes = world.apply([gate, gate_pod.clone()]);
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

    world.input(Input::Gateway(controller::index::Event::Delete(Key::new(
        "shop", "gate",
    ))));
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
    assert!(changes.waypoints.is_empty(), "what runs is left running");
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
fn classes_of_others_are_left_alone() {
    let mut world = World::new();
    let changes = world.apply([class("istio-waypoint", "istio.io/mesh-controller")]);
    assert!(changes.writes.is_empty());
    let mut theirs = gateway("shop", "gate");
    theirs["spec"]["gatewayClassName"] = json!("istio-waypoint");
    let changes = world.apply([theirs]);
    assert!(changes.writes.is_empty() && changes.waypoints.is_empty());
    // Ours are made anew when they go.
    world.apply([our_class()]);
    let gone = Input::GatewayClass(controller::index::Event::Delete(Key::new(
        "",
        "ambit-waypoint",
    )));
    assert_eq!(world.input(gone).classes, ["ambit-waypoint"]);
}

#[test]
fn a_route_reaches_the_waypoint_of_its_service() {
    let mut world = shop();
    let rules = json!([{
        "matches": [{"path": {"type": "PathPrefix", "value": "/v2"}, "headers": [{"name": "x-user", "value": "beta"}]}],
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}],
        "backendRefs": [{"name": "plain", "port": 80, "weight": 9}, {"name": "ghost", "port": 80}, {"name": "cart", "port": 81}],
    }]);
    let changes = world.apply([route("shop", "r", to_cart(), rules)]);
    let told = world.write(changes);
    assert_eq!(world.parent("shop", "r", 0, "Accepted"), "True Accepted");
    assert_eq!(
        world.parent("shop", "r", 0, "ResolvedRefs"),
        "False BackendNotFound"
    );
    assert_eq!(
        world.parent("shop", "r", 0, "ResolvedWaypoints"),
        "True ResolvedWaypoints"
    );
    assert_eq!(told.len(), 1, "{told:?}");
    let sent = world.route(("shop", "gate"), "shop/r").expect("sent");
    assert_eq!(sent.parents[0].hostname, "cart.shop.svc.cluster.local");
    let backends = &sent.rules[0].backends;
    assert!(
        matches!(&backends[0].to, Some(To::Service(to)) if to.hostname == "plain.shop.svc.cluster.local")
    );
    assert_eq!(backends[0].weight, 9);
    for invalid in &backends[1..] {
        assert!(matches!(&invalid.to, Some(To::Invalid(invalid)) if invalid.status == 500));
    }
    // What is missing may come.
    let changes = world.apply([service("shop", "ghost", "10.96.0.7", "ghost", json!({}))]);
    world.write(changes);
    let sent = world.route(("shop", "gate"), "shop/r").expect("sent");
    assert!(matches!(
        &sent.rules[0].backends[1].to,
        Some(To::Service(_))
    ));
    // Unbound, the route is nobody's.
    let changes = world.apply([service("shop", "cart", "10.96.0.1", "cart", json!({}))]);
    let told = world.write(changes);
    assert!(world.route(("shop", "gate"), "shop/r").is_none());
    assert_eq!(
        world.parent("shop", "r", 0, "ResolvedWaypoints"),
        "False NoWaypoint"
    );
    assert!(
        told.iter().any(|note| note.starts_with("NoWaypoint")),
        "{told:?}"
    );
}

#[test]
fn parents_that_do_not_exist_are_named() {
    let mut world = shop();
    let parent = |extra: Value| {
        let mut parent = json!({"group": "", "kind": "Service", "name": "cart"});
        parent
            .as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        parent
    };
    let parents = json!([
        parent(json!({"name": "absent"})),
        parent(json!({"port": 81})),
        parent(json!({"sectionName": "grpc"})),
        parent(json!({"port": 80, "sectionName": "http"})),
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gate"},
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "someone-elses"},
    ]);
    let changes = world.apply([route(
        "shop",
        "r",
        parents,
        json!([{"backendRefs": [{"name": "cart", "port": 80}]}]),
    )]);
    world.write(changes);
    for parent in 0..3 {
        assert_eq!(
            world.parent("shop", "r", parent, "Accepted"),
            "False NoMatchingParent",
            "{parent}"
        );
    }
    assert_eq!(world.parent("shop", "r", 3, "Accepted"), "True Accepted");
    assert_eq!(
        world.parent("shop", "r", 4, "Accepted"),
        "False NotAllowedByListeners"
    );
    assert_eq!(world.parent("shop", "r", 5, "Accepted"), "absent");
    let sent = world.route(("shop", "gate"), "shop/r").expect("sent");
    assert_eq!(
        sent.parents
            .iter()
            .map(|parent| parent.port)
            .collect::<Vec<_>>(),
        [80]
    );
}

#[test]
fn what_is_not_supported_is_refused_whole_and_the_last_good_one_stays() {
    let mut world = shop();
    let good = json!([{"backendRefs": [{"name": "cart", "port": 80}]}]);
    let changes = world.apply([
        route("shop", "r", to_cart(), good.clone()),
        route("shop", "other", to_cart(), good.clone()),
    ]);
    world.write(changes);
    for (rules, reason) in [
        (
            json!([{"timeouts": {"request": "1s"}}]),
            "rules[0].timeouts is not supported",
        ),
        (
            json!([{"matches": [{"path": {"type": "RegularExpression", "value": ".*"}}]}]),
            "rules[0].matches[0].path.type",
        ),
        (
            json!([{"filters": [{"type": "URLRewrite", "urlRewrite": {}}]}]),
            "rules[0].filters[0].type URLRewrite",
        ),
        (
            json!([{"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 418}}]}]),
            "statusCode 418",
        ),
        (
            json!([{"filters": [{"type": "RequestHeaderModifier",
                "requestHeaderModifier": {"set": [{"name": "a b", "value": "c"}]}}]}]),
            "a b",
        ),
        (json!([{"newThing": 1}]), "newThing"),
        (json!([{"backendRefs": "nonsense"}]), "cannot be read"),
    ] {
        let mut bad = route("shop", "r", to_cart(), rules.clone());
        bad["metadata"]["generation"] = json!(2);
        bad["status"] = world.objects[&(Kind::HttpRoute, Key::new("shop", "r"))]["status"].clone();
        let changes = world.apply([bad]);
        assert!(
            changes.resources.is_empty(),
            "{rules}: {:?}",
            changes.resources
        );
        let told = world.write(changes);
        assert!(
            told.iter()
                .any(|note| note.contains(reason) && note.contains("generation 1 stays")),
            "{rules}: {told:?}"
        );
        assert_eq!(
            world.parent("shop", "r", 0, "Accepted"),
            "False UnsupportedValue"
        );
        assert!(world.route(("shop", "gate"), "shop/r").is_some());
        assert!(world.route(("shop", "gate"), "shop/other").is_some());
    }
    // One that was never good is not served.
    let changes = world.apply([route("shop", "new", to_cart(), json!([{"retry": {}}]))]);
    world.write(changes);
    assert!(world.route(("shop", "gate"), "shop/new").is_none());
}

#[test]
fn the_status_of_others_is_not_touched() {
    let mut world = shop();
    let mut one = route("shop", "r", to_cart(), json!([]));
    let theirs = json!({"controllerName": "example.com/other", "parentRef": {"name": "x"}, "conditions": []});
    one["status"] = json!({"parents": [theirs]});
    let changes = world.apply([one]);
    world.write(changes);
    let status = &world.objects[&(Kind::HttpRoute, Key::new("shop", "r"))]["status"];
    assert_eq!(status["parents"][0], theirs);
    assert_eq!(
        status["parents"][1]["controllerName"],
        "ambit.mesh/waypoint-controller"
    );
    assert_eq!(status["parents"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_route_whose_parents_cannot_be_read_is_told_once() {
    let mut world = shop();
    let one = route("shop", "r", json!([{"kind": "Service"}]), json!([]));
    let changes = world.apply([one.clone()]);
    assert_eq!(changes.notices.len(), 1);
    assert!(
        changes.notices[0].note.contains("parentRef"),
        "{:?}",
        changes.notices
    );
    let changes = world.apply([one]);
    assert!(changes.notices.is_empty());
}

#[test]
fn a_route_for_another_namespaces_service_is_refused() {
    let mut world = shop();
    let theirs = json!([{"group": "", "kind": "Service", "name": "cart", "namespace": "shop"}]);
    let rules = json!([{"backendRefs": [{"name": "mine", "port": 80}]}]);
    let changes = world.apply([
        namespace("thief", json!({})),
        route("thief", "r", theirs, rules),
    ]);
    assert!(changes.resources.is_empty(), "{:?}", changes.resources);
    let told = world.write(changes);
    assert_eq!(
        world.parent("thief", "r", 0, "Accepted"),
        "False UnsupportedValue"
    );
    assert!(
        told.iter().any(|note| note.contains("consumer routes")),
        "{told:?}"
    );
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
