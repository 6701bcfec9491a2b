//! What is made for Gateways, and what is kept beside them: made, mended, handed over and taken away.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/reconciling.rs"]
mod reconciling;

use std::collections::BTreeMap;
use std::time::Duration;

use controller::index::desired::{Entry, Item, Wanted};
use controller::index::names::Key;
use controller::reconcile::FIELD_MANAGER;
use controller::reconcile::seen::Seen;
use controller::reconcile::waypoint::REPLICAS_MANAGER;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::kubernetes::{Call, Cluster, Fault};

use self::reconciling::{Reconciling, deployed, events, pass};
use controller::lease::Term;

#[tokio::test(start_paused = true)]
async fn one_gateway_that_cannot_be_deployed_delays_no_other() {
    let cluster = Cluster::new();
    cluster.put(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "bad", "name": "gate"},
        "spec": {},
    }));
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("bad", "gate");
    for tenant in 0..100 {
        reconciling.want_gateway(&format!("tenant{tenant}"), "gate");
    }
    let began = Instant::now();
    for tenant in 0..100 {
        deployed(&cluster, &format!("tenant{tenant}"), "gate").await;
    }
    assert!(began.elapsed() < Duration::from_secs(1));

    pass(Duration::from_secs(1200)).await;
    let looks = cluster.called("GET", "*/bad/services/gate").len();
    assert!((10..30).contains(&looks), "{looks} tries in 20 minutes");
    assert!(
        cluster.called("PATCH", "*/bad/*").is_empty(),
        "it is not ours"
    );
    let told: Vec<Value> = events(&cluster)
        .into_iter()
        .filter(|event| event["reason"] == "DeploymentFailed")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0]["note"]
            .as_str()
            .expect("a note")
            .contains("a Service of this name")
    );

    // Its name is free: the next try succeeds, or a change of the Gateway.
    cluster.remove("services", "bad", "gate");
    pass(Duration::from_secs(310)).await;
    deployed(&cluster, "bad", "gate").await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_gateways_that_hang_stop_nobody_elses() {
    let cluster = Cluster::new();
    cluster.spoil("*", "*/bad/*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    for gateway in 0..100 {
        reconciling.want_gateway("bad", &format!("gate{gateway}"));
    }
    pass(Duration::from_secs(60)).await;
    let began = Instant::now();
    reconciling.want_gateway("good", "gate");
    deployed(&cluster, "good", "gate").await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn replicas_are_said_once_and_are_whoevers_who_scales() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    let replicas = |cluster: &Cluster| {
        let deployment = cluster.get("deployments", "shop", "gate")?;
        deployment["spec"]["replicas"].as_i64()
    };
    cluster
        .until("two of them", |cluster| replicas(cluster) == Some(2))
        .await;
    cluster.edit("deployments", "shop", "gate", |deployment| {
        deployment["spec"]["replicas"] = json!(7);
    });
    cluster.forget_calls();
    pass(Duration::from_secs(900)).await;
    let patches = cluster.called("PATCH", "*/deployments/gate");
    assert!(!patches.is_empty(), "it is looked after");
    for patch in patches {
        assert!(patch.body["spec"]["replicas"].is_null(), "{:?}", patch.body);
    }
    assert_eq!(replicas(&cluster), Some(7));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_deletes_or_changes_is_made_again() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    deployed(&cluster, "shop", "gate").await;
    pass(Duration::from_secs(1)).await;
    cluster.remove("services", "shop", "gate");
    cluster.edit("deployments", "shop", "gate", |deployment| {
        deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil");
    });
    let seen = Seen::Child(Key::new("shop", "gate"));
    reconciling.seen.send(seen).await.expect("it listens");
    pass(Duration::from_secs(1)).await;
    deployed(&cluster, "shop", "gate").await;
    let deployment = cluster.get("deployments", "shop", "gate").expect("there");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "ambit/waypoint:test");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_wanted_is_taken_away_if_the_gateway_owns_it() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    deployed(&cluster, "shop", "gate").await;
    cluster.edit("services", "shop", "gate", |service| {
        service["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    });
    let item = Item::Waypoint(Key::new("shop", "gate"));
    let gone = Wanted::NoWaypoint {
        gateway_uid: "gw-shop-gate".into(),
    };
    reconciling.want(item, Entry::leader(gone));
    pass(Duration::from_secs(1)).await;
    assert!(cluster.get("deployments", "shop", "gate").is_none());
    assert!(cluster.get("serviceaccounts", "shop", "gate").is_none());
    assert!(cluster.get("services", "shop", "gate").is_some());
}

#[tokio::test(start_paused = true)]
async fn roots_classes_and_accepted_generations_are_kept_and_taken_away() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    let roots = Item::Roots("shop".into());
    reconciling.want(roots.clone(), Entry::leader(Wanted::Roots));
    let class = Item::Class("ambit-waypoint".into());
    reconciling.want(class, Entry::leader(Wanted::Class));
    let accepted = Item::Accepted("shop".into());
    let generations = BTreeMap::from([("HTTPRoute.r".to_owned(), "{}".to_owned())]);
    let entry = Entry::leader(Wanted::Accepted(generations));
    reconciling.want(accepted.clone(), entry);
    pass(Duration::from_secs(1)).await;
    let root = |cluster: &Cluster| cluster.get("configmaps", "shop", "ambit-ca-root-cert");
    let map = root(&cluster).expect("the roots");
    assert_eq!(map["data"]["root-cert.pem"], "the roots");
    assert!(
        cluster
            .get("gatewayclasses", "", "ambit-waypoint")
            .is_some()
    );
    let kept = |cluster: &Cluster| cluster.get("configmaps", "ambit-system", "ambit-accepted-shop");
    let map = kept(&cluster).expect("the generations");
    assert_eq!(map["data"]["HTTPRoute.r"], "{}");

    cluster.edit("configmaps", "shop", "ambit-ca-root-cert", |map| {
        map["data"]["root-cert.pem"] = json!("forged");
    });
    let seen = Seen::Roots("shop".into());
    reconciling.seen.send(seen).await.expect("it listens");
    pass(Duration::from_secs(1)).await;
    let map = root(&cluster).expect("the roots");
    assert_eq!(map["data"]["root-cert.pem"], "the roots");

    reconciling.roots.send_replace("other roots".to_owned());
    pass(Duration::from_secs(61)).await;
    let map = root(&cluster).expect("the roots");
    assert_eq!(map["data"]["root-cert.pem"], "other roots");

    reconciling.want(roots, Entry::leader(Wanted::NoRoots));
    reconciling.want(accepted, Entry::leader(Wanted::Accepted(BTreeMap::new())));
    pass(Duration::from_secs(1)).await;
    assert_eq!(root(&cluster), None);
    assert_eq!(kept(&cluster), None);
}

/// As an HPA would find it after an upgrade from a controller that applied the number itself.
#[tokio::test(start_paused = true)]
async fn replicas_that_were_ours_to_apply_are_handed_over_and_not_taken_away() {
    let cluster = Cluster::new();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client(), "shop");
    let applied = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "gate",
            "labels": {"gateway.istio.io/managed": "ambit.mesh-waypoint-controller"},
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": "gate",
                "uid": "gw-shop-gate",
                "controller": true,
            }],
        },
        "spec": {"replicas": 5},
    });
    let params = PatchParams::apply(FIELD_MANAGER);
    let patch = Patch::Apply(&applied);
    let made = deployments.patch("gate", &params, &patch).await;
    made.expect("applied");
    cluster.edit("deployments", "shop", "gate", |deployment| {
        deployment["metadata"]["managedFields"] = json!([{
            "manager": FIELD_MANAGER,
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}}},
        }]);
    });
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    deployed(&cluster, "shop", "gate").await;
    pass(Duration::from_secs(1)).await;
    let deployment = cluster.get("deployments", "shop", "gate").expect("there");
    assert_eq!(deployment["spec"]["replicas"], 5);
    let said = cluster.called("PATCH", "*/deployments/gate");
    let of = |call: &Call, name: &str| {
        let found = call.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    let managers: Vec<_> = said
        .iter()
        .skip(1)
        .filter_map(|call| of(call, "fieldManager"))
        .collect();
    assert_eq!(
        managers[0], REPLICAS_MANAGER,
        "before it is no longer applied"
    );
    assert_eq!(of(&said[1], "force"), None, "from nobody else");
    assert!(said[2].body["spec"]["replicas"].is_null());
}

#[tokio::test(start_paused = true)]
async fn revocation_lists_are_published_beside_the_roots_and_stay_while_they_cannot_be_read() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ca-crl.pem");
    let reconciling = Reconciling::publishing(&cluster, Term::always(), Some(path.clone()));
    let roots = Item::Roots("shop".into());
    reconciling.want(roots, Entry::leader(Wanted::Roots));
    let lists = |cluster: &Cluster| {
        let map = cluster.get("configmaps", "shop", "ambit-ca-root-cert");
        let data = map.expect("the roots")["data"].clone();
        assert_eq!(data["root-cert.pem"], "the roots");
        data["ca-crl.pem"].as_str().map(str::to_owned)
    };
    pass(Duration::from_secs(1)).await;
    assert_eq!(lists(&cluster), None);
    std::fs::write(&path, "lists").expect("written");
    pass(Duration::from_secs(61)).await;
    assert_eq!(lists(&cluster).as_deref(), Some("lists"));
    // Not a text.
    std::fs::write(&path, [0xff]).expect("written");
    pass(Duration::from_secs(61)).await;
    assert_eq!(lists(&cluster).as_deref(), Some("lists"));
    std::fs::write(&path, "others").expect("written");
    pass(Duration::from_secs(301)).await;
    assert_eq!(lists(&cluster).as_deref(), Some("others"));
    std::fs::remove_file(&path).expect("removed");
    pass(Duration::from_secs(61)).await;
    assert_eq!(lists(&cluster), None);
}
