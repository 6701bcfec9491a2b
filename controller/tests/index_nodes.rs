//! Nodes that join: no pod is scheduled there before their ztunnel serves them.

mod support;

use controller::index::Settings;
use controller::index::changes::Changes;
use controller::index::changes::Kind;
use controller::index::desired::{Gate, Item, Wanted};
use serde_json::{Value, json};

use support::{World, namespace, node, pod, settings};

/// What is to be done about the taints of node n1.
fn gate(changes: &Changes) -> Option<Option<Gate>> {
    let mut desired = changes.desired.iter();
    desired.find_map(|(item, entry)| {
        matches!(item, Item::Gate(name) if **name == *"n1").then(|| {
            entry.as_ref().map(|entry| match &entry.wanted {
                Wanted::Gate { uid, gate } if **uid == *"node-n1" => *gate,
                other => panic!("{other:?}"),
            })
        })
    })
}

/// The node with these taints, and ready or not.
fn n1(taints: &[&str], ready: bool) -> Value {
    let mut node = node("n1", "192.168.0.1");
    let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
    node["spec"]["taints"] = taints.iter().map(taint).collect();
    let ready = if ready { "True" } else { "False" };
    node["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
    node
}

fn ztunnel(ready: bool) -> Value {
    let mut ztunnel = pod("ambit-system", "zt", "10.0.0.4", json!({}));
    ztunnel["spec"]["serviceAccountName"] = json!("ztunnel");
    ztunnel["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "ds", "controller": true},
    ]);
    let ready = if ready { "True" } else { "False" };
    ztunnel["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
    ztunnel
}

const OURS: &str = "ambit.mesh/not-ready";
const ECOSYSTEMS: &str = "cni.istio.io/not-ready";

#[test]
fn a_node_is_tainted_while_it_joins_until_its_ztunnel_is_ready() {
    let mut world = World::new();
    assert_eq!(
        gate(&world.apply([n1(&[], false)])),
        Some(Some(Gate::Closed))
    );
    let changes = world.apply([n1(&["other", OURS], false)]);
    assert_eq!(gate(&changes), Some(None), "it stands there");
    assert_eq!(gate(&world.apply([ztunnel(false)])), None);
    assert_eq!(
        gate(&world.apply([n1(&["other", OURS], true)])),
        None,
        "it stays"
    );
    assert_eq!(gate(&world.apply([ztunnel(true)])), Some(Some(Gate::Open)));
    assert_eq!(gate(&world.apply([n1(&["other"], true)])), Some(None));
    // Its ztunnel is replaced: the CNI plugin holds new pods meanwhile.
    assert_eq!(gate(&world.apply([ztunnel(false)])), None);
    assert_eq!(gate(&world.delete(Kind::Pod, "ambit-system", "zt")), None);
}

#[test]
fn a_node_that_the_mesh_does_not_come_to_is_given_free_when_it_is_ready() {
    let mut world = World::new();
    world.apply([n1(&[OURS], false)]);
    // Anybody's pod of that name is no ztunnel.
    world.apply([pod("shop", "ztunnel", "10.0.0.5", json!({}))]);
    assert_eq!(
        gate(&world.apply([n1(&[OURS], true)])),
        Some(Some(Gate::NotOurs))
    );
}

#[test]
fn the_ecosystems_taint_goes_when_the_mesh_is_there_and_only_then() {
    let mut world = World::new();
    world.apply([n1(&[ECOSYSTEMS], true)]);
    assert_eq!(gate(&world.apply([ztunnel(false)])), None);
    assert_eq!(gate(&world.apply([ztunnel(true)])), Some(Some(Gate::Open)));
}

#[test]
fn no_node_is_tainted_where_nobody_wants_that_nor_by_a_mesh_that_leaves() {
    let mut world = World::with(Settings {
        taint_joining_nodes: false,
        ..settings::index()
    });
    assert_eq!(gate(&world.apply([n1(&[], false)])), None);

    let mut world = World::new();
    world.apply([n1(&[OURS], false)]);
    let mut going = namespace("ambit-system", json!({}));
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(gate(&world.apply([going])), Some(Some(Gate::NotOurs)));
}
