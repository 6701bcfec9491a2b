//! Echo servers and clients as Kubernetes objects.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Map, Value, json};

use super::{Namespace, apply_objects};
use crate::images::ECHO_IMAGE;
use crate::probe::{self, PodRef};

/// Service port, port of the container, protocol: what the conformance suite's own fixture has, and server-first TCP.
const PORTS: [(u16, u16, &str, &str); 6] = [
    (80, 8080, "http", "http"),
    (8080, 8080, "http-alt", "http"),
    (443, 8443, "https", "https"),
    (9090, 9090, "tcp", "tcp"),
    (9091, 9091, "tcp-server-first", "tcp"),
    (7070, 7070, "grpc", "grpc"),
];

/// A Deployment `<app>-<version>` of echo servers with a Service of the same name.
#[derive(Clone, Debug)]
pub struct EchoServer {
    app: String,
    version: String,
    node: Option<String>,
    replicas: u32,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    account: String,
}

impl EchoServer {
    /// One replica anywhere, under the service account `<app>`.
    pub fn new(app: &str, version: &str) -> Self {
        Self {
            app: app.to_owned(),
            version: version.to_owned(),
            node: None,
            replicas: 1,
            labels: Map::new(),
            annotations: Map::new(),
            account: app.to_owned(),
        }
    }

    /// On this node only.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// So many.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// With one more label on the pods.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.into());
        self
    }

    /// With one more annotation on the pods.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Under this service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// The name of its Deployment and Service.
    pub fn name(&self) -> String {
        format!("{}-{}", self.app, self.version)
    }

    /// The objects, in the order to apply them: account, Services `<app>` and `<app>-<version>`, Deployment.
    pub fn objects(&self) -> Vec<Value> {
        let (app, version, name) = (&self.app, &self.version, self.name());
        vec![
            service_account(&self.account),
            service(app, &json!({"app": app}), false),
            service(&name, &json!({"app": app, "version": version}), false),
            self.deployment(),
        ]
    }

    fn deployment(&self) -> Value {
        let (app, version, name) = (&self.app, &self.version, self.name());
        let mut labels = self.labels.clone();
        labels.insert("app".into(), app.as_str().into());
        labels.insert("version".into(), version.as_str().into());
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": {"app": app, "version": version}},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": app, "version": version}},
                "template": {
                    "metadata": {"labels": labels, "annotations": self.annotations},
                    "spec": {
                        "serviceAccountName": self.account,
                        "nodeSelector": node_selector(self.node.as_deref()),
                        "terminationGracePeriodSeconds": 5,
                        "containers": [{
                            "name": "echo",
                            "image": ECHO_IMAGE,
                            "imagePullPolicy": "IfNotPresent",
                            "args": [
                                "--port=8080", "--port=8443", "--tls=8443", "--crt=/cert.crt", "--key=/cert.key",
                                "--grpc=7070", "--tcp=9090", "--server-first=9091",
                                format!("--version={version}"),
                                // So that connections still on their way when the pod is taken out find it there.
                                "--drain=2s",
                            ],
                            "ports": [{"containerPort": 8080}],
                            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                        }],
                    },
                },
            },
        })
    }
}

/// A pod that only sleeps, to send requests from.
#[derive(Clone, Debug)]
pub struct EchoClient {
    name: String,
    node: Option<String>,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    account: String,
    host_network: bool,
}

impl EchoClient {
    /// A pod of this name, under the service account of this name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            labels: Map::new(),
            annotations: Map::new(),
            account: name.to_owned(),
            host_network: false,
        }
    }

    /// On this node only.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.into());
        self
    }

    /// With one more annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Under this service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// In its node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The objects, in the order to apply them.
    pub fn objects(&self) -> Vec<Value> {
        let mut labels = self.labels.clone();
        labels.insert("app".into(), self.name.as_str().into());
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": labels, "annotations": self.annotations},
            "spec": {
                "serviceAccountName": self.account,
                "nodeSelector": node_selector(self.node.as_deref()),
                "hostNetwork": self.host_network,
                "dnsPolicy": if self.host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "echo",
                    "image": ECHO_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/usr/local/bin/ambit-echo", "sleep"],
                }],
            },
        });
        vec![service_account(&self.account), pod]
    }
}

/// A Service with the echo app's ports; a headless one has no address of its own.
pub fn service(name: &str, selector: &Value, headless: bool) -> Value {
    let ports: Vec<Value> = PORTS
        .iter()
        .map(|(port, target, name, protocol)| {
            json!({"port": port, "targetPort": target, "name": name, "appProtocol": protocol})
        })
        .collect();
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ipFamilyPolicy": "PreferDualStack", "selector": selector, "ports": ports},
    });
    if headless {
        service["spec"]["clusterIP"] = "None".into();
    }
    service
}

fn service_account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

fn node_selector(node: Option<&str>) -> Value {
    node.map_or_else(|| json!({}), |node| json!({"kubernetes.io/hostname": node}))
}

impl Namespace {
    /// Applies an echo server, its Services and account, without waiting.
    pub async fn deploy(&self, server: &EchoServer) -> Result<()> {
        apply_objects(self.client(), Some(self.name()), server.objects())
            .await
            .map(drop)
    }

    /// Applies an echo server and waits until all its replicas are available.
    pub async fn serve(&self, server: &EchoServer, within: Duration) -> Result<()> {
        self.deploy(server).await?;
        let available =
            probe::wait_available(self.api::<Deployment>(), &server.name(), within).await;
        self.explain(available).await
    }

    /// Applies a client pod, without waiting.
    pub async fn start(&self, client: &EchoClient) -> Result<PodRef> {
        apply_objects(self.client(), Some(self.name()), client.objects()).await?;
        Ok(self.pod(&client.name))
    }

    /// Applies a client pod and waits until it is ready.
    pub async fn run(&self, client: &EchoClient, within: Duration) -> Result<PodRef> {
        let pod = self.start(client).await?;
        let ready = pod.wait_ready(within).await;
        self.explain(ready).await?;
        Ok(pod)
    }

    /// Adds to an error what the namespace's Events say.
    async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let troubles = self.troubles().await;
                Err(error.context(format!("in namespace {}: {troubles}", self.name())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_what_kubernetes_knows() {
        let server = EchoServer::new("echo", "v1")
            .on("worker-1")
            .replicas(2)
            .label("a", "b");
        let objects = server.objects();
        let kinds: Vec<_> = objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap_or_default())
            .collect();
        assert_eq!(
            kinds,
            ["ServiceAccount", "Service", "Service", "Deployment"]
        );
        let deployment: Deployment =
            serde_json::from_value(objects[3].clone()).expect("a Deployment");
        let pod = deployment.spec.expect("a spec").template;
        let labels = pod
            .metadata
            .and_then(|metadata| metadata.labels)
            .expect("labels");
        assert_eq!(labels.len(), 3);
        let node = pod
            .spec
            .and_then(|spec| spec.node_selector)
            .expect("a node");
        assert_eq!(node["kubernetes.io/hostname"], "worker-1");
        let client = EchoClient::new("client").on("worker-2").objects();
        serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(client[1].clone())
            .expect("a Pod");
    }
}
