//! Gateways: whose they are, what runs for them, and what their status says.

mod support;

use controller::index::changes::Kind;
use controller::index::desired::{Item, Wanted};
use controller::index::names::Key;
use serde_json::json;

use support::{DesiredChanges, World, bound, class, gateway, namespace, our_class, shop, waypoint};

#[test]
fn classes_of_others_are_left_alone() {
    let mut world = World::new();
    let changes = world.apply([class("istio-waypoint", "istio.io/mesh-controller")]);
    assert!(changes.writes().is_empty());
    let mut theirs = gateway("shop", "gate");
    theirs["spec"]["gatewayClassName"] = json!("istio-waypoint");
    let changes = world.apply([theirs]);
    assert!(changes.writes().is_empty() && changes.waypoints().is_empty());
    // Ours are made anew when they go.
    world.apply([our_class()]);
    let changes = world.delete(Kind::GatewayClass, "", "ambit-waypoint");
    assert_eq!(changes.missing_classes(), ["ambit-waypoint"]);
}

#[test]
fn what_was_made_for_a_gateway_that_stays_and_is_no_longer_ours_is_unwanted() {
    let mut world = shop();
    let item = Item::Waypoint(Key::new("shop", "gate"));
    assert!(matches!(world.desired[&item].wanted, Wanted::Waypoint(_)));
    let ours = world.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
    let mut theirs = ours.clone();
    theirs["spec"]["gatewayClassName"] = json!("nginx");
    world.apply([theirs]);
    let unwanted = Wanted::NoWaypoint {
        gateway_uid: "gw-gate".into(),
    };
    assert_eq!(world.desired[&item].wanted, unwanted);
    let roots = Item::Roots("shop".into());
    assert_eq!(world.desired[&roots].wanted, Wanted::NoRoots);

    // Ours again, then gone: Kubernetes collects what it owns.
    world.apply([ours]);
    assert!(matches!(world.desired[&item].wanted, Wanted::Waypoint(_)));
    assert_eq!(world.desired[&roots].wanted, Wanted::Roots);
    world.delete(Kind::Gateway, "shop", "gate");
    assert!(!world.desired.contains_key(&item));
    assert_eq!(world.desired[&roots].wanted, Wanted::NoRoots);
    world.delete(Kind::Namespace, "", "shop");
    assert!(!world.desired.contains_key(&roots));
}

#[test]
fn a_gateway_that_has_come_to_be_anothers_no_longer_says_what_we_said() {
    let mut world = shop();
    let said = |world: &World| world.condition(Kind::Gateway, "shop", "gate", "Programmed");
    assert_eq!(said(&world), "True Programmed");
    let mut gateway = world.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
    // Ours is only missing: it stays as it is.
    let changes = world.delete(Kind::GatewayClass, "", "ambit-waypoint");
    world.write(changes);
    assert_eq!(said(&world), "True Programmed");
    gateway["spec"]["gatewayClassName"] = json!("nothing-there");
    let changes = world.apply([gateway]);
    world.write(changes);
    assert_eq!(said(&world), "absent");
    // What another controller says is not ours to take back.
    let mut gateway = world.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
    gateway["status"] = json!({"conditions": [
        {"type": "Programmed", "status": "True", "reason": "Programmed", "message": "theirs"},
    ]});
    assert!(world.apply([gateway]).writes().is_empty());
}

/// The admission policy does not let the controller put it back.
#[test]
fn what_lost_our_label_is_named_with_what_to_do_and_tried_again_when_somebody_did_it() {
    let [service, _, _, deployment] = waypoint("shop", "gate");
    let mut account = deployment.clone();
    account["kind"] = json!("ServiceAccount");
    account["apiVersion"] = json!("v1");
    account["metadata"]["uid"] = json!("account");
    let said = |world: &World| world.condition(Kind::Gateway, "shop", "gate", "Programmed");
    for object in [service, deployment, account] {
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        let mut world = shop();
        world.apply([object.clone()]);
        assert_eq!(said(&world), "True Programmed", "{kind}");
        let mut without = object.clone();
        without["metadata"]["labels"] = json!({"team": "red"});
        let changes = world.apply([without.clone()]);
        assert_eq!(changes.waypoints().len(), 1, "{kind}: who may, repairs it");
        let told = world.write(changes);
        assert_eq!(said(&world), "False LabelMissing", "{kind}");
        assert_eq!(
            told.last().expect("an Event"),
            &format!(
                "LabelMissing: {kind} shop/gate: label gateway.istio.io/managed=ambit.mesh-waypoint-controller is missing; \
                 what runs is left running, and cannot be repaired or updated: put the label back, or delete the object, \
                 which is then made anew"
            )
        );
        assert!(world.apply([without.clone()]).writes().is_empty(), "{kind}");
        // Both ways out.
        let changes = world.apply([object.clone()]);
        assert_eq!(changes.waypoints().len(), 1, "{kind}: it can be written");
        world.write(changes);
        assert_eq!(said(&world), "True Programmed", "{kind}");
        let changes = world.apply([without]);
        world.write(changes);
        let changes = world.delete(support::kind(&object), "shop", "gate");
        assert_eq!(changes.waypoints().len(), 1, "{kind}: it can be made");
        world.write(changes);
        assert_ne!(said(&world), "False LabelMissing", "{kind}");
    }
}

#[test]
fn a_name_that_cannot_carry_the_objects_is_refused_with_the_reason() {
    let long = "g".repeat(64);
    for name in ["my.gateway", "0gate", &*long] {
        let mut world = World::new();
        let changes = world.apply([
            namespace("shop", json!({})),
            our_class(),
            gateway("shop", name),
        ]);
        assert!(changes.waypoints().is_empty(), "{name}: nothing is run");
        world.write(changes);
        assert_eq!(
            world.condition(Kind::Gateway, "shop", name, "Accepted"),
            "False Invalid"
        );
    }
    let [service, _, _, deployment] = waypoint("shop", "gate");
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "gate", "uid": "sa"}});
    for mut taken in [service, deployment, account] {
        taken["metadata"]["ownerReferences"] = json!([]);
        let kind = taken["kind"].as_str().expect("a kind").to_owned();
        let mut world = World::new();
        let changes = world.apply([
            namespace("shop", json!({})),
            our_class(),
            taken.clone(),
            gateway("shop", "gate"),
            support::service("shop", "cart", "10.96.0.1", "cart", bound()),
        ]);
        assert!(changes.waypoints().is_empty(), "{kind}");
        let told = world.write(changes);
        assert!(
            told.iter()
                .any(|note| note.contains(&format!("a {kind} shop/gate is there"))),
            "{told:?}"
        );
        assert_eq!(
            world.condition(Kind::Gateway, "shop", "gate", "Accepted"),
            "False Invalid"
        );
        assert_eq!(
            world.condition(Kind::Service, "shop", "cart", "istio.io/WaypointBound"),
            "False WaypointIsNotReady"
        );
        let changes = world.delete(support::kind(&taken), "shop", "gate");
        assert_eq!(changes.waypoints().len(), 1, "{kind}: the name is free");
        world.write(changes);
        assert_eq!(
            world.condition(Kind::Gateway, "shop", "gate", "Accepted"),
            "True Accepted"
        );
    }
}

#[test]
fn a_gateway_passes_on_only_what_nobody_acts_on() {
    let mut world = shop();
    let mut gate = world.objects[&(Kind::Gateway, Key::new("shop", "gate"))].clone();
    gate["spec"]["infrastructure"] = json!({
        "labels": {"team": "red", "istio.io/dataplane-mode": "ambient"},
        "annotations": {"note": "hello", "eks.amazonaws.com/role-arn": "admin", "sidecar.istio.io/inject": "true"},
    });
    let changes = world.apply([gate]);
    let plans = changes.waypoints();
    let plan = plans[0].1.as_ref().expect("it runs on");
    assert_eq!(plan.labels.keys().collect::<Vec<_>>(), ["team"]);
    assert_eq!(plan.annotations.keys().collect::<Vec<_>>(), ["note"]);
    world.write(changes);
    let status = &world.objects[&(Kind::Gateway, Key::new("shop", "gate"))]["status"];
    let message = status["conditions"][0]["message"]
        .as_str()
        .expect("a message");
    for dropped in [
        "label istio.io/dataplane-mode",
        "annotation eks.amazonaws.com/role-arn",
    ] {
        assert!(message.contains(dropped), "{message}");
    }
}

#[test]
fn a_field_that_would_not_happen_refuses_a_gateway_and_names_it() {
    for (field, value, wanted) in [
        ("newThing", json!(1), "newThing is not known"),
        ("tls", json!({"backend": {}}), "spec.tls is not supported"),
        (
            "listeners",
            json!([{"name": "mesh", "port": 15008, "protocol": "HBONE", "filters": {}}]),
            "listener",
        ),
    ] {
        let mut one = gateway("shop", "gate");
        one["spec"][field] = value;
        let mut world = World::new();
        let changes = world.apply([namespace("shop", json!({})), our_class(), one]);
        assert!(changes.waypoints().is_empty(), "{field}");
        let told = world.write(changes);
        assert!(
            told.iter().any(|note| note.contains(wanted)),
            "{field}: {told:?}"
        );
    }
}
