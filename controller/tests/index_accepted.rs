//! What was accepted stays in force: after a restart, and on every replica alike. What never was is refused, not widened.

mod support;

use controller::index::WatchEvent;
use controller::index::changes::Kind;
use controller::index::names::Key;
use mesh::proto::waypoint::backend::To;
use serde_json::{Value, json};

use support::{World, bound, gateway, namespace, our_class, route, service, shop, told, waypoint};

fn to_cart() -> Value {
    json!([{"group": "", "kind": "Service", "name": "cart"}])
}

/// The next generation of an object, with another spec.
fn edited(
    world: &World,
    kind: Kind,
    name: &str,
    generation: i64,
    field: &str,
    value: Value,
) -> Value {
    let mut object = world.objects[&(kind, Key::new("shop", name))].clone();
    object["metadata"]["generation"] = json!(generation);
    object["spec"][field] = value;
    object
}

/// A replica that starts on the objects of another's world, and on what that has kept.
fn restarted(world: &World) -> World {
    let mut next = World::new();
    next.apply(
        world
            .kept()
            .into_iter()
            .chain(world.objects.values().cloned()),
    );
    next
}

fn good() -> Value {
    json!([{"backendRefs": [{"name": "cart", "port": 80}]}])
}

fn bad() -> Value {
    json!([{"timeouts": {"request": "1s"}}])
}

#[test]
fn a_refused_route_keeps_its_last_accepted_rules_on_a_replica_that_never_saw_them() {
    let mut world = shop();
    let changes = world.apply([route("shop", "r", to_cart(), good())]);
    world.write(changes);
    assert_eq!(world.kept().len(), 1);
    let changes = world.apply([edited(&world, Kind::HttpRoute, "r", 2, "rules", bad())]);
    world.write(changes);
    let sent = world.route(("shop", "gate"), "shop/r");
    assert!(matches!(
        &sent.as_ref().expect("sent").rules[0].backends[0].to,
        Some(To::Service(_))
    ));

    let next = restarted(&world);
    assert_eq!(next.route(("shop", "gate"), "shop/r"), sent);
    assert_eq!(next.kept(), world.kept(), "and it is not forgotten there");
    let said =
        |world: &World| world.objects[&(Kind::HttpRoute, Key::new("shop", "r"))]["status"].clone();
    assert!(
        said(&world)
            .to_string()
            .contains("generation 1 stays in force")
    );
    let mut next = next;
    let changes = next.settle();
    next.write(changes);
    assert_eq!(said(&next), said(&world), "both say the same");
}

#[test]
fn a_refused_generation_may_still_take_a_route_off_the_mesh() {
    let mut world = shop();
    let changes = world.apply([route("shop", "r", to_cart(), good())]);
    world.write(changes);
    let elsewhere =
        json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}]);
    let mut moved = edited(&world, Kind::HttpRoute, "r", 2, "rules", bad());
    moved["spec"]["parentRefs"] = elsewhere;
    let changes = world.apply([moved]);
    world.write(changes);
    assert_eq!(world.route(("shop", "gate"), "shop/r"), None);
    let next = restarted(&world);
    assert_eq!(next.route(("shop", "gate"), "shop/r"), None);
}

#[test]
fn a_replica_that_is_behind_takes_nothing_out_that_it_has_not_seen() {
    let mut world = shop();
    let changes = world.apply([route("shop", "r", to_cart(), good())]);
    world.write(changes);
    let mut kept = world.kept();
    kept[0]["metadata"]["resourceVersion"] = json!("50");
    let route = world
        .objects
        .remove(&(Kind::HttpRoute, Key::new("shop", "r")));
    let route = route.expect("a route");

    // Its watch of routes has not told of this one yet.
    let behind = || {
        let mut next = World::new();
        next.apply(kept.iter().cloned().chain(world.objects.values().cloned()));
        let version = "40".to_owned();
        next.input(told(Kind::HttpRoute, WatchEvent::Progress { version }));
        next
    };
    let mut next = behind();
    assert_eq!(next.kept()[0]["data"], kept[0]["data"]);
    next.apply([edited_route(&route, bad())]);
    let sent = next.route(("shop", "gate"), "shop/r").expect("sent");
    assert!(matches!(
        &sent.rules[0].backends[0].to,
        Some(To::Service(_))
    ));

    // It has gone: as soon as that is certain its line goes, too.
    let mut next = behind();
    let version = "50".to_owned();
    next.input(told(Kind::HttpRoute, WatchEvent::Progress { version }));
    assert!(next.kept()[0]["data"]["HTTPRoute.r"].is_null());
}

fn edited_route(route: &Value, rules: Value) -> Value {
    let mut route = route.clone();
    route["metadata"]["generation"] = json!(2);
    route["spec"]["rules"] = rules;
    route
}

#[test]
fn what_is_kept_is_another_routes_when_the_name_is_used_again() {
    let mut world = shop();
    let changes = world.apply([route("shop", "r", to_cart(), good())]);
    world.write(changes);
    let kept = world.kept();
    let mut other = route("shop", "r", to_cart(), bad());
    other["metadata"]["uid"] = json!("another");
    world
        .objects
        .insert((Kind::HttpRoute, Key::new("shop", "r")), other);
    let mut next = World::new();
    next.apply(kept.into_iter().chain(world.objects.values().cloned()));
    let sent = next.route(("shop", "gate"), "shop/r").expect("sent");
    assert!(
        matches!(&sent.rules[0].backends[0].to, Some(To::Invalid(_))),
        "{sent:?}"
    );
}

#[test]
fn a_route_of_which_nothing_was_ever_accepted_refuses_requests() {
    let mut world = shop();
    let changes = world.apply([route("shop", "r", to_cart(), bad())]);
    let told = world.write(changes);
    let sent = world
        .route(("shop", "gate"), "shop/r")
        .expect("never wider than asked for");
    let rule = &sent.rules[0];
    assert!(rule.matches.is_empty() && rule.filters.is_empty());
    assert!(matches!(&rule.backends[0].to, Some(To::Invalid(invalid)) if invalid.status == 500));
    assert!(
        told.iter().any(|note| note.contains("status 500")),
        "{told:?}"
    );
    let kept = world.kept();
    assert!(
        !kept[0]["data"].to_string().contains("HTTPRoute"),
        "{kept:?}"
    );
    // It is a route that a waypoint can read.
    mesh::route::Route::try_from(sent).expect("readable");
}

#[test]
fn what_is_kept_goes_with_its_object_and_is_not_kept_for_others() {
    let mut world = shop();
    let foreign =
        json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "ingress"}]);
    let changes = world.apply([
        route("shop", "r", to_cart(), good()),
        route("shop", "ingress", foreign, good()),
    ]);
    world.write(changes);
    let names = |world: &World| -> Vec<String> {
        let kept = world.kept();
        let data = kept
            .first()
            .map(|map| map["data"].clone())
            .unwrap_or_default();
        data.as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect()
    };
    assert_eq!(names(&world), ["Gateway.gate", "HTTPRoute.r"]);
    world.delete(Kind::HttpRoute, "shop", "r");
    assert_eq!(names(&world), ["Gateway.gate"]);
}

#[test]
fn a_gateway_that_became_wrong_is_the_same_to_a_replica_that_starts_then() {
    let mut world = shop();
    let all = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": "All"}}}]);
    let changes = world.apply([
        edited(&world, Kind::Gateway, "gate", 2, "listeners", all),
        namespace("till", json!({})),
        service(
            "till",
            "bill",
            "10.96.0.5",
            "bill",
            json!({
                "istio.io/use-waypoint": "gate",
                "istio.io/use-waypoint-namespace": "shop",
            }),
        ),
    ]);
    world.write(changes);
    assert!(
        world
            .service("till", "bill")
            .expect("known")
            .waypoint
            .is_some()
    );
    let changes = world.apply([edited(
        &world,
        Kind::Gateway,
        "gate",
        3,
        "listeners",
        json!([]),
    )]);
    world.write(changes);
    let next = restarted(&world);
    for world in [&world, &next] {
        assert!(
            world
                .service("till", "bill")
                .expect("known")
                .waypoint
                .is_some(),
            "what is bound stays bound"
        );
        assert!(plan(world).is_some(), "what runs is kept as it was");
    }
    assert_eq!(plan(&next), plan(&world));
}

fn plan(world: &World) -> Option<std::sync::Arc<controller::index::desired::Entry>> {
    let item = controller::index::desired::Item::Waypoint(Key::new("shop", "gate"));
    world.desired.get(&item).cloned()
}

#[test]
fn a_gateway_that_was_never_accepted_runs_nothing_and_binds_nothing() {
    let mut world = World::new();
    let mut wrong = gateway("shop", "gate");
    wrong["spec"]["listeners"] = json!([]);
    let changes = world.apply([
        namespace("shop", json!({})),
        our_class(),
        wrong,
        service("shop", "cart", "10.96.0.1", "cart", bound()),
    ]);
    world.write(changes);
    world.apply(waypoint("shop", "gate").into_iter().skip(1));
    assert!(plan(&world).is_none());
    assert!(
        world
            .service("shop", "cart")
            .expect("known")
            .waypoint
            .is_none()
    );
    assert!(world.kept().is_empty());
}

#[test]
fn a_port_that_cannot_carry_a_route_is_named() {
    let mut world = shop();
    let mut db = service("shop", "db", "10.96.0.9", "db", bound());
    db["spec"]["ports"] = json!([
        {"name": "tcp-sql", "port": 5432, "targetPort": 5432},
        {"name": "http", "port": 80, "targetPort": 8080},
    ]);
    let at = |port: Value| json!([{"group": "", "kind": "Service", "name": "db", "port": port}]);
    let changes = world.apply([
        db,
        route("shop", "on-tcp", at(json!(5432)), good()),
        route("shop", "on-http", at(json!(80)), good()),
        route(
            "shop",
            "on-both",
            json!([{"group": "", "kind": "Service", "name": "db"}]),
            good(),
        ),
    ]);
    let told = world.write(changes);
    assert_eq!(
        world.parent("shop", "on-tcp", 0, "Accepted"),
        "False NoMatchingParent"
    );
    assert!(
        told.iter()
            .any(|note| note.contains("no effect on port 5432 (tcp)")),
        "{told:?}"
    );
    assert!(world.route(("shop", "gate"), "shop/on-tcp").is_none());
    assert_eq!(
        world.parent("shop", "on-http", 0, "Accepted"),
        "True Accepted"
    );
    assert_eq!(
        world.parent("shop", "on-both", 0, "Accepted"),
        "True Accepted"
    );
    let status = &world.objects[&(Kind::HttpRoute, Key::new("shop", "on-both"))]["status"];
    assert!(
        status.to_string().contains("no effect on port 5432 (tcp)"),
        "{status}"
    );
}
