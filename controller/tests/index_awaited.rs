//! Pods that are to be in the mesh and are not there: who speaks plaintext to them meanwhile, and who does not.

mod support;

use controller::index::Settings;
use controller::index::changes::Kind;
use mesh::proto::node::enrolment_report::State;
use mesh::proto::workload::{TunnelProtocol, WorkloadStatus};
use serde_json::{Value, json};

use support::{DesiredChanges, World, namespace, pod, settings};

const AMBIENT: &str = "istio.io/dataplane-mode";

/// Enrolled since noon, as the controllers have written.
fn enrolled_namespace() -> Value {
    let mut shop = namespace("shop", json!({AMBIENT: "ambient"}));
    shop["status"]["conditions"] = json!([{"type": "ambit.mesh/InMesh", "status": "True", "reason": "Enrolled",
        "message": "its pods are in the mesh unless they opt out; the condition of each says whether it is",
        "lastTransitionTime": "2026-01-01T12:00:00Z"}]);
    shop
}

/// A ready pod that was made at this time.
fn made(at: &str) -> Value {
    let mut pod = pod("shop", "a", "10.0.0.1", json!({}));
    pod["metadata"]["creationTimestamp"] = json!(at);
    pod
}

const BEFORE: &str = "2026-01-01T11:59:59Z";
const AFTER: &str = "2026-01-01T12:00:01Z";

/// What proxies are told of the pod.
#[derive(Debug, PartialEq)]
enum Told {
    Plain,
    Awaited,
    InMesh,
}

fn told(world: &World) -> Told {
    let workload = world.workload("Pod/shop/a").expect("known");
    let awaited = workload
        .extensions
        .iter()
        .any(|one| one.name == "ambit.mesh/awaited");
    match (workload.tunnel_protocol(), workload.status(), awaited) {
        (TunnelProtocol::None, WorkloadStatus::Healthy, false) => Told::Plain,
        (TunnelProtocol::None, WorkloadStatus::Unhealthy, true) => Told::Awaited,
        (TunnelProtocol::Hbone, WorkloadStatus::Healthy, false) => Told::InMesh,
        other => panic!("contradicts itself: {other:?}"),
    }
}

#[test]
fn a_new_pod_is_sent_no_plaintext_while_its_node_has_not_spoken_of_it() {
    let mut world = World::new();
    let changes = world.apply([enrolled_namespace(), made(AFTER)]);
    assert_eq!(told(&world), Told::Awaited);
    world.write(changes);
    assert_eq!(
        told(&world),
        Told::Awaited,
        "that it waits is written, and it waits"
    );
    let changes = world.report("n1", "a", State::Enrolled, "");
    assert_eq!(told(&world), Told::Awaited);
    world.write(changes);
    assert_eq!(told(&world), Told::InMesh);
}

#[test]
fn a_pod_that_was_there_before_its_namespace_was_enrolled_is_reached_as_before_until_it_is_in() {
    let mut world = World::new();
    let changes = world.apply([enrolled_namespace(), made(BEFORE)]);
    assert_eq!(told(&world), Told::Plain);
    world.write(changes);
    assert_eq!(told(&world), Told::Plain);
    let changes = world.report("n1", "a", State::Enrolled, "");
    world.write(changes);
    assert_eq!(told(&world), Told::InMesh);
}

#[test]
fn a_pod_that_could_not_be_captured_is_sent_no_plaintext_and_says_why() {
    for made_at in [BEFORE, AFTER] {
        let mut world = World::new();
        world.apply([enrolled_namespace(), made(made_at)]);
        let changes = world.report("n1", "a", State::Failed, "PortTaken");
        assert_eq!(told(&world), Told::Awaited, "{made_at}");
        world.write(changes);
        assert_eq!(told(&world), Told::Awaited, "{made_at}");
        let said = world.condition(Kind::Pod, "shop", "a", "ambit.mesh/InMesh");
        assert_eq!(said, "False PortTaken");
    }
}

#[test]
fn it_is_sent_plaintext_where_the_mesh_is_told_to_allow_it() {
    let mut world = World::with(Settings {
        plaintext_to_awaited: true,
        ..settings::index()
    });
    world.apply([enrolled_namespace(), made(AFTER)]);
    assert_eq!(told(&world), Told::Plain);
    world.report("n1", "a", State::Failed, "PortTaken");
    assert_eq!(told(&world), Told::Plain);
}

#[test]
fn who_is_not_wanted_in_the_mesh_is_awaited_by_nobody() {
    let labels = |labels: Value| {
        let mut pod = made(AFTER);
        pod["metadata"]["labels"] = labels;
        pod
    };
    let mut on_host = made(AFTER);
    on_host["spec"]["hostNetwork"] = json!(true);
    for pod in [labels(json!({AMBIENT: "none"})), on_host] {
        let mut world = World::new();
        world.apply([enrolled_namespace(), pod]);
        assert_eq!(told(&world), Told::Plain);
    }
    // The condition is of another time: the label is gone.
    let mut left = enrolled_namespace();
    left["metadata"]["labels"] = json!({});
    let mut world = World::new();
    world.apply([left, made(AFTER)]);
    assert_eq!(told(&world), Told::Plain);
}

#[test]
fn the_namespace_says_since_when_it_is_enrolled() {
    let said = |world: &World| world.condition(Kind::Namespace, "", "shop", "ambit.mesh/InMesh");
    let mut world = World::new();
    let changes = world.apply([namespace("shop", json!({AMBIENT: "ambient"})), made(AFTER)]);
    assert_eq!(told(&world), Told::Plain, "since when is not known yet");
    let notes = world.write(changes);
    assert!(notes.is_empty(), "the label says as much: {notes:?}");
    assert_eq!(said(&world), "True Enrolled");
    let changes = world.apply([enrolled_namespace()]);
    assert!(changes.writes().is_empty(), "{:?}", changes.writes());
    assert_eq!(told(&world), Told::Awaited, "pods are looked at again");

    let mut left = enrolled_namespace();
    left["metadata"]["labels"] = json!({});
    let changes = world.apply([left]);
    world.write(changes);
    assert_eq!(said(&world), "absent");
}
