//! Streams that go from one controller to another that knows less.

#[path = "support/replicas.rs"]
mod replicas;

use std::collections::{BTreeMap, BTreeSet};

use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use mesh::proto::node::EnrolledNamespace;
use mesh::xds::session::{ControllerSession, Deltas, Hold, Limits, Offer, ProxySession};
use mesh::xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE as TYPE, ROUTE_TYPE, View};
use prost::Message;

use replicas::{ALL, Proxy, encoded, offer, settle, view};

#[test]
fn a_hold_lets_updates_flow_and_ends() {
    for hold in [Hold::Unseen, Hold::Removals] {
        let mut proxy = Proxy::new(&[TYPE]);
        let mut controller = proxy.connect();
        let knows = view(TYPE, &[("a", 1), ("b", 1), ("c", 1)]);
        settle(&mut controller, &mut proxy, &knows, Hold::Nothing);

        let mut controller = proxy.connect();
        assert!(controller.resumed(TYPE));
        assert_eq!(controller.known_as_of(TYPE), Some("as of now"));
        let lags = view(TYPE, &[("a", 2), ("d", 1)]);
        let told = settle(&mut controller, &mut proxy, &lags, hold);
        assert_eq!(told, ["+a", "+d"]);
        assert_eq!(proxy.names(TYPE), ["a", "b", "c", "d"]);
        assert!(!controller.settled(TYPE, &offer(&lags, Hold::Nothing)));
        // It comes to know b, as the proxy has it; c it never knew.
        let knows = view(TYPE, &[("a", 2), ("b", 1), ("d", 1)]);
        assert!(settle(&mut controller, &mut proxy, &knows, hold).is_empty());
        let told = settle(&mut controller, &mut proxy, &knows, Hold::Nothing);
        assert_eq!(told, ["-c"]);
        assert!(controller.settled(TYPE, &offer(&knows, Hold::Nothing)));
    }
}

#[test]
fn what_a_controller_saw_go_is_not_held_with_what_it_never_saw() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    let knows = view(TYPE, &[("seen", 1), ("unseen", 1)]);
    settle(&mut controller, &mut proxy, &knows, Hold::Nothing);

    let mut controller = proxy.connect();
    let lags = view(TYPE, &[("seen", 1)]);
    assert!(settle(&mut controller, &mut proxy, &lags, Hold::Unseen).is_empty());
    let gone = View::default();
    assert!(settle(&mut controller, &mut proxy, &gone, Hold::Removals).is_empty());
    let told = settle(&mut controller, &mut proxy, &gone, Hold::Unseen);
    assert_eq!(told, ["-seen"]);
    let told = settle(&mut controller, &mut proxy, &gone, Hold::Nothing);
    assert_eq!(told, ["-unseen"]);
}

#[test]
fn a_hold_of_what_is_known_lets_only_news_flow() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    let knows = view(TYPE, &[("a", 2), ("b", 2)]);
    settle(&mut controller, &mut proxy, &knows, Hold::Nothing);

    let mut controller = proxy.connect();
    let lags = view(TYPE, &[("a", 1), ("new", 1)]);
    let told = settle(&mut controller, &mut proxy, &lags, Hold::Known);
    assert_eq!(told, ["+new"]);
    // Changes of what it held are held, until nothing is: then only what differs is said.
    let caught_up = view(TYPE, &[("a", 2), ("b", 3), ("new", 1)]);
    assert!(settle(&mut controller, &mut proxy, &caught_up, Hold::Known).is_empty());
    let told = settle(&mut controller, &mut proxy, &caught_up, Hold::Removals);
    assert_eq!(told, ["+b"]);
    assert!(settle(&mut controller, &mut proxy, &caught_up, Hold::Nothing).is_empty());
}

#[test]
fn what_waits_for_its_turn_is_known_already() {
    let mut proxy = Proxy::new(&[ADDRESS_TYPE, ROUTE_TYPE]);
    let mut controller = proxy.connect();
    let offer = |of: &str, known_as_of: &str, values: &[(&str, u32)]| Offer {
        view: view(of, values),
        known_as_of: known_as_of.into(),
        hold: Hold::Nothing,
    };
    let then = |of: &str| match of {
        ADDRESS_TYPE => offer(of, "then", &[("s1", 1)]),
        _ => offer(of, "then", &[("r1", 1)]),
    };
    while let Some(push) = controller.next(then, ALL) {
        let answer = proxy.take(push.to_response().expect("it can be read"));
        controller.on_request(&answer).expect("an answer");
    }
    // Removals of addresses wait for the routes: what is new goes out, and whoever has it knows of it.
    let now = |of: &str| match of {
        ADDRESS_TYPE => offer(of, "now", &[("s1", 2)]),
        _ => offer(of, "now", &[("r1", 2)]),
    };
    let push = controller.next(now, ALL).expect("s1");
    assert_eq!(&*push.type_url, ADDRESS_TYPE);
    proxy.take(push.to_response().expect("it can be read"));
    let opening = proxy.session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "now");
}

#[test]
fn half_a_state_is_known_as_of_the_whole() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    let knows = view(TYPE, &[("a", 1), ("b", 1)]);
    let push = controller.changes(TYPE, &offer(&knows, Hold::Nothing), 1);
    let response = push.expect("a").to_response().expect("it can be read");
    assert_eq!(response.system_version_info, "more");
    proxy.take(response);
    assert!(!proxy.session.synced());
    let opening = proxy.session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "as of now");
}

/// What proxies of e5a689c do with a response, and what their requests look like.
#[test]
fn proxies_of_the_first_release_are_served() {
    let old_request = DeltaDiscoveryRequest {
        type_url: TYPE.to_owned(),
        initial_resource_versions: [("a".to_owned(), encoded(TYPE, 1).version().to_string())]
            .into(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut controller = ControllerSession::new();
    controller.on_request(&old_request).expect("a subscription");
    assert_eq!(controller.known_as_of(TYPE), None);
    assert!(controller.resumed(TYPE));
    let now = view(TYPE, &[("a", 1), ("b", 1), ("c", 1)]);
    let first = controller.changes(TYPE, &offer(&now, Hold::Removals), 1);
    let first = first.expect("b").to_response().expect("it can be read");
    // They compare with this word, and take anything else for the last response of a state.
    assert_eq!(first.system_version_info, "more");
    assert_eq!(first.resources.len(), 1);
    let ack = DeltaDiscoveryRequest {
        type_url: TYPE.to_owned(),
        response_nonce: first.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    controller.on_request(&ack).expect("an ack");
    let last = controller.changes(TYPE, &offer(&now, Hold::Removals), 1);
    let last = last.expect("c").to_response().expect("it can be read");
    assert_ne!(last.system_version_info, "more");
}

/// What controllers of e5a689c, and those of others, answer.
#[test]
fn controllers_of_the_first_release_are_understood() {
    let any = prost_types::Any {
        type_url: TYPE.to_owned(),
        value: EnrolledNamespace::default().encode_to_vec(),
    };
    let response = |info: &str, name: &str, version: &str| DeltaDiscoveryResponse {
        system_version_info: info.to_owned(),
        type_url: TYPE.to_owned(),
        nonce: "1".to_owned(),
        resources: vec![Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            resource: any.encode_to_vec().into(),
            aliases: Vec::new(),
        }],
        ..DeltaDiscoveryResponse::default()
    };
    let mut session = ProxySession::new([TYPE]);
    let _ = session.on_response(response("more", "a", "00000000000000aa"), |_| Ok(()));
    assert!(!session.synced());
    let _ = session.on_response(response("", "b", "2026-11-26T00:00:00Z/7"), |_| Ok(()));
    assert!(session.synced());
    let opening = session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "");
    let versions: BTreeMap<_, _> = opening.initial_resource_versions.into_iter().collect();
    // As they were written, or the other side would send them again.
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let expected = [
        pair("a", "00000000000000aa"),
        pair("b", "2026-11-26T00:00:00Z/7"),
    ];
    assert_eq!(versions, BTreeMap::from(expected));
}

#[test]
fn streams_that_have_the_same_share_what_is_encoded() {
    let deltas = Deltas::new();
    let mut streams: Vec<ControllerSession> = (0..2)
        .map(|_| {
            let mut stream = ControllerSession::shared(Limits::default(), deltas.clone());
            let subscription = DeltaDiscoveryRequest {
                type_url: TYPE.to_owned(),
                ..DeltaDiscoveryRequest::default()
            };
            stream.on_request(&subscription).expect("a subscription");
            stream
        })
        .collect();
    let mut now = view(TYPE, &[("a", 1), ("b", 1)]);
    for change in 0..3 {
        let pushes: Vec<_> = streams
            .iter_mut()
            .map(|stream| {
                let push = stream.changes(TYPE, &offer(&now, Hold::Nothing), ALL);
                let push = push.expect("something");
                let ack = DeltaDiscoveryRequest {
                    type_url: TYPE.to_owned(),
                    response_nonce: push.nonce.to_string(),
                    ..DeltaDiscoveryRequest::default()
                };
                stream.on_request(&ack).expect("an ack");
                push
            })
            .collect();
        let body = |at: usize| pushes[at].body().as_ptr();
        assert_eq!(body(0), body(1), "change {change}");
        now.edit().insert("a".into(), encoded(TYPE, 10 + change));
    }
}

#[test]
fn types_that_stand_still_push_no_delta_out() {
    let deltas = Deltas::new();
    let (moves, stands) = (TYPE, ROUTE_TYPE);
    let asks = |type_url: &str| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // More streams than deltas are remembered, each with a view of its own of the type that stands still.
    let mut streams: Vec<(ControllerSession, View)> = (0..300)
        .map(|number| {
            let mut stream = ControllerSession::shared(Limits::default(), deltas.clone());
            for type_url in [moves, stands] {
                stream.on_request(&asks(type_url)).expect("a subscription");
            }
            (stream, view(stands, &[("own", number)]))
        })
        .collect();
    let mut now = view(moves, &[("a", 1)]);
    for change in 0..3 {
        let mut bodies = BTreeSet::new();
        for (stream, own) in &mut streams {
            let offers = |of: &str| offer(if of == moves { &now } else { own }, Hold::Nothing);
            while let Some(push) = stream.next(offers, ALL) {
                if &*push.type_url == moves {
                    bodies.insert(push.body().as_ptr());
                }
                let ack = DeltaDiscoveryRequest {
                    response_nonce: push.nonce.to_string(),
                    ..asks(&push.type_url)
                };
                stream.on_request(&ack).expect("an ack");
            }
        }
        // The first round encodes everybody's own view besides.
        assert!(change == 0 || bodies.len() == 1, "{} bodies", bodies.len());
        now.edit().insert("a".into(), encoded(moves, 10 + change));
    }
}
