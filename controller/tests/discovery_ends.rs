//! How streams end against the real service: a stream lives as long as the right to it.

#[path = "support/server.rs"]
mod server;
#[path = "support/streams.rs"]
mod streams;
mod support;

use std::time::Duration;

use controller::index::Input;
use controller::index::changes::Kind;
use mesh::xds::{ADDRESS_TYPE, ENROLMENT_TYPE};
use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use streams::{Controller, LONG, subscription, ztunnel};
use support::{bound, gateway, pod, service};

#[tokio::test]
async fn a_pod_that_has_ended_takes_its_streams_with_it() {
    let mut controller = Controller::start().await;
    let mut stream = controller.open("ztunnel").await.expect("opened");
    stream.say(subscription(ENROLMENT_TYPE)).await;
    stream.next().await;
    let mut ended = ztunnel();
    ended["status"]["phase"] = json!("Succeeded");
    controller.apply([ended]);
    let status = stream.end().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("does not run"), "{status}");
    let refused = controller.open("ztunnel").await.err().expect("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let told = timeout(LONG, controller.told.recv()).await.expect("told");
    let Some(Input::NodeGone { node }) = told else {
        panic!("{told:?}")
    };
    assert_eq!(&*node, "n1");
}

#[tokio::test]
async fn the_third_stream_of_a_pod_ends_the_first() {
    let mut controller = Controller::start().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = controller.open("ztunnel").await.expect("opened");
        stream.say(subscription(ENROLMENT_TYPE)).await;
        stream.next().await;
        streams.push(stream);
    }
    let status = streams.remove(0).end().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("newer streams"), "{status}");
    controller.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    for stream in &mut streams {
        assert_eq!(stream.names().await.1, ["a"]);
    }
    assert!(
        controller.told.try_recv().is_err(),
        "the node still reports"
    );
}

#[tokio::test]
async fn a_gateway_that_goes_takes_the_streams_of_its_waypoint_with_it() {
    let mut controller = Controller::start().await;
    let mut stream = controller.open("waypoint").await.expect("opened");
    let mut node = controller.open("ztunnel").await.expect("opened");
    stream.say(subscription(ADDRESS_TYPE)).await;
    stream.next().await;
    node.say(subscription(ENROLMENT_TYPE)).await;
    node.next().await;
    // Its pods still run.
    controller.delete(Kind::Gateway, "shop", "gate");
    let status = stream.end().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(
        status
            .message()
            .contains("neither a ztunnel's nor a waypoint's"),
        "{status}"
    );
    let refused = controller.open("waypoint").await.err().expect("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Nobody else's stream ends, and another Gateway of that name is not the one whose pods these are.
    controller.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    assert_eq!(node.names().await.1, ["a"]);
    let mut other = gateway("shop", "gate");
    other["metadata"]["uid"] = json!("another");
    controller.apply([other]);
    let refused = controller.open("waypoint").await.err().expect("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    controller.apply([gateway("shop", "gate")]);
    controller.open("waypoint").await.expect("it is back");
}

/// As if the time after which every stream's token has been judged again had passed.
async fn judged_again() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(361)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_token_that_is_refused_when_it_is_shown_again_takes_its_stream_with_it() {
    let mut controller = Controller::start().await;
    let mut stays = controller.open("waypoint").await.expect("opened");
    stays.say(subscription(ADDRESS_TYPE)).await;
    stays.next().await;
    let mut revoked = controller.open("ztunnel").await.expect("opened");
    revoked.say(subscription(ENROLMENT_TYPE)).await;
    revoked.next().await;
    // Nobody asks before it is time.
    controller.tokens.revoke("ztunnel");
    controller.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    assert_eq!(revoked.names().await.1, ["a"]);

    judged_again().await;
    let status = revoked.end().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("unknown token"), "{status}");
    // Whose token is still good hears on.
    controller.apply([service("shop", "cart", "10.96.0.1", "cart", bound())]);
    let (_, names, _) = stays.names().await;
    let cart = "shop/cart.shop.svc.cluster.local".to_owned();
    assert!(names.contains(&cart), "{names:?}");
}

#[tokio::test]
async fn a_token_that_is_another_pods_when_it_is_shown_again_takes_its_stream_with_it() {
    let controller = Controller::start().await;
    let mut stream = controller.open("ztunnel").await.expect("opened");
    stream.say(subscription(ENROLMENT_TYPE)).await;
    stream.next().await;
    let tokens = &controller.tokens;
    tokens.give("ztunnel", "ambit-system", "ztunnel", "zt2");
    judged_again().await;
    let status = stream.end().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("somebody else's"), "{status}");
}
