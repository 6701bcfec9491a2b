//! Routes in; routes of waypoints and status out, each whole or refused with its reason.

mod support;

use controller::index::changes::Kind;
use controller::index::names::Key;
use mesh::proto::waypoint::backend::To;
use serde_json::{Value, json};

use support::{DesiredChanges, namespace, route, service, shop};

fn to_cart() -> Value {
    json!([{"group": "", "kind": "Service", "name": "cart"}])
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
    assert_eq!(changes.notices().len(), 1);
    assert!(
        changes.notices()[0].note.contains("parentRef"),
        "{:?}",
        changes.notices()
    );
    let changes = world.apply([one]);
    assert!(changes.notices().is_empty());
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
