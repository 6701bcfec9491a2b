//! What is applied for a Gateway, as a whole.

#[path = "support/settings.rs"]
mod settings;

use std::collections::BTreeMap;

use controller::index::changes::WaypointPlan;
use controller::index::names::Key;
use controller::waypoint::child::Child;
use controller::waypoint::render::all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};

fn rendered() -> BTreeMap<&'static str, serde_json::Value> {
    let plan = WaypointPlan {
        uid: "u1".into(),
        class: "ambit-waypoint".into(),
        // A Gateway may pass labels on, and not take ours away.
        labels: BTreeMap::from([
            ("team".to_owned(), "red".to_owned()),
            ("gateway.istio.io/managed".to_owned(), "me".to_owned()),
            ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned()),
        ]),
        annotations: BTreeMap::from([("note".to_owned(), "hello".to_owned())]),
        unlabelled: Vec::new(),
    };
    let all = all(&settings::waypoints(), &Key::new("shop", "gate"), &plan);
    let plural = |child: Child| match child {
        Child::Deployment => "deployments",
        Child::Service => "services",
        Child::ServiceAccount => "serviceaccounts",
    };
    all.map(|(child, object)| (plural(child), object)).into()
}

#[test]
fn what_is_applied_is_as_reviewed() {
    insta::assert_yaml_snapshot!(rendered());
}

/// A second constraint would switch both off on nodes that lack its key, zones say.
#[test]
fn instances_are_spread_over_nodes_whether_or_not_nodes_name_a_zone() {
    let deployment = &rendered()["deployments"];
    let spec = &deployment["spec"]["template"]["spec"];
    let constraints = spec["topologySpreadConstraints"].as_array();
    let keys = constraints.into_iter().flatten();
    let keys: Vec<_> = keys.map(|one| one["topologyKey"].as_str()).collect();
    assert_eq!(keys, [Some("kubernetes.io/hostname")]);
    let zones =
        &spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    let zones = &zones[0]["podAffinityTerm"];
    assert_eq!(zones["topologyKey"], "topology.kubernetes.io/zone");
    assert_eq!(
        zones["labelSelector"]["matchLabels"],
        deployment["spec"]["selector"]["matchLabels"]
    );
}

#[test]
fn kubernetes_would_read_it() {
    let objects = rendered();
    let deployment: Deployment =
        serde_json::from_value(objects["deployments"].clone()).expect("a Deployment");
    serde_json::from_value::<Service>(objects["services"].clone()).expect("a Service");
    let account: ServiceAccount =
        serde_json::from_value(objects["serviceaccounts"].clone()).expect("a ServiceAccount");
    let annotations = account.metadata.annotations.unwrap_or_default();
    assert!(
        annotations.is_empty(),
        "{annotations:?} would give it rights"
    );
    let template = deployment.spec.expect("a spec").template;
    let labels = template.metadata.expect("metadata").labels.expect("labels");
    assert_eq!(
        labels["gateway.istio.io/managed"],
        "ambit.mesh-waypoint-controller"
    );
    assert_eq!(labels["istio.io/dataplane-mode"], "none");
    assert_eq!(labels["team"], "red");
}
