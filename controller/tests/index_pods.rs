//! Pods and services in; workloads, enrolments and pod status out; and silence where nothing changed.

mod support;

use controller::index::changes::{Changes, Kind, PodPlacement, Role, Scope};
use mesh::proto::node::Capture;
use mesh::proto::node::enrolment_report::State;
use mesh::proto::workload::TunnelProtocol;
use mesh::xds::MESH_STATE_NAME;
use serde_json::json;

use support::{DesiredChanges, World, namespace, pod, service};

const AMBIENT: &str = "istio.io/dataplane-mode";

/// A pod `a` in a namespace of the mesh, and what that changed.
fn labelled() -> (World, Changes) {
    let mut world = World::new();
    let changes = world.apply([
        namespace("shop", json!({AMBIENT: "ambient"})),
        pod("shop", "a", "10.0.0.1", json!({})),
    ]);
    (world, changes)
}

/// The pod `a` in the mesh, its node having said so.
fn enrolled() -> World {
    let (mut world, changes) = labelled();
    world.write(changes);
    let changes = world.report("n1", "a", State::Enrolled, "");
    world.write(changes);
    world
}

/// What the pod `a` is announced to speak.
fn spoken(world: &World) -> TunnelProtocol {
    let workload = world.workload("Pod/shop/a").expect("known");
    workload.tunnel_protocol()
}

/// What the node of the pod `a` is told to do with it.
fn capture(world: &World) -> Capture {
    world.enrolment("n1", "a").expect("told").capture()
}

fn in_mesh(world: &World) -> String {
    world.condition(Kind::Pod, "shop", "a", "ambit.mesh/InMesh")
}

#[test]
fn a_pod_is_enrolled_by_labels_and_announced_only_after_its_node_says_so() {
    let (mut world, changes) = labelled();
    let told = world.write(changes);
    assert!(told.is_empty(), "waiting is no news: {told:?}");
    assert_eq!(capture(&world), Capture::In);
    assert_eq!(spoken(&world), TunnelProtocol::None);
    assert_eq!(in_mesh(&world), "False Pending");

    let changes = world.report("n2", "a", State::Enrolled, "");
    assert!(
        changes.resources.is_empty() && changes.writes().is_empty(),
        "another node's word counts for nothing"
    );

    let changes = world.report("n1", "a", State::Enrolled, "");
    assert_eq!(
        spoken(&world),
        TunnelProtocol::None,
        "announced only once its status says so: another replica knows no more than that"
    );
    assert_eq!(
        world.write(changes),
        ["Enrolled: traffic is redirected to the node's ztunnel"]
    );
    assert_eq!(in_mesh(&world), "True Enrolled");
    assert_eq!(spoken(&world), TunnelProtocol::Hbone);
    let annotations = &world.objects[&(Kind::Pod, controller::index::names::Key::new("shop", "a"))]
        ["metadata"]["annotations"];
    assert_eq!(annotations["ambient.istio.io/redirection"], "enabled");

    let changes = world.report("n1", "a", State::Enrolled, "");
    assert!(
        changes.resources.is_empty() && changes.writes().is_empty(),
        "nothing new"
    );
}

#[test]
fn leaving_takes_hbone_back_at_once_and_the_condition_when_the_node_is_done() {
    let mut world = enrolled();
    let changes = world.apply([namespace("shop", json!({}))]);
    assert_eq!(capture(&world), Capture::Out);
    assert_eq!(spoken(&world), TunnelProtocol::None);
    world.write(changes);
    assert_eq!(in_mesh(&world), "True Enrolled");

    let changes = world.report("n1", "a", State::Removed, "");
    assert_eq!(
        world.write(changes),
        ["LeftMesh: traffic is no longer redirected"]
    );
    assert_eq!(in_mesh(&world), "absent");
}

#[test]
fn a_controller_that_starts_anew_believes_the_status_it_wrote() {
    let mut known = pod("shop", "a", "10.0.0.1", json!({}));
    known["status"]["conditions"] = json!([
        {"type": "Ready", "status": "True"},
        {"type": "ambit.mesh/InMesh", "status": "True", "reason": "Enrolled",
         "message": "traffic is redirected to the node's ztunnel"},
    ]);
    known["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    let mut shop = namespace("shop", json!({AMBIENT: "ambient"}));
    shop["status"]["conditions"] = json!([{"type": "ambit.mesh/InMesh", "status": "True", "reason": "Enrolled",
        "message": "its pods are in the mesh unless they opt out; the condition of each says whether it is",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let mut world = World::new();
    let changes = world.apply([shop, known]);
    assert_eq!(spoken(&world), TunnelProtocol::Hbone);
    assert!(changes.writes().is_empty(), "{:?}", changes.writes());

    let changes = world.report("n1", "a", State::Failed, "NoNetns");
    assert_eq!(spoken(&world), TunnelProtocol::None);
    assert_eq!(world.write(changes), ["NoNetns: because NoNetns"]);
}

#[test]
fn a_report_may_come_before_its_pod() {
    let mut world = World::new();
    world.apply([namespace("shop", json!({AMBIENT: "ambient"}))]);
    world.report("n1", "a", State::Enrolled, "");
    let changes = world.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    world.write(changes);
    assert_eq!(spoken(&world), TunnelProtocol::Hbone);
    // The next pod of that name is another pod.
    let mut next = pod("shop", "a", "10.0.0.2", json!({}));
    next["metadata"]["uid"] = json!("b");
    world.apply([next]);
    assert_eq!(spoken(&world), TunnelProtocol::None);
    assert!(world.enrolment("n1", "a").is_none());
    assert!(world.enrolment("n1", "b").is_some());
}

#[test]
fn a_node_that_speaks_of_many_pods_unseen_takes_nobody_elses_place() {
    let mut world = World::new();
    world.apply([namespace("shop", json!({AMBIENT: "ambient"}))]);
    world.report("n1", "a", State::Enrolled, "");
    for number in 0..10_000 {
        world.report("n2", &format!("unseen-{number}"), State::Enrolled, "");
    }
    // It keeps the newest of its own.
    let changes = world.apply([pod("shop", "a", "10.0.0.1", json!({}))]);
    world.write(changes);
    assert_eq!(spoken(&world), TunnelProtocol::Hbone);
    let mut late = pod("shop", "late", "10.0.0.2", json!({}));
    late["metadata"]["uid"] = json!("unseen-9999");
    late["spec"]["nodeName"] = json!("n2");
    let changes = world.apply([late]);
    world.write(changes);
    let workload = world.workload("Pod/shop/late").expect("known");
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::Hbone);
}

#[test]
fn who_is_enrolled() {
    let ambient = json!({AMBIENT: "ambient"});
    let none = json!({AMBIENT: "none"});
    let unset = json!({});
    for (namespace_labels, pod_labels, change, wanted) in [
        (&ambient, &unset, json!({}), Capture::In),
        (&ambient, &none, json!({}), Capture::Out),
        (&unset, &ambient, json!({}), Capture::In),
        (&unset, &unset, json!({}), Capture::Out),
        (&none, &ambient, json!({}), Capture::In),
        (
            &ambient,
            &unset,
            json!({"spec": {"hostNetwork": true}}),
            Capture::Out,
        ),
        (
            &ambient,
            &unset,
            json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}}),
            Capture::Out,
        ),
        (
            &ambient,
            &json!({AMBIENT: "Ambient"}),
            json!({}),
            Capture::Out,
        ),
    ] {
        let mut one = pod("shop", "a", "10.0.0.1", pod_labels.clone());
        if let Some(host) = change["spec"].get("hostNetwork") {
            one["spec"]["hostNetwork"] = host.clone();
        }
        one["metadata"]["annotations"] = change["metadata"]["annotations"].clone();
        let mut world = World::new();
        world.apply([namespace("shop", namespace_labels.clone()), one]);
        let enrolment = world.enrolment("n1", "a").expect("told");
        assert_eq!(
            enrolment.capture(),
            wanted,
            "{namespace_labels} {pod_labels} {change}"
        );
    }
    let mut world = World::new();
    world.apply([
        namespace("kube-system", ambient),
        pod("kube-system", "a", "10.0.0.1", json!({})),
    ]);
    assert_eq!(capture(&world), Capture::Out);
}

#[test]
fn a_label_that_means_nothing_is_named_on_namespace_and_pod() {
    let mut world = World::new();
    let changes = world.apply([
        namespace("shop", json!({AMBIENT: "enabled"})),
        pod("shop", "a", "10.0.0.1", json!({AMBIENT: "yes"})),
    ]);
    let told = world.write(changes);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter()
            .all(|note| note.starts_with("UnknownDataplaneMode")),
        "{told:?}"
    );
    assert!(told.iter().any(|note| note.contains("\"yes\"")), "{told:?}");
    assert_eq!(
        world.condition(Kind::Namespace, "", "shop", "ambit.mesh/InMesh"),
        "False UnknownDataplaneMode"
    );
    assert_eq!(in_mesh(&world), "False UnknownDataplaneMode");

    let changes = world.apply([namespace("shop", json!({}))]);
    world.write(changes);
    assert_eq!(
        world.condition(Kind::Namespace, "", "shop", "ambit.mesh/InMesh"),
        "absent"
    );
}

#[test]
fn what_does_not_matter_is_silent() {
    let mut world = World::new();
    let mut one = pod("shop", "a", "10.0.0.1", json!({"app": "cart"}));
    world.apply([
        namespace("shop", json!({})),
        one.clone(),
        service("shop", "cart", "10.96.0.1", "cart", json!({})),
    ]);
    one["metadata"]["resourceVersion"] = json!("99");
    one["metadata"]["annotations"] = json!({"someone": "else"});
    one["status"]["startTime"] = json!("2026-01-01T00:00:00Z");
    let changes = world.apply([
        one,
        namespace("shop", json!({"team": "red"})),
        service("shop", "cart", "10.96.0.1", "cart", json!({"team": "red"})),
    ]);
    assert!(changes.resources.is_empty(), "{:?}", changes.resources);
    assert!(
        changes.writes().is_empty()
            && changes.placements.is_empty()
            && changes.waypoints().is_empty()
    );
}

#[test]
fn a_list_takes_away_what_is_no_longer_there() {
    let mut world = World::new();
    world.apply([
        pod("shop", "a", "10.0.0.1", json!({})),
        pod("shop", "b", "10.0.0.2", json!({})),
    ]);
    let changes = world.list(Kind::Pod, [pod("shop", "b", "10.0.0.2", json!({}))]);
    assert!(world.workload("Pod/shop/a").is_none());
    assert!(world.workload("Pod/shop/b").is_some());
    assert_eq!(changes.placements.len(), 1);
}

#[test]
fn labels_and_statics_make_nobody_anything() {
    let mut world = World::new();
    let waypoint_labels = json!({
        "gateway.networking.k8s.io/gateway-name": "gate",
        "gateway.istio.io/managed": "ambit.mesh-waypoint-controller",
    });
    let mut mirror = pod("shop", "mirror", "10.0.0.1", waypoint_labels.clone());
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["spec"]["serviceAccountName"] = json!("gate");
    let mut nameless = pod("shop", "nameless", "10.0.0.2", waypoint_labels.clone());
    nameless["spec"]["serviceAccountName"] = json!(null);
    let other_account = pod("shop", "other", "10.0.0.3", waypoint_labels);
    let mut ztunnel = pod("ambit-system", "zt", "10.0.0.4", json!({}));
    ztunnel["spec"]["serviceAccountName"] = json!("ztunnel");
    let changes = world.apply([
        namespace("shop", json!({AMBIENT: "ambient"})),
        mirror,
        nameless,
        other_account,
        ztunnel.clone(),
    ]);
    for (uid, account) in [
        ("mirror", None),
        ("nameless", None),
        ("other", Some("default")),
    ] {
        let placement = placed(&changes, uid);
        assert_eq!(placement.service_account.as_deref(), account, "{uid}");
        assert_eq!(placement.role, Role::Application, "{uid}");
        assert_eq!(placement.captured, account.is_some(), "{uid}");
    }
    // Its node knows a static pod by the UID that its mirror names, and is told to leave it alone.
    assert!(world.enrolment("n1", "mirror").is_none());
    let left_alone = world.enrolment("n1", "x").expect("told");
    assert_eq!(left_alone.capture(), Capture::Out);
    assert!(mesh::enrolment::Enrolment::try_from(left_alone).is_ok());
    assert_eq!(
        placed(&changes, "zt").role,
        Role::Application,
        "anybody's pod of that account"
    );
    world.write(changes);
    for pod in ["mirror", "nameless"] {
        let said = world.condition(Kind::Pod, "shop", pod, "ambit.mesh/InMesh");
        assert_eq!(said, "False NoIdentity", "{pod}");
    }
    ztunnel["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "ds", "controller": true},
    ]);
    let changes = world.apply([ztunnel]);
    assert_eq!(placed(&changes, "zt").role, Role::NodeProxy);
}

fn placed(changes: &Changes, uid: &str) -> PodPlacement {
    let found = changes.placements.iter().rfind(|(of, _)| **of == *uid);
    found
        .and_then(|(_, placement)| placement.as_deref().cloned())
        .expect(uid)
}

#[test]
fn uninstalling_takes_everything_back() {
    let mut world = enrolled();
    let changes = world.apply([namespace("ambit-system", json!({}))]);
    world.write(changes);
    let told = |world: &World| {
        let word = (Scope::Nodes, MESH_STATE_NAME.to_owned());
        world.resources.contains_key(&word)
    };
    // Another namespace that goes is nobody's concern.
    let mut other = namespace("other", json!({}));
    other["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.apply([other]);
    assert!(!told(&world));
    let mut going = namespace("ambit-system", json!({}));
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let changes = world.apply([going]);
    assert!(told(&world));
    assert_eq!(capture(&world), Capture::Out);
    assert_eq!(spoken(&world), TunnelProtocol::None);
    world.write(changes);
    assert_eq!(in_mesh(&world), "absent");
    assert!(
        !world
            .resources
            .keys()
            .any(|(scope, _)| *scope == Scope::Namespaces)
    );
    // Nodes that have not heard must still hear.
    world.delete(Kind::Namespace, "", "ambit-system");
    assert!(told(&world));
}
