//! Streams against the real service: what each viewer sees, in which order, and at what bounds.

#[path = "support/server.rs"]
mod server;
#[path = "support/streams.rs"]
mod streams;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use controller::index::Input;
use controller::index::placement::NodeProxyRule;
use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::proto::node::EnrolmentReport;
use mesh::proto::workload::{Address, address};
use mesh::xds::{ADDRESS_TYPE, ENROLMENT_REPORT_TYPE, ENROLMENT_TYPE, ROUTE_TYPE};
use prost::Message;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Code;

use streams::{Controller, LONG, subscription};
use support::{World, bound, pod, route, service, settings};

const CART: &str = "shop/cart.shop.svc.cluster.local";
const OTHER: &str = "shop/other.shop.svc.cluster.local";
const GATE: &str = "shop/gate.shop.svc.cluster.local";

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

/// A route of `cart` that sends to a service.
fn to(backend: &str) -> Value {
    route(
        "shop",
        "r",
        json!([{"group": "", "kind": "Service", "name": "cart"}]),
        json!([{"backendRefs": [{"name": backend, "port": 80}]}]),
    )
}

#[tokio::test]
async fn a_waypoint_sees_what_is_bound_to_it_and_what_its_routes_name() {
    let mut controller = Controller::start().await;
    let app = |name: &str, ip: &str, app: &str| pod("shop", name, ip, json!({"app": app}));
    controller.apply([
        service("shop", "cart", "10.96.0.1", "cart", bound()),
        service("shop", "other", "10.96.0.2", "other", json!({})),
        app("cart-0", "10.0.0.1", "cart"),
        app("other-0", "10.0.0.2", "other"),
        app("client", "10.0.0.3", "client"),
    ]);
    let mut stream = controller.open("waypoint").await.expect("opened");
    stream.say(subscription(ADDRESS_TYPE)).await;
    let (_, names, _) = stream.names().await;
    let seen: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let cart_pod = "Kubernetes//Pod/shop/cart-0";
    let gate_pod = "Kubernetes//Pod/shop/gate-0";
    assert_eq!(seen, [CART, GATE, cart_pod, gate_pod].into());

    // A route brings its backend, with all that serve it.
    controller.apply([to("other")]);
    let (_, names, removed) = stream.names().await;
    assert_eq!(names, ["Kubernetes//Pod/shop/other-0", OTHER]);
    assert!(removed.is_empty());
    // Another endpoint of it comes and goes.
    controller.apply([app("other-1", "10.0.0.4", "other")]);
    assert_eq!(
        stream.names().await.1,
        strings(&["Kubernetes//Pod/shop/other-1"])
    );
    let mut ended = app("other-1", "10.0.0.4", "other");
    ended["status"]["phase"] = json!("Succeeded");
    controller.apply([ended, app("client-2", "10.0.0.5", "client")]);
    assert_eq!(
        stream.names().await.2,
        strings(&["Kubernetes//Pod/shop/other-1"])
    );
}

#[tokio::test]
async fn what_is_bound_no_longer_stays_known_for_a_while() {
    let mut controller = Controller::start().await;
    controller.apply([service("shop", "cart", "10.96.0.1", "cart", bound())]);
    let mut stream = controller.open("waypoint").await.expect("opened");
    stream.say(subscription(ADDRESS_TYPE)).await;
    stream.next().await;
    controller.apply([service("shop", "cart", "10.96.0.1", "cart", json!({}))]);
    let response = stream.next().await;
    assert!(response.removed_resources.is_empty(), "{response:?}");
    let resource = &response.resources[0];
    assert_eq!(resource.name, CART);
    let any = prost_types::Any::decode(resource.resource.clone()).expect("an Any");
    let address = Address::decode(&*any.value).expect("an Address");
    let Some(address::Type::Service(service)) = address.r#type else {
        panic!("{address:?}")
    };
    assert_eq!(service.waypoint, None, "it must learn that it is not bound");
}

#[tokio::test]
async fn a_waypoint_asks_for_an_address_and_gives_it_up() {
    let mut controller = Controller::start().await;
    controller.apply([
        service("shop", "cart", "10.96.0.1", "cart", bound()),
        pod("shop", "client", "10.0.0.3", json!({})),
    ]);
    let mut stream = controller.open("waypoint").await.expect("opened");
    stream.say(subscription(ADDRESS_TYPE)).await;
    stream.next().await;
    let client = "Kubernetes//Pod/shop/client";
    let ask = |names: &[&str]| DeltaDiscoveryRequest {
        resource_names_subscribe: strings(names),
        ..subscription(ADDRESS_TYPE)
    };
    stream.say(ask(&["/10.0.0.3", "/10.0.0.4"])).await;
    let (_, names, removed) = stream.names().await;
    assert_eq!(names, [client]);
    assert_eq!(removed, ["/10.0.0.4"], "nobody has it");
    // It is somebody's now; and of others nothing is told.
    controller.apply([
        pod("shop", "late", "10.0.0.4", json!({})),
        pod("shop", "unasked", "10.0.0.5", json!({})),
    ]);
    assert_eq!(
        stream.names().await.1,
        strings(&["Kubernetes//Pod/shop/late"])
    );
    let mut give_up = subscription(ADDRESS_TYPE);
    give_up.resource_names_unsubscribe = strings(&["/10.0.0.3"]);
    stream.say(give_up).await;
    assert_eq!(stream.names().await.2, strings(&[client]));
    // An address of the scope that was asked for as well stays when it is given up.
    stream.say(ask(&["/10.244.9.9"])).await;
    let mut give_up = subscription(ADDRESS_TYPE);
    give_up.resource_names_unsubscribe = strings(&["/10.244.9.9", "/10.0.0.4"]);
    stream.say(give_up).await;
    assert_eq!(
        stream.names().await.2,
        strings(&["Kubernetes//Pod/shop/late"])
    );
}

#[tokio::test]
async fn a_waypoint_asks_for_addresses_of_the_network_that_the_mesh_is_in() {
    let mut controller = Controller::in_network("east").await;
    controller.apply([pod("shop", "client", "10.0.0.3", json!({}))]);
    let mut stream = controller.open("waypoint").await.expect("opened");
    stream.say(subscription(ADDRESS_TYPE)).await;
    stream.next().await;
    // Of another network.
    controller.world = World::in_network("west");
    controller.apply([
        pod("shop", "western", "10.0.0.4", json!({})),
        service("shop", "western", "10.96.0.1", "western", json!({})),
    ]);
    let ask = |name: &str| DeltaDiscoveryRequest {
        resource_names_subscribe: strings(&[name]),
        ..subscription(ADDRESS_TYPE)
    };
    let nobodys = [
        "/10.0.0.3",
        "west/10.0.0.3",
        "east/10.0.0.4",
        "east/10.96.0.1",
    ];
    for name in nobodys {
        stream.say(ask(name)).await;
        let (_, names, removed) = stream.names().await;
        assert!(names.is_empty(), "{names:?}");
        assert_eq!(removed, [name]);
    }
    stream.say(ask("east/10.0.0.3")).await;
    let client = strings(&["Kubernetes//Pod/shop/client"]);
    assert_eq!(stream.names().await.1, client);
    let mut give_up = subscription(ADDRESS_TYPE);
    give_up.resource_names_unsubscribe = strings(&["east/10.0.0.3"]);
    stream.say(give_up).await;
    assert_eq!(stream.names().await.2, client);
}

#[tokio::test]
async fn a_service_comes_before_the_route_that_names_it_and_goes_after_it() {
    let mut controller = Controller::start().await;
    controller.apply([service("shop", "cart", "10.96.0.1", "cart", bound())]);
    let mut stream = controller.open("waypoint").await.expect("opened");
    for type_url in [ROUTE_TYPE, ADDRESS_TYPE] {
        stream.say(subscription(type_url)).await;
        stream.next().await;
    }
    let kinds = |said: &[(String, Vec<String>, Vec<String>)]| -> Vec<String> {
        said.iter().map(|(kind, ..)| kind.clone()).collect()
    };
    controller.apply([
        service("shop", "other", "10.96.0.2", "other", json!({})),
        to("other"),
    ]);
    let said = [stream.names().await, stream.names().await];
    assert_eq!(kinds(&said), ["Address", "Route"]);
    // The other way: the route goes with the service that it was attached to.
    controller.apply([service("shop", "cart", "10.96.0.1", "cart", json!({}))]);
    let said = [stream.names().await, stream.names().await];
    assert_eq!(kinds(&said), ["Address", "Route"]);
    assert!(said[0].2.is_empty(), "{said:?}");
    assert_eq!(said[1].2, ["shop/r"]);
}

#[tokio::test]
async fn a_replica_that_is_behind_takes_nothing_back() {
    let mut controller = Controller::start().await;
    controller.apply([pod("shop", "known", "10.0.0.1", json!({}))]);
    controller.seen("90");
    let mut stream = controller.open("ztunnel").await.expect("opened");
    let mut resume = subscription(ENROLMENT_TYPE);
    resume.known_as_of = "v1;pods=100".to_owned();
    for (name, version) in [
        ("newer", "00000000000000aa"),
        ("known", "00000000000000bb"),
        ("zt1", "00000000000000cc"),
    ] {
        let versions = &mut resume.initial_resource_versions;
        versions.insert(name.to_owned(), version.to_owned());
    }
    stream.say(resume).await;
    let first = stream.next().await;
    assert!(first.removed_resources.is_empty(), "{first:?}");
    let names: Vec<&str> = first.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(
        names,
        ["gate-0"],
        "news, and nothing older than what it has"
    );
    assert_eq!(
        first.system_version_info, "v1;pods=100",
        "it keeps what it came with"
    );
    controller.apply([pod("shop", "new", "10.0.0.2", json!({}))]);
    assert_eq!(
        stream.names().await,
        ("Enrolment".to_owned(), strings(&["new"]), vec![])
    );
    controller.seen("100");
    let caught_up = stream.next().await;
    assert_eq!(caught_up.removed_resources, ["newer"]);
    assert_eq!(caught_up.resources.len(), 2, "known and zt1 as they are");
    assert_eq!(caught_up.system_version_info, "v1;pods=100");
}

#[tokio::test]
async fn a_proxy_that_does_not_say_what_it_knows_loses_nothing_at_first() {
    let mut controller = Controller::start().await;
    let mut stream = controller.open("ztunnel").await.expect("opened");
    let mut resume = subscription(ENROLMENT_TYPE);
    let versions = &mut resume.initial_resource_versions;
    versions.insert("newer".to_owned(), "v".to_owned());
    versions.insert("zt1".to_owned(), "v".to_owned());
    stream.say(resume).await;
    let names = stream.names().await;
    assert_eq!(names.1, ["gate-0", "zt1"], "updates flow");
    assert!(names.2.is_empty(), "{names:?}");
    // What was seen here and went is gone.
    controller.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    assert_eq!(stream.names().await.1, ["a"]);
    let mut ended = pod("shop", "a", "10.0.0.1", json!({}));
    ended["status"]["phase"] = json!("Succeeded");
    controller.apply([ended]);
    assert_eq!(stream.names().await.2, ["a"]);
}

/// Reports of so many pods.
fn reports(count: usize) -> DeltaDiscoveryRequest {
    let report = |number: usize| EnrolmentReport {
        uid: format!("p{number}"),
        ..EnrolmentReport::default()
    };
    let any = |report: EnrolmentReport| prost_types::Any {
        type_url: ENROLMENT_REPORT_TYPE.to_owned(),
        value: report.encode_to_vec(),
    };
    DeltaDiscoveryRequest {
        reports: (0..count).map(report).map(any).collect(),
        ..subscription(ENROLMENT_TYPE)
    }
}

#[tokio::test]
async fn a_node_that_reconnects_speaks_no_faster() {
    let mut controller = Controller::start().await;
    let began = Instant::now();
    let mut told: u32 = 0;
    let first = controller.open("ztunnel").await.expect("opened");
    first.say(reports(1100)).await;
    while told < 1024 {
        let input = timeout(LONG, controller.told.recv()).await;
        let input = input.expect("in time").expect("it listens");
        told += u32::from(matches!(input, Input::Report { .. }));
    }
    drop(first);
    let again = controller.open("ztunnel").await.expect("opened");
    again.say(reports(1100)).await;
    let next = timeout(LONG, controller.told.recv()).await;
    assert!(next.is_ok(), "it speaks on");
    told += 1;
    let listened = Instant::now() + Duration::from_secs(1);
    while let Ok(Some(input)) = timeout_at(listened, controller.told.recv()).await {
        told += u32::from(matches!(input, Input::Report { .. }));
    }
    // The burst once, and then the rate.
    let rate = 50.0 * began.elapsed().as_secs_f64();
    let beyond = told - 1024;
    assert!(
        f64::from(beyond) <= rate + 1.0,
        "{beyond} instead of {rate}"
    );
}

#[tokio::test]
async fn nobody_says_that_it_has_more_than_there_is() {
    let controller = Controller::start().await;
    let mut stream = controller.open("waypoint").await.expect("opened");
    let mut resume = subscription(ADDRESS_TYPE);
    // Its scope is two, the mesh four: a waypoint of the first release may come with all of them.
    let versions = (0..6000).map(|at| (format!("n{at}"), "v".to_owned()));
    resume.initial_resource_versions = versions.collect();
    stream.say(resume).await;
    let status = stream.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status
            .message()
            .contains("6000 resources that the client says it has"),
        "{status}"
    );
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_by_its_length() {
    let controller = Controller::start().await;
    let mut stream = controller.open("ztunnel").await.expect("opened");
    let mut long = subscription(ADDRESS_TYPE);
    long.resource_names_subscribe = vec!["x".repeat(2 << 20)];
    stream.say(long).await;
    let status = stream.end().await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

#[tokio::test]
async fn a_type_that_nobody_serves_is_empty_and_makes_no_series() {
    let controller = Controller::start().await;
    let mut stream = controller.open("ztunnel").await.expect("opened");
    for made_up in ["type.googleapis.com/istio.made.Up", "x"] {
        stream.say(subscription(made_up)).await;
        let response = stream.next().await;
        assert_eq!(response.type_url, made_up);
        assert!(response.resources.is_empty());
    }
    stream.say(subscription(ENROLMENT_TYPE)).await;
    stream.next().await;
    let text = controller.metrics();
    assert!(text.contains("type=\"other\"} 2"), "{text}");
    assert!(!text.contains("made"), "{text}");
    let long = subscription(&"t".repeat(300));
    stream.say(long).await;
    assert_eq!(stream.end().await.code(), Code::InvalidArgument);
}

/// The index takes nothing for a while: what a node has to say waits, and what it is told does not.
#[tokio::test]
async fn a_node_that_has_something_to_report_is_told_things_while_the_index_is_full() {
    let mut controller = Controller::start().await;
    while controller.index.try_send(Input::Leave).is_ok() {}
    let mut stream = controller.open("ztunnel").await.expect("opened");
    let report = EnrolmentReport {
        uid: "a".to_owned(),
        ..EnrolmentReport::default()
    };
    let report = prost_types::Any {
        type_url: ENROLMENT_REPORT_TYPE.to_owned(),
        value: report.encode_to_vec(),
    };
    stream.say(subscription(ENROLMENT_TYPE)).await;
    stream.next().await;
    stream
        .say(DeltaDiscoveryRequest {
            reports: vec![report],
            ..subscription(ENROLMENT_TYPE)
        })
        .await;
    // Requests are answered, and so the report has been taken in.
    stream.say(subscription(ADDRESS_TYPE)).await;
    assert!(stream.next().await.type_url == ADDRESS_TYPE);
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        controller.apply([pod("shop", name, ip, json!({}))]);
        let both = [stream.names().await, stream.names().await];
        let enrolled = both.iter().find(|(kind, ..)| kind == "Enrolment");
        assert_eq!(enrolled.expect("told").1, [name]);
    }
    // And it is not lost.
    loop {
        let told = timeout(LONG, controller.told.recv()).await.expect("told");
        match told.expect("it lives") {
            Input::Leave => {}
            Input::Report { node, report } => {
                assert_eq!((&*node, &*report.uid), ("n1", "a"));
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_has_sixteen_types_at_most() {
    let controller = Controller::start().await;
    let mut stream = controller.open("ztunnel").await.expect("opened");
    for at in 0..16 {
        stream.say(subscription(&format!("type-{at}"))).await;
        stream.next().await;
    }
    stream.say(subscription("one-more")).await;
    let status = stream.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("16 "), "{status}");
}

/// A waypoint asks for the addresses of its clients, a node for whatever its pods may need.
#[tokio::test]
async fn a_stream_asks_for_so_many_names_at_most() {
    let controller = Controller::start().await;
    for (token, most) in [("waypoint", 4096), ("ztunnel", 65_536)] {
        let ask = |count: usize| DeltaDiscoveryRequest {
            resource_names_subscribe: (0..count).map(|at| format!("{at:x}")).collect(),
            ..subscription(ADDRESS_TYPE)
        };
        let mut stream = controller.open(token).await.expect("opened");
        stream.say(ask(most)).await;
        stream.next().await;
        stream.say(ask(most + 1)).await;
        let status = stream.end().await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{token}: {status}");
        let words = format!("more than {most} names");
        assert!(status.message().contains(&words), "{token}: {status}");
    }
}

/// Who was named in `TRUSTED_NODE_PROXIES`, with an owner and without.
#[tokio::test]
async fn a_node_proxy_of_others_is_one_exactly_if_a_rule_says_so() {
    let theirs = |name: &str, namespace: &str, account: &str, owner: &str| {
        let mut pod = pod(namespace, name, "10.0.9.7", json!({}));
        pod["spec"]["serviceAccountName"] = json!(account);
        pod["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": owner, "uid": owner, "controller": true},
        ]);
        pod
    };
    let rule = |text: &str| -> NodeProxyRule { text.parse().expect("a rule") };
    let mut settings = settings::index();
    let ours = settings.node_proxies.clone();
    settings.node_proxies = [
        rule("istio-system/ztunnel"),
        rule("agents/proxy/DaemonSet/node"),
    ]
    .into_iter()
    .chain(ours)
    .collect();
    let mut controller = Controller::with(World::with(settings)).await;
    for (name, namespace, account, owner, is_one) in [
        ("any-owner", "istio-system", "ztunnel", "whoever", true),
        ("right-owner", "agents", "proxy", "node", true),
        ("other-owner", "agents", "proxy", "another", false),
        ("other-account", "istio-system", "default", "ztunnel", false),
        ("other-namespace", "shop", "ztunnel", "ztunnel", false),
    ] {
        controller.apply([theirs(name, namespace, account, owner)]);
        controller.tokens.give(name, namespace, account, name);
        let opened = controller.open(name).await;
        assert_eq!(opened.is_ok(), is_one, "{name}");
        let Ok(mut stream) = opened else { continue };
        stream.say(subscription(ENROLMENT_TYPE)).await;
        stream.next().await;
    }
}
