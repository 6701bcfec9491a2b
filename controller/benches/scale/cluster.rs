//! A synthetic cluster: what a watch would tell of namespaces, nodes, services, slices and pods that run in the mesh.

use controller::index::kinds::Kind;
use serde_json::{Value, json};

use crate::Scenario;

/// Pods in a namespace.
const IN_NAMESPACE: usize = 1_000;
/// Pods on a node.
const ON_NODE: usize = 100;
/// Endpoints in a slice, as Kubernetes writes them.
const IN_SLICE: usize = 100;
/// The namespace of the mesh itself.
pub(crate) const SYSTEM: &str = "ambit-system";

/// The cluster of a scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    pods: usize,
    services: usize,
    streams: usize,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn of(scenario: &Scenario) -> Self {
        Self {
            pods: scenario.pods,
            services: scenario.services,
            streams: scenario.streams,
        }
    }

    /// All objects of a kind.
    pub(crate) fn objects(self, kind: Kind) -> Box<dyn Iterator<Item = Value>> {
        match kind {
            Kind::Namespace => Box::new(self.namespaces()),
            Kind::Node => Box::new(self.all_nodes()),
            Kind::Service => Box::new(self.all_services()),
            Kind::EndpointSlice => Box::new(self.all_slices()),
            Kind::Pod => Box::new(self.all_pods()),
            // There are none of the others.
            _ => Box::new(std::iter::empty()),
        }
    }

    fn nodes(&self) -> usize {
        self.pods.div_ceil(ON_NODE).max(self.streams)
    }

    /// The node of one stream's ztunnel.
    pub(crate) fn node(number: usize) -> String {
        format!("node-{number:05}")
    }

    fn namespaces(self) -> impl Iterator<Item = Value> {
        let one = |name: &str, labels: Value| {
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "uid": format!("ns-{name}"), "labels": labels, "resourceVersion": "1"},
                "status": {"phase": "Active"},
            })
        };
        let apps = (0..self.pods.div_ceil(IN_NAMESPACE)).map(move |number| {
            one(
                &namespace(number),
                json!({"istio.io/dataplane-mode": "ambient"}),
            )
        });
        apps.chain([one(SYSTEM, json!({}))])
    }

    fn all_nodes(self) -> impl Iterator<Item = Value> {
        (0..self.nodes()).map(|number| {
            let name = Self::node(number);
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "uid": name, "resourceVersion": "2", "labels": {
                    "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": format!("z{}", number % 3),
                }},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.{}.{}", number / 250, number % 250 + 1)}]},
            })
        })
    }

    fn all_services(self) -> impl Iterator<Item = Value> {
        (0..self.services).map(move |number| {
            let ip = format!(
                "10.{}.{}.{}",
                96 + number / 62_500,
                number / 250 % 250,
                number % 250 + 1
            );
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": service(number), "namespace": self.namespace_of_service(number),
                    "uid": format!("svc-{number}"), "resourceVersion": "3",
                },
                "spec": {
                    "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
                    "selector": {"app": service(number)},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
                },
            })
        })
    }

    /// The slices of every service, each of pods of its namespace.
    fn all_slices(self) -> impl Iterator<Item = Value> {
        (0..self.services).flat_map(move |number| {
            let members: Vec<usize> = self.members(number).collect();
            let slices: Vec<Value> = members
                .chunks(IN_SLICE)
                .enumerate()
                .map(|(slice, members)| self.slice(number, slice, members))
                .collect();
            slices
        })
    }

    fn slice(&self, number: usize, slice: usize, members: &[usize]) -> Value {
        let endpoints = members.iter().map(|pod| {
            json!({
                "addresses": [pod_ip(*pod)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": Self::node(self.node_of(*pod)),
                "targetRef": {"kind": "Pod", "namespace": namespace(pod / IN_NAMESPACE), "name": pod_name(*pod), "uid": pod_uid(*pod)},
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "addressType": "IPv4",
            "metadata": {
                "name": format!("{}-{slice}", service(number)), "namespace": self.namespace_of_service(number),
                "uid": format!("slice-{number}-{slice}"), "resourceVersion": "4",
                "labels": {"kubernetes.io/service-name": service(number)},
            },
            "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    /// Every pod: first the ztunnels that call, then those of applications.
    fn all_pods(self) -> impl Iterator<Item = Value> {
        let ztunnels = (0..self.streams).map(|number| {
            let name = format!("ztunnel-{number:05}");
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name, "namespace": SYSTEM, "uid": name, "resourceVersion": "5",
                    "labels": {"app": "ztunnel"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "ds-ztunnel", "controller": true}],
                },
                "spec": {
                    "nodeName": Self::node(number), "serviceAccountName": "ztunnel",
                    "containers": [{"name": "ztunnel", "image": "ztunnel"}],
                },
                "status": {
                    "phase": "Running",
                    "podIP": format!("172.16.{}.{}", number / 250, number % 250 + 1),
                    "podIPs": [{"ip": format!("172.16.{}.{}", number / 250, number % 250 + 1)}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            })
        });
        ztunnels.chain((0..self.pods).map(move |number| self.pod(number, "v1")))
    }

    /// One application's pod, as it is after so many changes.
    pub(crate) fn pod_after(&self, number: usize, changes: u64) -> Value {
        let mut pod = self.pod(number, &format!("v{changes}"));
        pod["metadata"]["resourceVersion"] = json!((20_000_000 + changes).to_string());
        pod
    }

    fn pod(&self, number: usize, version: &str) -> Value {
        let app = service(self.service_of(number));
        let ip = pod_ip(number);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod_name(number),
                "namespace": namespace(number / IN_NAMESPACE),
                "uid": pod_uid(number),
                "resourceVersion": (10 + number).to_string(),
                "labels": {"app": app, "version": version, "pod-template-hash": "7d9f8c5b6"},
                "annotations": {"ambient.istio.io/redirection": "enabled"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "name": format!("{app}-7d9f8c5b6"), "uid": format!("rs-{app}"),
                }],
            },
            "spec": {
                "nodeName": Self::node(self.node_of(number)),
                "serviceAccountName": app,
                "containers": [{
                    "name": "app", "image": "registry.example/shop/app:1.2.3",
                    "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}],
                    "env": [{"name": "A", "value": "b"}],
                }],
            },
            "status": {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "hostIP": "192.168.0.1",
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "ambit.mesh/InMesh", "status": "True", "reason": "Enrolled", "message": "traffic is redirected to the node's ztunnel", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ],
            },
        })
    }

    /// Which pod a resource is about.
    pub(crate) fn number(resource: &str) -> Option<usize> {
        resource.rsplit_once("/app-")?.1.parse().ok()
    }

    fn node_of(&self, pod: usize) -> usize {
        pod % self.nodes()
    }

    /// Services are spread over the namespaces, and pods of a namespace over its services.
    fn service_of(&self, pod: usize) -> usize {
        let namespaces = self.pods.div_ceil(IN_NAMESPACE);
        let in_namespace = self.services.div_ceil(namespaces).max(1);
        let space = pod / IN_NAMESPACE;
        (space * in_namespace + pod % in_namespace) % self.services
    }

    fn namespace_of_service(&self, number: usize) -> String {
        let namespaces = self.pods.div_ceil(IN_NAMESPACE);
        let in_namespace = self.services.div_ceil(namespaces).max(1);
        namespace(number / in_namespace)
    }

    fn members(&self, number: usize) -> impl Iterator<Item = usize> {
        let namespaces = self.pods.div_ceil(IN_NAMESPACE);
        let in_namespace = self.services.div_ceil(namespaces).max(1);
        let first = number / in_namespace * IN_NAMESPACE;
        let pods = first..(first + IN_NAMESPACE).min(self.pods);
        let this = *self;
        pods.filter(move |pod| this.service_of(*pod) == number)
    }
}

fn namespace(number: usize) -> String {
    format!("team-{number:04}")
}

fn service(number: usize) -> String {
    format!("shop-{number:05}")
}

fn pod_name(number: usize) -> String {
    format!("app-{number:07}")
}

fn pod_uid(number: usize) -> String {
    format!("6f9619ff-8b86-4d01-b42d-{number:012}")
}

fn pod_ip(number: usize) -> String {
    let number = number + 1;
    format!(
        "11.{}.{}.{}",
        number >> 16 & 255,
        number >> 8 & 255,
        number & 255
    )
}
