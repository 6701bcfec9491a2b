//! Both halves of delta xDS against one another: what converges, what is sent, and what is not.

#[path = "support/session.rs"]
mod session;

use std::collections::BTreeMap;

use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use mesh::proto::node::EnrolledNamespace;
use mesh::xds::session::{Action, ControllerSession, Deltas, Limits, ProtocolError, ProxySession};
use mesh::xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE as TYPE, View};
use prost::Message;

use session::{ALL, Proxy, changes, connect, encoded, offer, resources, settle};

#[test]
fn the_first_answer_comes_even_when_there_is_nothing() {
    let mut proxy = Proxy::new();
    let mut controller = connect(&proxy);
    assert!(!proxy.session.synced());
    let response = changes(&mut controller, TYPE, &View::default(), ALL).expect("an empty answer");
    assert!(response.resources.is_empty() && response.removed_resources.is_empty());
    let ack = proxy.on_response(response);
    assert!(proxy.session.synced());
    assert_eq!(controller.on_request(&ack), Ok(Action::Acked));
    assert_eq!(changes(&mut controller, TYPE, &View::default(), ALL), None);
}

#[test]
fn synced_only_when_all_parts_have_come() {
    let mut proxy = Proxy::new();
    let mut controller = connect(&proxy);
    let now = resources(&[("a", 1), ("b", 2), ("c", 3)]);
    let first = changes(&mut controller, TYPE, &now, 2).expect("the first part");
    assert_eq!(first.resources.len(), 2);
    assert_eq!(
        changes(&mut controller, TYPE, &now, 2),
        None,
        "one response in flight"
    );
    let ack = proxy.on_response(first);
    assert!(!proxy.session.synced());
    controller.on_request(&ack).expect("an ack");
    let second = changes(&mut controller, TYPE, &now, 2).expect("the second part");
    let _ = proxy.on_response(second);
    assert!(proxy.session.synced());
    assert_eq!(proxy.has.len(), 3);
}

#[test]
fn a_reconnect_costs_the_differences_only() {
    let mut proxy = Proxy::new();
    let mut controller = connect(&proxy);
    let now = resources(&[("gone", 1), ("kept", 2), ("changed", 3)]);
    settle(&mut controller, &mut proxy, &now);

    let now = resources(&[("kept", 2), ("changed", 5), ("new", 6)]);
    let mut controller = connect(&proxy);
    let mut sent = settle(&mut controller, &mut proxy, &now);
    sent.sort_unstable();
    assert_eq!(sent, ["-gone", "changed", "new"]);
    let has: Vec<_> = proxy.has.into_iter().collect();
    assert_eq!(
        has,
        [("changed".into(), 5), ("kept".into(), 2), ("new".into(), 6)]
    );
}

#[test]
fn a_refusal_names_the_resource_and_the_rest_is_taken() {
    let mut proxy = Proxy::new();
    let mut controller = connect(&proxy);
    settle(
        &mut controller,
        &mut proxy,
        &resources(&[("a", 1), ("gone", 2)]),
    );
    let now = resources(&[("a", 4), ("b", 3)]);
    let response = changes(&mut controller, TYPE, &now, ALL).expect("changes");
    let nack = proxy.on_response(response);
    let error = nack.error_detail.clone().expect("a refusal");
    assert_eq!(error.message, "a: bad");
    assert_eq!(
        proxy.has,
        BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 3)])
    );
    assert_eq!(
        controller.on_request(&nack),
        Ok(Action::Nacked {
            reason: "a: bad".to_owned()
        })
    );
    assert_eq!(
        changes(&mut controller, TYPE, &now, ALL),
        None,
        "not again until it changes"
    );
    let sent = settle(
        &mut controller,
        &mut proxy,
        &resources(&[("a", 5), ("b", 3)]),
    );
    assert_eq!(sent, ["a"]);
}

#[test]
fn what_is_not_a_resource_of_that_type_is_refused_by_name() {
    let any = |url: &str| prost_types::Any {
        type_url: url.to_owned(),
        value: Vec::new(),
    };
    let resource = |name: &str, bytes: Vec<u8>| Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: bytes.into(),
        aliases: Vec::new(),
    };
    let response = DeltaDiscoveryResponse {
        type_url: TYPE.to_owned(),
        nonce: "7".to_owned(),
        resources: vec![
            resource("empty", Vec::new()),
            resource("garbage", vec![0xff; 9]),
            resource("other", any(ADDRESS_TYPE).encode_to_vec()),
            resource("twice", any(TYPE).encode_to_vec()),
            resource("twice", any(TYPE).encode_to_vec()),
            resource("both", any(TYPE).encode_to_vec()),
        ],
        removed_resources: vec!["both".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    let mut taken = Vec::new();
    let mut session = ProxySession::new([TYPE]);
    let reply = session.on_response(response, |update| {
        taken.extend(update.updated.iter().map(|(name, _)| name.clone()));
        Ok(())
    });
    assert_eq!(taken, ["twice"]);
    let refused = reply.refused.expect("refusals");
    let names: Vec<&str> = refused
        .resources
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["empty", "garbage", "other", "twice", "both"]);
    assert_eq!(reply.request.response_nonce, "7");
    assert_eq!(session.len(TYPE), 1);

    let unasked = DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        ..Default::default()
    };
    let reply = session.on_response(unasked, |_| panic!("it was not asked for"));
    assert!(reply.request.error_detail.is_some());
}

#[test]
fn several_types_do_not_wait_for_one_another() {
    let mut session = ProxySession::new([TYPE, ADDRESS_TYPE]);
    let mut controller = ControllerSession::new();
    for request in session.open(&Node::default()) {
        controller.on_request(&request).expect("a subscription");
    }
    let now = resources(&[("a", 1)]);
    let first = changes(&mut controller, TYPE, &now, ALL).expect("the one type");
    let second = changes(&mut controller, ADDRESS_TYPE, &View::default(), ALL).expect("the other");
    assert_ne!(first.nonce, second.nonce);
    let ack = session.on_response(second, |_| Ok(())).request;
    assert!(!session.synced());
    assert_eq!(controller.on_request(&ack), Ok(Action::Acked));
    let ack = session.on_response(first, |_| Ok(())).request;
    assert!(session.synced());
    assert_eq!(controller.on_request(&ack), Ok(Action::Acked));
    assert_eq!(controller.types().collect::<Vec<_>>(), [TYPE, ADDRESS_TYPE]);
}

#[test]
fn a_stale_nonce_is_no_answer() {
    let mut proxy = Proxy::new();
    let mut controller = connect(&proxy);
    let now = resources(&[("a", 1)]);
    let response = changes(&mut controller, TYPE, &now, ALL).expect("a response");
    let mut stale = proxy.on_response(response);
    stale.response_nonce = "0".to_owned();
    assert_eq!(controller.on_request(&stale), Ok(Action::Nothing));
    assert!(!controller.settled(TYPE, &offer(&now)));
}

#[test]
fn names_one_by_one() {
    let request = |subscribe: &[&str], unsubscribe: &[&str]| DeltaDiscoveryRequest {
        type_url: TYPE.to_owned(),
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut controller = ControllerSession::new();
    let now = resources(&[("a", 1), ("b", 2)]);
    let say = |controller: &mut ControllerSession, request: &DeltaDiscoveryRequest| {
        controller.on_request(request).expect("valid");
        let mut names = Vec::new();
        while let Some(response) = changes(controller, TYPE, &now, ALL) {
            names.extend(
                response
                    .resources
                    .iter()
                    .map(|resource| resource.name.clone()),
            );
            names.extend(
                response
                    .removed_resources
                    .iter()
                    .map(|name| format!("-{name}")),
            );
            let ack = DeltaDiscoveryRequest {
                type_url: TYPE.to_owned(),
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            controller.on_request(&ack).expect("an ack");
        }
        names
    };
    // As a stock ztunnel in on-demand mode begins.
    assert!(say(&mut controller, &request(&["*"], &["*"])).is_empty());
    assert_eq!(
        say(&mut controller, &request(&["a", "missing"], &[])),
        ["a", "-missing"]
    );
    assert_eq!(
        say(&mut controller, &request(&["a"], &[])),
        ["a"],
        "asked again, sent again"
    );
    assert!(say(&mut controller, &request(&[], &["a"])).is_empty());
    assert_eq!(say(&mut controller, &request(&["*"], &[])), ["a", "b"]);
}

#[test]
fn limits_end_the_stream_with_their_name() {
    let request = |type_url: &str| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let session = || {
        let limits = Limits {
            types: 3,
            names: 10,
            versions: 20,
        };
        ControllerSession::shared(limits, Deltas::new())
    };
    let numbers = |many: usize| (0..many).map(|at| at.to_string());
    let mut names = request(TYPE);
    names.resource_names_subscribe = numbers(11).collect();
    let mut gone = request(TYPE);
    gone.resource_names_unsubscribe = numbers(11).collect();
    let mut versions = request(TYPE);
    versions.initial_resource_versions = numbers(21).map(|name| (name, "v".to_owned())).collect();
    let mut name = request(TYPE);
    name.resource_names_subscribe = vec!["x".repeat(2000)];
    let mut token = request(TYPE);
    token.known_as_of = "x".repeat(5000);
    for (request, error) in [
        (request(""), ProtocolError::NoType),
        (request(&"x".repeat(300)), ProtocolError::LongType(300)),
        (names, ProtocolError::TooManyNames(10)),
        (gone, ProtocolError::TooManyNames(10)),
        (versions, ProtocolError::TooManyVersions(21, 20)),
        (name, ProtocolError::LongName(2000)),
        (token, ProtocolError::LongToken(5000)),
    ] {
        assert_eq!(session().on_request(&request), Err(error));
    }

    let mut controller = session();
    for type_url in ["a", "b", "c"] {
        assert_eq!(
            controller.on_request(&request(type_url)),
            Ok(Action::Subscribed)
        );
    }
    assert_eq!(
        controller.on_request(&request("d")),
        Err(ProtocolError::TooManyTypes(3))
    );

    // Few at a time are many in the end.
    let mut controller = session();
    let mut some = request(TYPE);
    some.resource_names_subscribe = numbers(6).collect();
    assert_eq!(controller.on_request(&some), Ok(Action::Subscribed));
    some.resource_names_subscribe = (6..12).map(|at: usize| at.to_string()).collect();
    assert_eq!(
        controller.on_request(&some),
        Err(ProtocolError::TooManyNames(10))
    );
}

#[test]
fn equal_content_has_an_equal_version_and_the_wire_is_an_any() {
    assert_eq!(encoded(1).version(), encoded(1).version());
    assert_ne!(encoded(1).version(), encoded(2).version());
    // Decoded as any other xDS client would: field 2 is a message of type Any.
    let any = prost_types::Any::decode(&*encoded(7).any()).expect("an Any");
    assert_eq!(any.type_url, TYPE);
    assert_eq!(
        EnrolledNamespace::decode(&*any.value).expect("ours").name,
        "7"
    );
}
