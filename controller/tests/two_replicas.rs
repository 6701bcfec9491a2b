//! Two whole replicas over one Kubernetes: what they write comes to an end, whoever leads, and a new leader finds nothing to do.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/replica.rs"]
mod replica;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh::proto::node::enrolment_report::State;
use serde_json::{Value, json};

use self::kubernetes::Cluster;
use self::replica::Replica;

/// Everything that is due happens in this: a lost Lease, every resync, every confirmation.
const LONG: Duration = Duration::from_secs(400);

fn object(api: &str, kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut object = rest;
    object["apiVersion"] = json!(api);
    object["kind"] = json!(kind);
    object["metadata"]["name"] = json!(name);
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn namespace(name: &str, labels: &Value) -> Value {
    object(
        "v1",
        "Namespace",
        "",
        name,
        json!({"metadata": {"labels": labels}}),
    )
}

fn pod(namespace: &str, name: &str, ip: &str) -> Value {
    let rest = json!({
        "metadata": {"uid": name, "labels": {"app": "cart"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "default", "containers": []},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    object("v1", "Pod", namespace, name, rest)
}

fn service(namespace: &str, name: &str, ip: &str, labels: &Value) -> Value {
    let rest = json!({
        "metadata": {"labels": labels},
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    object("v1", "Service", namespace, name, rest)
}

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

fn gateway(namespace: &str, class: &str) -> Value {
    let rest = json!({"spec": {
        "gatewayClassName": class,
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
    }});
    object(GATEWAY_API, "Gateway", namespace, "gate", rest)
}

/// A namespace in the mesh, with two pods, and a Service with a route that is bound to a waypoint.
fn shop() -> Cluster {
    let cluster = Cluster::new();
    let bound = json!({"istio.io/use-waypoint": "gate"});
    let taken = {
        let mut taken = service("shop", "taken", "10.96.0.3", &json!({}));
        taken["spec"]["externalIPs"] = json!(["10.0.0.1"]);
        taken
    };
    let route = json!({"spec": {
        "parentRefs": [{"group": "", "kind": "Service", "name": "cart"}],
        "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}],
    }});
    for object in [
        namespace("ambit-system", &json!({})),
        namespace("shop", &json!({"istio.io/dataplane-mode": "ambient"})),
        namespace("odd", &json!({"istio.io/dataplane-mode": "sometimes"})),
        pod("shop", "a", "10.0.0.1"),
        pod("shop", "b", "10.0.0.2"),
        service("shop", "cart", "10.96.0.1", &bound),
        service(
            "shop",
            "lost",
            "10.96.0.2",
            &json!({"istio.io/use-waypoint": "nobody"}),
        ),
        taken,
        gateway("shop", "ambit-waypoint"),
        object(GATEWAY_API, "HTTPRoute", "shop", "cart", route),
    ] {
        cluster.put(object);
    }
    cluster
}

/// Kubernetes and the waypoint's image do their part: its pod runs.
fn run_waypoint(cluster: &Cluster) {
    let deployment = cluster
        .get("deployments", "shop", "gate")
        .expect("deployed");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let owned = |kind: &str, name: &str, uid: &Value| {
        json!({
            "labels": labels,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}],
        })
    };
    let meta = owned("Deployment", "gate", &deployment["metadata"]["uid"]);
    let set = object(
        "apps/v1",
        "ReplicaSet",
        "shop",
        "gate-1",
        json!({"metadata": meta}),
    );
    let set = cluster.put(set);
    let mut pod = pod("shop", "gate-1-0", "10.0.0.9");
    let uid = pod["metadata"]["uid"].take();
    pod["metadata"] = owned("ReplicaSet", "gate-1", &set["metadata"]["uid"]);
    pod["metadata"]["name"] = json!("gate-1-0");
    pod["metadata"]["namespace"] = json!("shop");
    pod["metadata"]["uid"] = uid;
    pod["spec"]["serviceAccountName"] = json!("gate");
    cluster.put(pod);
    cluster.edit("services", "shop", "gate", |service| {
        service["spec"]["clusterIP"] = json!("10.96.0.9");
        service["spec"]["clusterIPs"] = json!(["10.96.0.9"]);
    });
}

/// The version of every object that the controllers write.
fn versions(cluster: &Cluster) -> BTreeMap<String, String> {
    let kinds = [
        "namespaces",
        "pods",
        "services",
        "serviceaccounts",
        "configmaps",
        "deployments",
        "gatewayclasses",
        "gateways",
        "httproutes",
        "events",
    ];
    let all = kinds.iter().flat_map(|kind| {
        let objects = cluster.all(kind).into_iter();
        objects.map(move |object| {
            let meta = &object["metadata"];
            let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
            let name = format!("{kind} {}/{}", text("namespace"), text("name"));
            (name, text("resourceVersion"))
        })
    });
    all.collect()
}

/// Waits until everything has happened that is due, and sees that then nothing is written any more.
async fn rest(cluster: &Cluster) -> BTreeMap<String, String> {
    tokio::time::sleep(LONG).await;
    let before = versions(cluster);
    let calls = cluster.calls().len();
    tokio::time::sleep(LONG).await;
    let mut now = versions(cluster);
    now.retain(|name, version| before.get(name) != Some(version));
    let some: Vec<_> = now.iter().take(20).collect();
    assert!(now.is_empty(), "somebody still writes: {some:?}");
    let statuses = cluster.calls().split_off(calls).into_iter();
    let statuses: Vec<String> = statuses
        .filter(|call| call.verb == "PATCH" && call.path.ends_with("/status"))
        .map(|call| call.path)
        .collect();
    assert!(statuses.is_empty(), "{statuses:?}");
    before
}

fn condition(cluster: &Cluster, plural: &str, name: &str, kind: &str) -> String {
    let object = cluster.get(plural, "shop", name).expect("there");
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|one| one["type"] == kind);
    found.map_or("absent".to_owned(), |found| {
        let text = |field: &str| found[field].as_str().unwrap_or_default();
        format!("{} {}", text("status"), text("reason"))
    })
}

async fn leads(replica: &Replica) {
    let mut term = replica.term.clone();
    while !term.leads() {
        term.changed().await;
    }
}

fn roots(namespace: &str, label: &Value) -> Value {
    let rest = json!({"metadata": {"labels": label}, "data": {"root-cert.pem": "old"}});
    object("v1", "ConfigMap", namespace, "ambit-ca-root-cert", rest)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_starts_finds_what_another_had_to_take_away_when_it_ended() {
    let cluster = shop();
    let leader = Replica::start(&cluster, "controller-0");
    leads(&leader).await;
    rest(&cluster).await;
    drop(leader);
    // While none leads, the Gateway becomes another's, and others' things are there as ever.
    cluster.edit("gateways", "shop", "gate", |gateway| {
        gateway["spec"]["gatewayClassName"] = json!("nginx");
    });
    let managed = json!({"gateway.istio.io/managed": "ambit.mesh-waypoint-controller"});
    let ours = json!({"app.kubernetes.io/managed-by": "ambit"});
    let deployment = json!({"metadata": {"labels": managed}, "spec": {}});
    for object in [
        roots("left", &ours),
        roots("theirs", &json!({})),
        roots("running", &ours),
        object("apps/v1", "Deployment", "running", "gate", deployment),
    ] {
        cluster.put(object);
    }
    let leader = Replica::start(&cluster, "controller-1");
    leads(&leader).await;
    rest(&cluster).await;
    for plural in ["deployments", "services", "serviceaccounts"] {
        assert!(cluster.get(plural, "shop", "gate").is_none(), "{plural}");
    }
    let there = |namespace: &str| {
        cluster
            .get("configmaps", namespace, "ambit-ca-root-cert")
            .is_some()
    };
    assert_eq!(["shop", "left"].map(there), [false; 2]);
    assert_eq!(["theirs", "running", "ambit-system"].map(there), [true; 3]);
    // What ran there ends.
    cluster.remove("deployments", "running", "gate");
    rest(&cluster).await;
    assert!(!there("running"));
}

#[tokio::test(start_paused = true)]
async fn writes_end_whoever_leads_and_a_new_leader_finds_nothing_to_do() {
    let cluster = shop();
    let mut leader = Replica::start(&cluster, "controller-0");
    leads(&leader).await;
    let mut other = Replica::start(&cluster, "controller-1");
    rest(&cluster).await;
    run_waypoint(&cluster);
    // One pod's node speaks to the leader, the other's to the other.
    leader.report("n1", "a", State::Enrolled, "").await;
    other.report("n1", "b", State::Failed, "NoNetns").await;
    let mut before = rest(&cluster).await;
    let in_mesh =
        |cluster: &Cluster, pod: &str| condition(cluster, "pods", pod, "ambit.mesh/InMesh");
    assert_eq!(in_mesh(&cluster, "a"), "True Enrolled");
    assert_eq!(in_mesh(&cluster, "b"), "False NoNetns");
    let bound = |cluster: &Cluster, name: &str| {
        condition(cluster, "services", name, "istio.io/WaypointBound")
    };
    assert_eq!(bound(&cluster, "cart"), "True WaypointAccepted");
    assert!(bound(&cluster, "lost").starts_with("False"));
    assert_eq!(
        condition(&cluster, "gateways", "gate", "Programmed"),
        "True Programmed"
    );

    for turn in 0..3 {
        leader.abdicate();
        leads(&other).await;
        assert!(!leader.term.leads());
        assert_eq!(
            rest(&cluster).await,
            before,
            "turn {turn}: the new leader wrote"
        );
        // The old one goes, and with it what only it was told; a new one comes.
        leader = std::mem::replace(
            &mut other,
            Replica::start(&cluster, &format!("controller-{}", turn + 2)),
        );
        assert_eq!(
            rest(&cluster).await,
            before,
            "turn {turn}: the new replica wrote"
        );
        // Both react to a change, and come to rest.
        let labels = match turn % 2 {
            0 => json!({}),
            _ => json!({"istio.io/use-waypoint": "gate"}),
        };
        cluster.edit("services", "shop", "cart", |service| {
            service["metadata"]["labels"] = labels;
        });
        other
            .report(
                "n1",
                "b",
                [State::Enrolled, State::Failed][turn % 2],
                "NoNetns",
            )
            .await;
        before = rest(&cluster).await;
        let (pod, service) = match turn % 2 {
            0 => ("True Enrolled", "absent"),
            _ => ("False NoNetns", "True WaypointAccepted"),
        };
        assert_eq!(in_mesh(&cluster, "b"), pod, "turn {turn}");
        assert_eq!(bound(&cluster, "cart"), service, "turn {turn}");
    }
}
