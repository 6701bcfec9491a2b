//! The objects that run a waypoint, as they are applied.

use serde_json::{Map, Value, json};

use crate::ca::roots::{CONFIG_MAP, REVOCATIONS};
use crate::discovery::authenticate::AUDIENCE;
use crate::index::changes::WaypointPlan;
use crate::index::names::{GATEWAY_NAME, HBONE_PORT, Key, MANAGED, MANAGED_BY_US};
use crate::waypoint::child::Child;

/// What every waypoint of this mesh has in common.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// What runs.
    pub image: String,
    /// When it is pulled.
    pub pull_policy: String,
    /// Where the controller is.
    pub xds_address: String,
    /// Of the identities.
    pub trust_domain: String,
    /// Of the UIDs.
    pub cluster_id: String,
    /// The network whose addresses they dial.
    pub network: String,
    /// Of the services' names.
    pub cluster_domain: String,
    /// `text` or `json`.
    pub log_format: String,
}

/// Replicas of a new waypoint. Not part of what is applied: whoever scales it owns the number.
pub const REPLICAS: i64 = 2;
/// Nobody, and not root.
const USER: i64 = 1337;

/// ServiceAccount, Service and Deployment, in the order in which they are applied.
pub fn all(mesh: &Mesh, gateway: &Key, plan: &WaypointPlan) -> [(Child, Value); 3] {
    [
        (
            Child::ServiceAccount,
            object("v1", "ServiceAccount", gateway, plan, json!({})),
        ),
        (
            Child::Service,
            object(
                "v1",
                "Service",
                gateway,
                plan,
                json!({"spec": service(gateway)}),
            ),
        ),
        (
            Child::Deployment,
            object(
                "apps/v1",
                "Deployment",
                gateway,
                plan,
                json!({"spec": deployment(mesh, gateway, plan)}),
            ),
        ),
    ]
}

fn object(version: &str, kind: &str, gateway: &Key, plan: &WaypointPlan, mut rest: Value) -> Value {
    rest["apiVersion"] = json!(version);
    rest["kind"] = json!(kind);
    rest["metadata"] = json!({
        "name": &*gateway.name,
        "namespace": &*gateway.namespace,
        "labels": labels(gateway, plan),
        "annotations": annotations(kind, plan),
        "ownerReferences": [{
            "apiVersion": crate::gateway_api::API_VERSION,
            "kind": "Gateway",
            "name": &*gateway.name,
            "uid": &*plan.uid,
            "controller": true,
        }],
    });
    rest
}

/// What a Gateway passes on. An account gets nothing: clouds give rights to accounts by their annotations.
fn annotations(kind: &str, plan: &WaypointPlan) -> Value {
    if kind == "ServiceAccount" {
        json!({})
    } else {
        json!(plan.annotations)
    }
}

/// What a Gateway passes on, under what must be so.
fn labels(gateway: &Key, plan: &WaypointPlan) -> Map<String, Value> {
    let passed_on = plan
        .labels
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)));
    let mut labels: Map<String, Value> = passed_on.collect();
    labels.extend(selector(gateway));
    labels.insert(MANAGED.to_owned(), json!(MANAGED_BY_US));
    labels
}

fn selector(gateway: &Key) -> Map<String, Value> {
    Map::from_iter([(GATEWAY_NAME.to_owned(), json!(&*gateway.name))])
}

fn service(gateway: &Key) -> Value {
    json!({
        "type": "ClusterIP",
        "ipFamilyPolicy": "PreferDualStack",
        "selector": selector(gateway),
        "ports": [
            {"name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP", "appProtocol": "tcp"},
            {"name": "mesh", "port": HBONE_PORT, "targetPort": HBONE_PORT, "protocol": "TCP", "appProtocol": "hbone"},
        ],
    })
}

fn deployment(mesh: &Mesh, gateway: &Key, plan: &WaypointPlan) -> Value {
    let mut pod_labels = labels(gateway, plan);
    pod_labels.insert("istio.io/dataplane-mode".to_owned(), json!("none"));
    pod_labels.insert(
        "service.istio.io/canonical-name".to_owned(),
        json!(&*gateway.name),
    );
    pod_labels.insert(
        "service.istio.io/canonical-revision".to_owned(),
        json!("latest"),
    );
    let mut annotations = json!(plan.annotations);
    for (name, value) in [
        ("prometheus.io/scrape", "true"),
        ("prometheus.io/port", "15020"),
    ] {
        annotations[name] = json!(value);
    }
    json!({
        "selector": {"matchLabels": selector(gateway)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": pod_labels, "annotations": annotations},
            "spec": pod(mesh, gateway),
        },
    })
}

fn pod(mesh: &Mesh, gateway: &Key) -> Value {
    json!({
        "serviceAccountName": &*gateway.name,
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 45,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [over_nodes(gateway)],
        "affinity": {"podAntiAffinity": over_zones(gateway)},
        "containers": [container(mesh, gateway)],
        "volumes": [
            {"name": "root", "configMap": {"name": CONFIG_MAP}},
            {"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": 43200, "path": "istio-token"}},
            ]}},
        ],
    })
}

fn over_nodes(gateway: &Key) -> Value {
    json!({
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(gateway)},
        "matchLabelKeys": ["pod-template-hash"],
    })
}

/// Zones are no second spread constraint beside nodes: the scheduler passes over every node that lacks one of the keys, and
/// so would spread over no nodes at all where nodes name no zone.
fn over_zones(gateway: &Key) -> Value {
    json!({
        "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "topology.kubernetes.io/zone",
                "labelSelector": {"matchLabels": selector(gateway)},
            },
        }],
    })
}

fn container(mesh: &Mesh, gateway: &Key) -> Value {
    let probe = |failures: u32, period: u32| {
        json!({
            "httpGet": {"path": "/healthz/ready", "port": 15021},
            "failureThreshold": failures,
            "periodSeconds": period,
            "timeoutSeconds": 3,
        })
    };
    json!({
        "name": "waypoint",
        "image": mesh.image,
        "imagePullPolicy": mesh.pull_policy,
        "env": env(mesh, gateway),
        "ports": [
            {"name": "mesh", "containerPort": HBONE_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 15020, "protocol": "TCP"},
            {"name": "status-port", "containerPort": 15021, "protocol": "TCP"},
        ],
        "startupProbe": probe(60, 1),
        "readinessProbe": probe(3, 3),
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
        },
        "volumeMounts": [
            {"name": "root", "mountPath": "/var/run/secrets/ambit/root", "readOnly": true},
            {"name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
        ],
    })
}

fn env(mesh: &Mesh, gateway: &Key) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    json!([
        field("NODE_NAME", "spec.nodeName"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        value("GATEWAY_NAME", &gateway.name),
        value("XDS_ADDRESS", &mesh.xds_address),
        value("CA_ADDRESS", &mesh.xds_address),
        value("XDS_ROOT_CA", "/var/run/secrets/ambit/root/root-cert.pem"),
        // Published beside the roots, where the mesh has any.
        value(
            "CRL_PATH",
            &format!("/var/run/secrets/ambit/root/{REVOCATIONS}")
        ),
        value("AUTH_TOKEN", "/var/run/secrets/tokens/istio-token"),
        value("TRUST_DOMAIN", &mesh.trust_domain),
        value("CLUSTER_ID", &mesh.cluster_id),
        value("NETWORK", &mesh.network),
        value("CLUSTER_DOMAIN", &mesh.cluster_domain),
        value("LOG_FORMAT", &mesh.log_format),
        value("TERMINATION_GRACE_PERIOD_SECONDS", "45"),
    ])
}
