//! Streams that go from one controller to another that knows less.

#[path = "support/replicas.rs"]
mod replicas;

use std::collections::BTreeMap;

use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use mesh::proto::node::EnrolledNamespace;
use mesh::xds::session::{ControllerSession, Deltas, Hold, Limits, Offer, ProxySession};
use mesh::xds::{ENROLLED_NAMESPACE_TYPE as TYPE, View};
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
fn while_something_is_held_the_proxy_is_not_told_that_it_knows_less() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    settle(
        &mut controller,
        &mut proxy,
        &view(TYPE, &[("a", 1)]),
        Hold::Nothing,
    );

    let mut controller = proxy.connect();
    let lags = Offer {
        view: view(TYPE, &[("b", 1)]),
        known_as_of: "less".into(),
        hold: Hold::Unseen,
    };
    let push = controller.changes(TYPE, &lags, ALL).expect("b");
    proxy.take(push.to_response().expect("it can be read"));
    let opening = proxy.session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "as of now");
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

// === order ===
