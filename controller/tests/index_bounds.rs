//! What a tenant writes is bounded where it is multiplied by pods and told to every proxy: ports, Services of one pod,
//! EndpointSlices at one address. Whoever passes a bound is told, and nobody else has less.

#[path = "support/addresses.rs"]
mod addresses;
mod support;

use controller::index::changes::Kind;
use mesh::proto::workload::Workload;
use serde_json::{Value, json};

use addresses::slice;
use support::{World, bound, namespace, pod, route, service, shop};

/// So many ports, told apart by name and number.
fn ports(count: usize) -> Value {
    (1..=count)
        .map(|n| json!({"name": format!("p{n}"), "port": n, "targetPort": 8080}))
        .collect()
}

/// A Service of the pods of `cart`, with so many ports.
fn wide(name: &str, count: usize) -> Value {
    let mut wide = service("shop", name, "10.96.0.1", "cart", json!({}));
    wide["spec"]["ports"] = ports(count);
    wide
}

/// A Service whose endpoints somebody else writes, and a slice of it that lists one address.
fn listing(namespace: &str, name: &str, address: &str, count: usize) -> [Value; 2] {
    let mut manual = service(namespace, name, "None", "-", json!({}));
    manual["spec"]["clusterIPs"] = json!(["None"]);
    manual["spec"]["selector"] = json!(null);
    manual["spec"]["ports"] = ports(count);
    let mut slice = slice(namespace, name, &[address]);
    slice["ports"] = ports(count);
    [manual, slice]
}

fn name(number: usize) -> String {
    format!("s{number:03}")
}

/// The Services that the pod `a` of `shop` stands behind, as `namespace/name`.
fn behind(world: &World) -> Vec<String> {
    let workload = a(world);
    let hosts = workload.services.keys();
    let named = hosts.map(|host| host.split('.').next().unwrap_or_default().to_owned());
    named.collect()
}

fn a(world: &World) -> Workload {
    world.workload("Pod/shop/a").expect("known")
}

fn names(namespace: &str, numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let names = numbers.into_iter().map(name);
    names.map(|name| format!("{namespace}/{name}")).collect()
}

#[test]
fn a_service_has_endpoints_at_all_of_its_ports_or_at_none() {
    for (count, known) in [(0, 0), (1, 1), (256, 256), (257, 0), (20_000, 0)] {
        let mut world = World::new();
        let mut both = wide("cart", count);
        // What is not TCP is not the mesh's, however much it is.
        let udp = (1..1000).map(|n| json!({"name": format!("u{n}"), "port": n, "protocol": "UDP"}));
        let list = both["spec"]["ports"].as_array_mut().expect("ports");
        list.extend(udp);
        world.apply([both, pod("shop", "a", "10.0.0.1", json!({"app": "cart"}))]);
        let service = world.service("shop", "cart").expect("known");
        // Who dials one is refused, at each address: proxies know the port, and nobody behind it.
        assert_eq!(service.ports.len(), count, "{count}");
        assert_eq!(service.addresses.len(), 1, "{count}");
        let workload = a(&world);
        let served = &workload.services["shop/cart.shop.svc.cluster.local"];
        assert_eq!(served.ports.len(), known, "{count}");
        let events = world.events();
        if count == known {
            assert!(events.is_empty(), "{events:?}");
        } else {
            assert_eq!(
                events,
                [format!(
                    "Service shop/cart TooManyPorts: Service shop/cart has {count} TCP ports: one that has more than 256 has no endpoints in the mesh, where connections to it are refused"
                )]
            );
        }
        world.apply([wide("cart", 2)]);
        assert_eq!(world.service("shop", "cart").expect("known").ports.len(), 2);
        assert!(world.events().is_empty(), "{:?}", world.events());
    }
}

#[test]
fn a_service_with_too_many_ports_has_neither_waypoint_nor_routes_and_says_so() {
    let mut world = shop();
    let parents = json!([{"group": "", "kind": "Service", "name": "cart"}]);
    let rules = json!([{"backendRefs": [{"name": "cart", "port": 80}]}]);
    let changes = world.apply([route("shop", "r", parents, rules)]);
    world.write(changes);
    assert_eq!(world.parent("shop", "r", 0, "Accepted"), "True Accepted");
    let mut many = service("shop", "cart", "10.96.0.1", "cart", bound());
    many["spec"]["ports"] = ports(257);
    let changes = world.apply([many]);
    world.write(changes);
    let said =
        |world: &World| world.condition(Kind::Service, "shop", "cart", "istio.io/WaypointBound");
    assert_eq!(said(&world), "False TooManyPorts");
    assert_eq!(
        world.parent("shop", "r", 0, "Accepted"),
        "False NoMatchingParent"
    );
    assert!(world.route(("shop", "gate"), "shop/r").is_none());
    let cart = world.service("shop", "cart").expect("known");
    assert!(cart.waypoint.is_none());
    assert_eq!(cart.ports.len(), 257);
    // The pod of the waypoint's own Service and everybody else are as before.
    let changes = world.apply([service("shop", "cart", "10.96.0.1", "cart", bound())]);
    world.write(changes);
    assert_eq!(said(&world), "True WaypointAccepted");
    assert_eq!(world.parent("shop", "r", 0, "Accepted"), "True Accepted");
}

#[test]
fn a_pod_stands_behind_a_bounded_number_of_services_the_first_by_name() {
    let one = pod(
        "shop",
        "a",
        "10.0.0.1",
        json!({"app": "cart", "tier": "web"}),
    );
    let numbered = |number: usize| {
        let mut service = wide(&name(number), 1);
        // By either label, or by both.
        service["spec"]["selector"] = match number % 3 {
            0 => json!({"app": "cart"}),
            1 => json!({"tier": "web"}),
            _ => json!({"app": "cart", "tier": "web"}),
        };
        service
    };
    let mut orders = [World::new(), World::new()];
    let [world, backwards] = &mut orders;
    world.apply([one.clone()]);
    for number in 0..200 {
        world.apply([numbered(number)]);
        backwards.apply([numbered(199 - number)]);
    }
    backwards.apply([one]);
    for world in &mut orders {
        assert_eq!(behind(world), names("shop", 0..128));
        assert_eq!(
            world.events(),
            [
                "Pod shop/a TooManyServices: in the mesh a pod stands behind at most 128 Services that select it, with together 512 ports, the first by name: Service shop/s128 and those after it do not lead to this pod"
            ]
        );
        // Who goes, or selects it no more, makes room for the next.
        world.delete(Kind::Service, "shop", &name(5));
        world.apply([service("shop", &name(7), "10.96.0.1", "other", json!({}))]);
        let left = (0..130).filter(|number| ![5, 7].contains(number));
        assert_eq!(behind(world), names("shop", left));
        // Another pod has its own.
        world.apply([
            service("shop", "zoo", "10.96.0.2", "zoo", json!({})),
            pod("shop", "z", "10.0.0.2", json!({"app": "zoo"})),
        ]);
        let other = world.workload("Pod/shop/z").expect("known");
        assert_eq!(other.services.len(), 1);
        for number in 100..200 {
            world.delete(Kind::Service, "shop", &name(number));
        }
        assert!(world.events().is_empty(), "{:?}", world.events());
    }
}

#[test]
fn the_services_of_a_pod_have_a_bounded_number_of_ports_each_all_or_none() {
    for (counts, expected) in [
        (&[256, 256][..], 2),
        (&[256, 256, 1], 2),
        (&[256, 255, 1], 3),
        (&[256, 200, 57, 1], 2),
        // One that has none anyway takes no room.
        (&[257, 256, 256], 3),
    ] {
        let mut world = World::new();
        world.apply([pod("shop", "a", "10.0.0.1", json!({"app": "cart"}))]);
        for (number, count) in counts.iter().enumerate().rev() {
            world.apply([wide(&name(number), *count)]);
        }
        assert_eq!(behind(&world), names("shop", 0..expected), "{counts:?}");
        let told = world.events();
        let told = told
            .iter()
            .filter(|event| event.contains("TooManyServices"));
        assert_eq!(told.count(), usize::from(expected < counts.len()));
    }
}

#[test]
fn of_each_namespace_a_bounded_number_of_slices_counts_at_an_address() {
    let one = pod("shop", "a", "10.0.0.1", json!({}));
    let [mut forwards, mut backwards] = [World::new(), World::new()];
    forwards.apply([one.clone(), namespace("evil", json!({}))]);
    let crowd = |number: usize| listing("evil", &name(number), "10.0.0.1", 1);
    for number in 0..100 {
        forwards.apply(crowd(number));
        let [service, slice] = crowd(99 - number);
        backwards.apply([slice, service]);
    }
    let quiet = listing("till", "quiet", "10.0.0.1", 2);
    forwards.apply(quiet.clone());
    backwards.apply(quiet);
    backwards.apply([one]);
    let with_quiet = |numbers: Vec<usize>| {
        let mut all = names("evil", numbers);
        all.push("till/quiet".to_owned());
        all
    };
    for world in [&mut forwards, &mut backwards] {
        assert_eq!(behind(world), with_quiet((0..32).collect()));
        let events = world.events();
        assert_eq!(events.len(), 68, "{events:?}");
        assert_eq!(
            events[0],
            "EndpointSlice evil/s032-1 TooManySlices: at one address at most 32 EndpointSlices of a namespace count, with together 256 ports, the first by name: not known to the mesh are of this one: 1"
        );
        // A slice goes, a Service goes, a Service becomes another's name: each makes room for the next.
        world.delete(Kind::EndpointSlice, "evil", "s003-1");
        world.delete(Kind::Service, "evil", "s004");
        let mut alias = service("evil", "s005", "10.96.0.5", "-", json!({}));
        alias["spec"] = json!({"type": "ExternalName", "externalName": "example.com"});
        world.apply([alias]);
        let left = (0..35).filter(|number| !(3..6).contains(number));
        assert_eq!(behind(world), with_quiet(left.collect()));
        assert_eq!(world.events().len(), 65);
        let [service, _] = crowd(5);
        world.apply([service]);
        let left = (0..34).filter(|number| !(3..5).contains(number));
        assert_eq!(behind(world), with_quiet(left.collect()));
        // What goes elsewhere leaves its place, too.
        world.apply(listing("evil", "s000", "203.0.113.1", 1));
        let left = (1..35).filter(|number| !(3..5).contains(number));
        assert_eq!(behind(world), with_quiet(left.collect()));
    }
}

#[test]
fn the_slices_of_a_namespace_at_an_address_have_a_bounded_number_of_ports() {
    for (counts, expected) in [
        (&[256][..], 1),
        (&[256, 1], 1),
        (&[200, 56], 2),
        (&[200, 57, 1], 1),
        (&[257, 1], 0),
    ] {
        let mut world = World::new();
        world.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
        for (number, count) in counts.iter().enumerate().rev() {
            world.apply(listing("evil", &name(number), "10.0.0.1", *count));
            // Where nobody is a slice brings a workload of its own, by the same rule.
            world.apply(listing("bad", &name(number), "203.0.113.1", *count));
        }
        assert_eq!(behind(&world), names("evil", 0..expected), "{counts:?}");
        for number in 0..counts.len() {
            let uid = format!(
                "discovery.k8s.io/EndpointSlice/bad/{}-1/203.0.113.1",
                name(number)
            );
            assert_eq!(world.workload(&uid).is_some(), number < expected, "{uid}");
        }
    }
}

#[test]
fn an_endpoint_has_the_address_that_kube_proxy_looks_at_and_no_other() {
    let [service, mut slice] = listing("shop", "db", "203.0.113.1", 1);
    slice["endpoints"][0]["addresses"] = json!(["203.0.113.1", "203.0.113.2"]);
    let mut world = World::new();
    world.apply([service, slice]);
    let uid = |ip: &str| format!("discovery.k8s.io/EndpointSlice/shop/db-1/{ip}");
    assert!(world.workload(&uid("203.0.113.1")).is_some());
    assert!(world.workload(&uid("203.0.113.2")).is_none());
}
