//! One namespace with everything that the table asks for, and a question put to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::apps::{EchoClient, Namespace, apply_objects};
use e2e::images::ECHO_IMAGE;
use e2e::probe::{PodRef, eventually};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::cases::{Case, Who};

/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Until what was written is everywhere.
const SOON: Duration = Duration::from_secs(20);
/// Questions for one answer: who never answers in so many is not among those who do.
const COUNT: &str = "--count=14";
/// Longer than the test lasts: the pod that leaves serves until the end.
const DRAIN_SECONDS: u32 = 170;

pub(crate) struct Scene<'a> {
    ns: &'a Namespace,
    client: PodRef,
    host: PodRef,
    /// What `{name}` stands for in a URL.
    names: BTreeMap<&'static str, String>,
}

impl<'a> Scene<'a> {
    /// Makes everything, and waits until it is there. The number tells two scenes of one cluster apart, which share its
    /// nodes' ports and addresses.
    pub(crate) async fn set(ns: &'a Namespace, number: u16) -> Result<Self> {
        let (server_port, host_port) = (18_080 + number, 18_090 + number);
        let (external, balancer) = (
            format!("203.0.113.{}", 10 + number),
            format!("198.51.100.{}", 10 + number),
        );
        let pods = [
            Server::new("a", "web", "worker-1")
                .named(8080)
                .host_port(host_port),
            Server::new("b", "web", "worker-2").named(8082),
            Server::new("late", "late", "worker-2").never_ready(),
            Server::new("leaving", "leaving", "worker-1"),
            Server::new("host", "host", "worker-2").on_host(server_port),
        ];
        let objects = pods.iter().map(Server::object);
        let objects = objects.chain(services(server_port, &external));
        apply_objects(ns.client(), Some(ns.name()), objects).await?;
        let client = ns.start(&EchoClient::new("client").on("worker-1")).await?;
        let host = ns
            .start(&EchoClient::new("host-client").on("worker-2").host_network())
            .await?;
        for name in ["a", "b", "leaving", "host", "client", "host-client"] {
            ns.pod(name).wait_ready(START).await?;
        }
        let running = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        ns.pod("late")
            .wait("has an address", START, running)
            .await?;
        let mut scene = Self {
            ns,
            client,
            host,
            names: BTreeMap::new(),
        };
        scene
            .name(&external, &balancer, server_port, host_port)
            .await?;
        scene.list().await?;
        scene.begin_leaving().await?;
        Ok(scene)
    }

    /// What a case comes to: as expected as soon as it is, else what it came to last.
    pub(crate) async fn ask(&self, case: &Case) -> Result<String> {
        let expected = [Some(case.without), case.with];
        let mut last = String::new();
        let done = eventually(case.name, SOON, async || {
            let answer = self.answer(case).await?;
            let good = expected.contains(&Some(&answer));
            last.clone_from(&answer);
            ensure!(good, "{answer}");
            Ok(answer)
        });
        match done.await {
            Ok(answer) => Ok(answer),
            Err(_) if !last.is_empty() => Ok(last),
            Err(error) => Err(error),
        }
    }

    async fn answer(&self, case: &Case) -> Result<String> {
        let mut url = case.url.to_owned();
        for (name, value) in &self.names {
            url = url.replace(&format!("{{{name}}}"), value);
        }
        let own = self.ns.pod("a");
        let from = match case.from {
            Who::Client => &self.client,
            Who::Host => &self.host,
            Who::A => &own,
        };
        let command = [
            "/usr/local/bin/ambit-echo",
            "client",
            &url,
            COUNT,
            "--timeout=4s",
        ];
        let output = from.exec(&command).await?;
        let answers = e2e::echo::Answer::parse_all(&output.stdout);
        let who: BTreeSet<&str> = answers
            .iter()
            .filter_map(|answer| answer.hostname())
            .collect();
        // On the host's network it has the node's name.
        let who = who.into_iter().map(|name| {
            if name.starts_with("worker") {
                "host"
            } else {
                name
            }
        });
        let who: Vec<&str> = who.collect();
        if !who.is_empty() && output.code != 0 {
            return Ok(format!(
                "{}, and {}",
                who.join(" "),
                failure(&output.stderr)
            ));
        }
        let one = case.without.strip_prefix("one of ");
        Ok(match (&who[..], one) {
            ([], _) => failure(&output.stderr),
            ([one], Some(of)) if of.split(' ').any(|name| name == *one) => case.without.to_owned(),
            _ => who.join(" "),
        })
    }

    async fn name(
        &mut self,
        external: &str,
        balancer: &str,
        server_port: u16,
        host_port: u16,
    ) -> Result<()> {
        let a = self.ns.pod("a").ips().await?;
        let b = self.ns.pod("b").ips().await?;
        let nodes = Api::<Node>::all(self.ns.client().clone());
        let node = async |name: &str| {
            let node = nodes.get(name).await?;
            let addresses = node.status.and_then(|status| status.addresses);
            let mut addresses = addresses.into_iter().flatten();
            let internal =
                addresses.find(|one| one.type_ == "InternalIP" && !one.address.contains(':'));
            internal
                .map(|one| one.address)
                .context("a node without address")
        };
        let services: Api<Service> = self.ns.api();
        let ported = services.get("ported").await?;
        let ports = ported.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let node_port = ports
            .first()
            .and_then(|port| port.node_port)
            .context("no node port")?;
        let worker = node("worker-2").await?;
        self.names = BTreeMap::from([
            ("a", v4(&a)?),
            ("b", v4(&b)?),
            ("worker-1", node("worker-1").await?),
            ("host", worker.clone()),
            ("worker-2", worker),
            ("external", external.to_owned()),
            ("balancer", balancer.to_owned()),
            ("node-port", node_port.to_string()),
            ("server-port", server_port.to_string()),
            ("host-port", host_port.to_string()),
        ]);
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": balancer}]}}});
        let how = PatchParams::default();
        services
            .patch_status("balanced", &how, &Patch::Merge(&status))
            .await?;
        Ok(())
    }

    /// The EndpointSlices that people write.
    async fn list(&self) -> Result<()> {
        let address = |name: &str| v4_named(&self.names, name);
        let late = v4(&self.ns.pod("late").ips().await?)?;
        let pod = |name: &str, at: &str, ready: bool| {
            json!({"addresses": [at], "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": name, "namespace": self.ns.name()}})
        };
        let (a, b) = (address("a")?, address("b")?);
        let slices = [
            slice("listed", "listed", &[pod("a", &a, true)]),
            slice(
                "bare",
                "bare",
                &[json!({"addresses": [b], "conditions": {"ready": true}})],
            ),
            slice(
                "several-1",
                "several",
                &[pod("a", &a, true), pod("late", &late, false)],
            ),
            slice("several-2", "several", &[pod("b", &b, true)]),
            slice("beside", "beside", &[pod("b", &b, true)]),
        ];
        apply_objects(self.ns.client(), Some(self.ns.name()), slices)
            .await
            .map(drop)
    }

    /// Takes the pod `leaving` away, which serves until it is gone, and waits until Kubernetes says that.
    async fn begin_leaving(&self) -> Result<()> {
        let leaving = self.ns.pod("leaving");
        leaving
            .api()
            .delete("leaving", &DeleteParams::default())
            .await?;
        let slices: Api<EndpointSlice> = self.ns.api();
        let of = ListParams::default().labels("kubernetes.io/service-name=leaving");
        eventually("serving and terminating", START, async || {
            let all = slices.list(&of).await?;
            let mut endpoints = all.items.iter().flat_map(|slice| &slice.endpoints);
            let is = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
                endpoint.conditions.as_ref().is_some_and(|one| {
                    one.terminating == Some(true)
                        && one.serving == Some(true)
                        && one.ready == Some(false)
                })
            };
            ensure!(endpoints.any(is), "{all:?}");
            Ok(())
        })
        .await
    }
}

/// How a connection failed, in a word.
fn failure(stderr: &str) -> String {
    let words = [
        ("Connection refused", "refused"),
        ("reset by peer", "reset"),
        ("no answer within", "no answer"),
        ("closed before", "reset"),
    ];
    let found = words.iter().find(|(text, _)| stderr.contains(text));
    found.map_or_else(
        || stderr.lines().next().unwrap_or("nothing").to_owned(),
        |(_, word)| (*word).to_owned(),
    )
}

fn v4(ips: &[std::net::IpAddr]) -> Result<String> {
    let v4 = ips.iter().find(|ip| ip.is_ipv4());
    v4.map(ToString::to_string).context("no IPv4 address")
}

fn v4_named(names: &BTreeMap<&'static str, String>, name: &str) -> Result<String> {
    match names.get(name) {
        Some(address) => Ok(address.clone()),
        None => bail!("nothing is called {name}"),
    }
}

/// An echo server, with what the table needs of it.
struct Server {
    name: &'static str,
    app: &'static str,
    node: &'static str,
    /// What the port `named` is here.
    named: Option<u16>,
    host_port: Option<u16>,
    on_host: Option<u16>,
    ready: bool,
}

impl Server {
    fn new(name: &'static str, app: &'static str, node: &'static str) -> Self {
        Self {
            name,
            app,
            node,
            named: None,
            host_port: None,
            on_host: None,
            ready: true,
        }
    }

    fn named(mut self, port: u16) -> Self {
        self.named = Some(port);
        self
    }

    fn host_port(mut self, port: u16) -> Self {
        self.host_port = Some(port);
        self
    }

    fn on_host(mut self, port: u16) -> Self {
        self.on_host = Some(port);
        self
    }

    fn never_ready(mut self) -> Self {
        self.ready = false;
        self
    }

    fn object(&self) -> Value {
        let port = self.on_host.unwrap_or(8080);
        let mut args = vec![
            format!("--port={port}"),
            format!("--drain={DRAIN_SECONDS}s"),
        ];
        let mut ports = Vec::new();
        if self.on_host.is_none() {
            args.push("--port=8082".to_owned());
        }
        if let Some(named) = self.named {
            ports.push(json!({"name": "named", "containerPort": named}));
        }
        if let Some(host_port) = self.host_port {
            ports.push(json!({"name": "hosted", "containerPort": 8082, "hostPort": host_port}));
        }
        // Where nobody listens, a pod is never ready.
        let probed = if self.ready { port } else { 1 };
        let grace = if self.app == "leaving" {
            DRAIN_SECONDS + 10
        } else {
            1
        };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"app": self.app, "version": self.name}},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": self.node},
                "hostNetwork": self.on_host.is_some(),
                "terminationGracePeriodSeconds": grace,
                "containers": [{
                    "name": "echo",
                    "image": ECHO_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "args": args,
                    "ports": ports,
                    "readinessProbe": {"httpGet": {"path": "/", "port": probed}, "periodSeconds": 1},
                }],
            },
        })
    }
}

fn services(server_port: u16, external: &str) -> Vec<Value> {
    let web = || json!({"app": "web"});
    let one = |name: &str, selector: Value, more: Value| {
        let mut spec = json!({"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let to = |target: Value| json!({"ports": [{"name": "http", "port": 80, "targetPort": target}]});
    vec![
        one("web", web(), json!({})),
        one("only-a", json!({"version": "a"}), json!({})),
        one("named", web(), to(json!("named"))),
        one("headless", web(), json!({"clusterIP": "None"})),
        one("hosts", json!({"app": "host"}), to(json!(server_port))),
        one("nobody", json!({"app": "nobody"}), json!({})),
        one("late", json!({"app": "late"}), json!({})),
        one(
            "early",
            json!({"app": "late"}),
            json!({"publishNotReadyAddresses": true}),
        ),
        one("leaving", json!({"app": "leaving"}), json!({})),
        one("listed", Value::Null, json!({})),
        one("bare", Value::Null, json!({})),
        one("several", Value::Null, json!({})),
        one("beside", json!({"version": "a"}), json!({})),
        one("local", web(), json!({"internalTrafficPolicy": "Local"})),
        one("sticky", web(), json!({"sessionAffinity": "ClientIP"})),
        one("outside", web(), json!({"externalIPs": [external]})),
        one("balanced", web(), json!({"type": "LoadBalancer"})),
        one("ported", web(), json!({"type": "NodePort"})),
    ]
}

fn slice(name: &str, service: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}
