//! One watch is late: what another tells too early is set aside until the first has come as far.

mod support;

use controller::index::Input;
use controller::index::WatchEvent;
use controller::index::changes::Kind;
use controller::index::names::Key;
use controller::position::Coverage;
use mesh::proto::node::Capture;
use mesh::proto::waypoint::backend::To;
use serde_json::{Value, json};

use support::{
    World, bound, gateway, kind, namespace, our_class, pod, route, service, told, waypoint,
};

/// Turns after which nothing waits any more.
const ALL_TURNS: usize = 2;

/// One event of a watch, at its version.
#[derive(Debug, Clone)]
enum Event {
    Apply(u64, Value),
    Delete(u64, Kind, &'static str),
    Progress(u64, Kind),
    /// These are all of a kind.
    List(u64, Kind, Vec<Value>),
}
use Event::{Apply, Delete, List, Progress};

/// A shop whose Service `cart` uses a waypoint, every object at version 1, and Services and routes seen up to version 10.
fn shop() -> World {
    let mut world = World::new();
    let objects = [
        namespace("shop", json!({})),
        our_class(),
        gateway("shop", "gate"),
        bound_cart(),
        new("plain", &[80]),
        pod("shop", "a", "10.0.0.1", json!({"app": "cart"})),
    ];
    for object in objects.into_iter().chain(waypoint("shop", "gate")) {
        tell(&mut world, &Apply(1, object));
    }
    for kind in [Kind::Service, Kind::HttpRoute] {
        tell(&mut world, &Progress(10, kind));
    }
    world
}

/// The same, with a route `r` that sends what comes to `cart` to `plain`.
fn world() -> World {
    let mut world = shop();
    tell(&mut world, &Apply(10, to("plain", 80, 1)));
    assert_eq!(backends(&world), ["plain:80"]);
    world
}

fn at(version: u64, mut object: Value) -> Value {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    object
}

fn tell(world: &mut World, event: &Event) {
    let version = |version: &u64| version.to_string();
    let mut apply = |kind, event| world.index.apply(told(kind, event));
    match event {
        Apply(version, object) => apply(
            kind(object),
            WatchEvent::Apply(at(*version, object.clone())),
        ),
        Delete(at, kind, name) => apply(
            *kind,
            WatchEvent::Delete {
                key: Key::new(if *kind == Kind::Namespace { "" } else { "shop" }, name),
                version: version(at),
            },
        ),
        Progress(at, kind) => apply(
            *kind,
            WatchEvent::Progress {
                version: version(at),
            },
        ),
        List(end, kind, objects) => {
            apply(*kind, WatchEvent::Begin);
            for object in objects {
                apply(*kind, WatchEvent::Item(at(*end - 1, object.clone())));
            }
            let version = version(end);
            apply(*kind, WatchEvent::End { version });
        }
    }
    let _changes = world.settle();
}

/// The route, its backend and its generation.
fn to(backend: &str, port: u16, generation: u64) -> Value {
    let parents = json!([{"group": "", "kind": "Service", "name": "cart"}]);
    let rules = json!([{"backendRefs": [{"name": backend, "port": port}]}]);
    let mut route = route("shop", "r", parents, rules);
    route["metadata"]["generation"] = json!(generation);
    route
}

fn new(name: &str, ports: &[u16]) -> Value {
    let mut service = service("shop", name, "10.96.0.50", name, json!({}));
    let port =
        |port: &u16| json!({"name": format!("http-{port}"), "port": port, "targetPort": "web"});
    service["spec"]["ports"] = ports.iter().map(port).collect();
    service
}

/// Where the route leads; `500` for nowhere.
fn backends(world: &World) -> Vec<String> {
    let route = world.route(("shop", "gate"), "shop/r");
    let rules = route.into_iter().flat_map(|route| route.rules);
    let backends = rules.flat_map(|rule| rule.backends);
    let named = backends
        .filter_map(|backend| backend.to)
        .map(|to| match to {
            To::Service(to) => {
                let name = to.hostname.split('.').next().unwrap_or_default().to_owned();
                format!("{name}:{}", to.port)
            }
            To::Invalid(invalid) => invalid.status.to_string(),
        });
    named.collect()
}

/// Whether this replica takes itself to be as new as what it has told.
fn is_current(world: &World) -> bool {
    let positions = world.index.positions();
    positions.covers(&positions.token()) == Coverage::Covered
}

fn turns(world: &mut World, turns: usize) {
    for _ in 0..turns {
        let _changes = world.input(Input::Turn);
    }
}

/// Every way in which two watches, each in its order, may tell together.
fn interleavings(a: &[Event], b: &[Event]) -> Vec<Vec<Event>> {
    let (Some(first), Some(second)) = (a.first(), b.first()) else {
        return vec![[a, b].concat()];
    };
    let then = |event: &Event, rest: Vec<Vec<Event>>| {
        let event = event.clone();
        rest.into_iter()
            .map(move |rest| [vec![event.clone()], rest].concat())
            .collect::<Vec<_>>()
    };
    let mut all = then(first, interleavings(&a[1..], b));
    all.extend(then(second, interleavings(a, &b[1..])));
    all
}

#[test]
fn in_no_order_of_two_watches_does_a_route_lead_nowhere() {
    let stories: &[(&str, &[Event], &[Event])] = &[
        (
            "a backend comes",
            &[
                Apply(20, new("canary", &[80])),
                Apply(22, new("new", &[80])),
            ],
            &[Apply(21, to("canary", 80, 2)), Apply(23, to("new", 80, 3))],
        ),
        (
            "a backend goes, and another one",
            &[
                Apply(20, new("canary", &[80])),
                Delete(22, Kind::Service, "plain"),
                Apply(23, new("plain", &[80])),
                Delete(25, Kind::Service, "canary"),
            ],
            &[
                Apply(21, to("canary", 80, 2)),
                Apply(24, to("plain", 80, 3)),
            ],
        ),
        (
            "a port comes, and another goes",
            &[
                Apply(20, new("plain", &[80, 81])),
                Apply(22, new("plain", &[81])),
            ],
            &[Apply(21, to("plain", 81, 2))],
        ),
        (
            "a backend is replaced, and the watch of Services lists anew",
            &[
                Apply(20, new("canary", &[80])),
                List(24, Kind::Service, services(new("canary", &[80]))),
            ],
            &[Apply(21, to("canary", 80, 2))],
        ),
        (
            "routes are listed anew",
            &[
                Apply(20, new("canary", &[80])),
                Delete(25, Kind::Service, "plain"),
            ],
            &[List(22, Kind::HttpRoute, vec![to("canary", 80, 2)])],
        ),
    ];
    for (story, services, routes) in stories {
        let orders = interleavings(services, routes);
        assert!(orders.len() > 1);
        for order in orders {
            let mut world = world();
            for event in &order {
                tell(&mut world, event);
                let backends = backends(&world);
                assert_eq!(backends.len(), 1, "{story}: {event:?} of {order:?}");
                assert!(
                    backends.iter().all(|to| to != "500") && known(&world, &backends),
                    "{story}: {backends:?} after {event:?} of {order:?}"
                );
            }
            turns(&mut world, ALL_TURNS);
            let backends = backends(&world);
            assert!(
                !world.index.waits() && known(&world, &backends),
                "{story}: {backends:?} in the end of {order:?}"
            );
        }
    }
}

/// With one more.
fn services(other: Value) -> Vec<Value> {
    let [gate, ..] = waypoint("shop", "gate");
    vec![gate, bound_cart(), other]
}

fn bound_cart() -> Value {
    service("shop", "cart", "10.96.0.1", "cart", bound())
}

/// Whether proxies have what is named.
fn known(world: &World, backends: &[String]) -> bool {
    backends.iter().all(|to| {
        let (name, port) = to.split_once(':').expect("a port");
        let service = world.service("shop", name);
        service.is_some_and(|service| {
            let mut ports = service.ports.iter();
            ports.any(|has| has.service_port.to_string() == port)
        })
    })
}

#[test]
fn a_service_that_does_not_exist_is_waited_for_until_that_is_known() {
    for (happens, waits) in [
        (Progress(20, Kind::Service), true),
        (Progress(21, Kind::Service), false),
        // The next change of the route may be what that one was made for.
        (Apply(22, new("other", &[80])), true),
        (
            List(22, Kind::Service, services(new("plain", &[80]))),
            false,
        ),
        // A generation that can be followed.
        (Apply(22, to("cart", 80, 3)), false),
        // Another that cannot: the newest counts, and the first one's turns.
        (Apply(22, to("ghost", 80, 3)), true),
    ] {
        let mut world = world();
        tell(&mut world, &Apply(21, to("ghost", 80, 2)));
        assert_eq!(backends(&world), ["plain:80"]);
        tell(&mut world, &happens);
        assert_eq!(world.index.waits(), waits, "{happens:?}");
        let leads = match (&happens, waits) {
            (_, true) => "plain:80",
            (Apply(22, route), _) if kind(route) == Kind::HttpRoute => "cart:80",
            _ => "500",
        };
        assert_eq!(backends(&world), [leads], "{happens:?}");
    }
}

#[test]
fn nothing_waits_longer_than_two_turns() {
    let mut world = world();
    tell(&mut world, &Apply(21, to("ghost", 80, 2)));
    turns(&mut world, ALL_TURNS - 1);
    // A generation that follows has no turns of its own.
    tell(&mut world, &Apply(22, to("ghost", 81, 3)));
    assert!(world.index.waits());
    turns(&mut world, 1);
    assert_eq!(backends(&world), ["500"]);
    // A status that is written is no news.
    tell(&mut world, &Apply(23, to("ghost", 81, 3)));
    assert!(!world.index.waits());

    tell(&mut world, &Apply(24, to("plain", 80, 4)));
    tell(&mut world, &Delete(30, Kind::Service, "plain"));
    turns(&mut world, ALL_TURNS - 1);
    assert_eq!(backends(&world), ["plain:80"]);
    assert!(known(&world, &backends(&world)));
    turns(&mut world, 1);
    assert_eq!(backends(&world), ["500"]);
    assert!(world.service("shop", "plain").is_none());
}

#[test]
fn what_is_set_aside_may_be_overtaken() {
    // The route goes.
    let mut world = world();
    tell(&mut world, &Apply(21, to("ghost", 80, 2)));
    tell(&mut world, &Delete(22, Kind::HttpRoute, "r"));
    assert!(!world.index.waits() && backends(&world).is_empty());
    assert!(is_current(&world));
    tell(&mut world, &Apply(23, new("ghost", &[80])));
    assert!(backends(&world).is_empty());
    // The Service stays after all.
    let mut world = self::world();
    tell(&mut world, &Delete(30, Kind::Service, "plain"));
    assert!(!is_current(&world));
    tell(&mut world, &Apply(31, new("plain", &[80])));
    assert!(!world.index.waits() && is_current(&world));
    turns(&mut world, ALL_TURNS);
    assert_eq!(backends(&world), ["plain:80"]);
    // All of it before anything is computed.
    let mut world = World::new();
    for kind in [Kind::Namespace, Kind::Pod] {
        tell(&mut world, &Progress(10, kind));
    }
    for object in [
        at(21, pod("shop", "a", "10.0.0.1", json!({}))),
        at(20, namespace("shop", json!({}))),
        at(22, pod("shop", "a", "10.0.0.2", json!({}))),
    ] {
        let kind = kind(&object);
        world.index.apply(told(kind, WatchEvent::Apply(object)));
    }
    let _changes = world.settle();
    assert!(!world.index.waits() && is_current(&world));
    // A new generation that is refused leaves the accepted one that waits.
    let mut world = self::world();
    let mut refused = to("canary", 80, 3);
    refused["spec"]["rules"][0]["timeouts"] = json!({"request": "1s"});
    tell(&mut world, &Apply(21, to("canary", 80, 2)));
    tell(&mut world, &Apply(22, refused));
    assert_eq!(backends(&world), ["plain:80"]);
    tell(&mut world, &Apply(23, new("canary", &[80])));
    assert_eq!(backends(&world), ["canary:80"]);
}

#[test]
fn a_first_generation_is_not_told_before_its_service() {
    let mut world = shop();
    tell(&mut world, &Apply(21, to("canary", 80, 1)));
    assert!(backends(&world).is_empty());
    tell(&mut world, &Apply(20, new("canary", &[80])));
    assert_eq!(backends(&world), ["canary:80"]);
}

#[test]
fn what_is_set_aside_is_not_seen() {
    let mut world = world();
    let covers = |world: &World, token: &str| world.index.positions().covers(token);
    tell(&mut world, &Apply(21, to("ghost", 80, 2)));
    tell(&mut world, &Progress(40, Kind::HttpRoute));
    assert_eq!(covers(&world, "v1;httproutes=20"), Coverage::Covered);
    assert_eq!(covers(&world, "v1;httproutes=21"), Coverage::Behind);
    turns(&mut world, ALL_TURNS);
    assert_eq!(covers(&world, "v1;httproutes=40"), Coverage::Covered);
}

#[test]
fn a_pod_waits_for_its_namespace_and_a_namespace_for_its_pods() {
    let ambient = || namespace("shop", json!({"istio.io/dataplane-mode": "ambient"}));
    let pod = || pod("shop", "a", "10.0.0.1", json!({}));
    let known = |world: &World| {
        let enrolment = world.enrolment("n1", "a");
        (
            world.workload("Pod/shop/a").is_some(),
            enrolment.map(|enrolment| enrolment.capture()),
        )
    };
    let mut world = World::new();
    for kind in [Kind::Namespace, Kind::Pod] {
        tell(&mut world, &Progress(10, kind));
    }
    tell(&mut world, &Apply(21, pod()));
    assert_eq!(known(&world), (false, None));
    tell(&mut world, &Apply(20, ambient()));
    assert_eq!(known(&world), (true, Some(Capture::In)));
    // Its pods are gone, and their watch is late.
    tell(&mut world, &Delete(31, Kind::Namespace, "shop"));
    assert_eq!(known(&world), (true, Some(Capture::In)));
    tell(&mut world, &Delete(30, Kind::Pod, "a"));
    assert_eq!(known(&world), (false, None));
    assert!(!world.index.waits());

    // A namespace that nobody tells of: it is not guessed what its label says.
    let mut world = World::new();
    tell(&mut world, &Progress(10, Kind::Namespace));
    tell(&mut world, &Apply(21, pod()));
    turns(&mut world, ALL_TURNS);
    assert_eq!(known(&world), (true, None));
    let mut says = pod();
    says["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "ambient"});
    tell(&mut world, &Apply(22, says));
    turns(&mut world, ALL_TURNS);
    assert_eq!(known(&world), (true, Some(Capture::In)));
    tell(&mut world, &Apply(20, ambient()));
    tell(&mut world, &Apply(23, pod()));
    assert_eq!(known(&world), (true, Some(Capture::In)));
}

#[test]
fn what_is_set_aside_and_not_in_the_list_that_ends_meanwhile_is_gone() {
    let mut world = shop();
    for event in [
        // It is made, waits for its backend, and is deleted while nobody watches.
        Apply(22, to("canary", 80, 1)),
        List(24, Kind::HttpRoute, Vec::new()),
    ] {
        tell(&mut world, &event);
    }
    turns(&mut world, ALL_TURNS);
    assert!(backends(&world).is_empty(), "{:?}", backends(&world));
}

#[test]
fn what_is_set_aside_before_a_list_and_taken_in_during_it_is_gone_all_the_same() {
    let mut world = shop();
    tell(&mut world, &Apply(22, to("canary", 80, 1)));
    world.index.apply(told(Kind::HttpRoute, WatchEvent::Begin));
    turns(&mut world, ALL_TURNS);
    assert_eq!(backends(&world), ["500"], "taken in");
    let version = "24".to_owned();
    let end = WatchEvent::End { version };
    world.index.apply(told(Kind::HttpRoute, end));
    turns(&mut world, ALL_TURNS);
    assert!(backends(&world).is_empty(), "{:?}", backends(&world));
}

#[test]
fn nothing_waits_before_anything_was_told() {
    let mut index = controller::index::Index::new(support::settings::index());
    let apply = |object: Value| told(kind(&object), WatchEvent::Apply(object));
    index.apply(told(
        Kind::Service,
        WatchEvent::Progress {
            version: "10".to_owned(),
        },
    ));
    index.apply(apply(at(21, to("ghost", 80, 1))));
    let _all = index.settle();
    assert!(
        !index.waits(),
        "a proxy must never be told less than there is"
    );
    index.apply(apply(at(22, to("spirit", 80, 2))));
    let _changes = index.settle();
    assert!(index.waits());
}
