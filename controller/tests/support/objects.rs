//! Objects of a cluster, as little of each as the index reads.

use serde_json::{Value, json};

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "uid": format!("ns-{name}"), "labels": labels}})
}

pub fn node(name: &str, address: &str) -> Value {
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "uid": format!("node-{name}")},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// A ready pod on node n1; its UID is its name.
pub fn pod(namespace: &str, name: &str, ip: &str, labels: Value) -> Value {
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": labels},
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "default",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

pub fn service(namespace: &str, name: &str, ip: &str, app: &str, labels: Value) -> Value {
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": labels},
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "selector": {"app": app},
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}],
        },
    })
}

pub fn class(name: &str, controller: &str) -> Value {
    json!({
        "kind": "GatewayClass",
        "apiVersion": "gateway.networking.k8s.io/v1",
        "metadata": {"name": name, "uid": name, "generation": 1},
        "spec": {"controllerName": controller},
    })
}

pub fn our_class() -> Value {
    class("ambit-waypoint", "ambit.mesh/waypoint-controller")
}

pub fn gateway(namespace: &str, name: &str) -> Value {
    json!({
        "kind": "Gateway",
        "apiVersion": "gateway.networking.k8s.io/v1",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("gw-{name}"), "generation": 1, "labels": {}},
        "spec": {
            "gatewayClassName": "ambit-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

/// The reference to an object's controlling owner.
pub fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}

/// What the deployer and Kubernetes make of a Gateway: its Service, one ready pod, and what is between them.
pub fn waypoint(namespace: &str, name: &str) -> [Value; 4] {
    let labels = json!({
        "gateway.networking.k8s.io/gateway-name": name,
        "gateway.istio.io/managed": "ambit.mesh-waypoint-controller",
        "istio.io/dataplane-mode": "none",
    });
    let mut service = service(namespace, name, "10.96.0.99", "-", json!({}));
    service["metadata"]["labels"] = labels.clone();
    service["metadata"]["ownerReferences"] = owner("Gateway", name, &format!("gw-{name}"));
    service["spec"]["selector"] = json!({"gateway.networking.k8s.io/gateway-name": name});
    service["spec"]["ports"] = json!([{"name": "mesh", "port": 15008, "targetPort": 15008}]);
    let mut pod = pod(
        namespace,
        &format!("{name}-0"),
        "10.244.9.9",
        labels.clone(),
    );
    pod["spec"]["serviceAccountName"] = json!(name);
    let (set, deployment) = (format!("{name}-5d9"), format!("deploy-{name}"));
    pod["metadata"]["ownerReferences"] = owner("ReplicaSet", &set, &set);
    let made = |kind: &str, called: &str, uid: &str, owners: Value| {
        json!({
            "kind": kind,
            "apiVersion": "apps/v1",
            "metadata": {"namespace": namespace, "name": called, "uid": uid, "labels": labels, "ownerReferences": owners},
        })
    };
    let set = made(
        "ReplicaSet",
        &set,
        &set,
        owner("Deployment", name, &deployment),
    );
    let gateway = owner("Gateway", name, &format!("gw-{name}"));
    let deployment = made("Deployment", name, &deployment, gateway);
    [service, pod, set, deployment]
}

pub fn route(namespace: &str, name: &str, parents: Value, rules: Value) -> Value {
    json!({
        "kind": "HTTPRoute",
        "apiVersion": "gateway.networking.k8s.io/v1",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": format!("route-{name}"),
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"parentRefs": parents, "rules": rules},
    })
}
