//! Who is who: neither labels, nor static pods, nor another's token make anybody what he is not.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace};
use e2e::cluster::{Cluster, STATIC_PODS};
use e2e::images::ECHO_IMAGE;
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::{PodRef, has_condition, wait_gone};
use k8s_openapi::api::core::v1::Pod;
use mesh::ca::{Caller, obtain};
use mesh::xds::ADDRESS_TYPE;
use mesh::xds::node::NodeInfo;
use serde_json::json;

use super::callers::{Controller, identity, is_denied, token, ztunnel_of};
use super::shop::{self, AMBIENT, SOON, START, WAYPOINT_PODS};

const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "ambit.mesh-waypoint-controller");
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn labels_make_no_waypoint() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "labels", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        shop::bind(ns, &asks).await?;
        let like_one = EchoServer::new("fake", "v1")
            .account("web")
            .label(GATEWAY_NAME, "waypoint")
            .label(MANAGED.0, MANAGED.1);
        ns.serve(&like_one, START).await?;
        let fake = ns.pods("app=fake").await?.pop().context("no fake")?;

        // Its token opens no waypoint's view, of whatever Gateway it says it is.
        let controller = Controller::reach(&cluster, ns.client()).await?;
        let shown = token(&fake, "web").await?;
        for gateway in ["waypoint", "web"] {
            let who = like_a_waypoint(&fake, gateway).await?;
            let answer = controller.discover(&shown, who, ADDRESS_TYPE).await?;
            let refusal = answer.err().context("it was given addresses")?;
            println!("discovery: {refusal:?}");
            ensure!(
                refusal.code() == tonic::Code::PermissionDenied,
                "{refusal:?}"
            );
        }
        // A real one's is answered, so the refusal is for its reason.
        let real = real_waypoint(ns).await?;
        let shown = token(&real, "waypoint").await?;
        let who = like_a_waypoint(&real, "waypoint").await?;
        let answer = controller.discover(&shown, who, ADDRESS_TYPE).await?;
        answer.context("a waypoint's own view")?;

        // Nor does any request meet it.
        let answers = asks.ask(&["http://web/", "--count=100"]).await?;
        let met = answers
            .iter()
            .filter(|one| one.hostname() == Some(fake.name()))
            .count();
        ensure!(
            answers.len() == 100 && met == 0,
            "{met} of {} met it",
            answers.len()
        );
        Ok(())
    })
    .await
}

async fn like_a_waypoint(pod: &PodRef, gateway: &str) -> Result<NodeInfo> {
    let object = pod.get().await?;
    let node = object.spec.and_then(|spec| spec.node_name);
    let ip: IpAddr = pod.ips().await?.into_iter().next().context("no address")?;
    Ok(NodeInfo {
        kind: "waypoint".to_owned(),
        pod: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        node_name: node.context("no node")?,
        ip,
        cluster: "Kubernetes".to_owned(),
        metadata: [("GATEWAY_NAME".to_owned(), gateway.to_owned())].into(),
    })
}

async fn real_waypoint(ns: &Namespace) -> Result<PodRef> {
    for pod in ns.pods(WAYPOINT_PODS).await? {
        let object = pod.get().await?;
        let account = object.spec.and_then(|spec| spec.service_account_name);
        if account.as_deref() == Some("waypoint") {
            return Ok(pod);
        }
    }
    anyhow::bail!("no waypoint")
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn nobody_gets_anothers_identity() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "names", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        shop::bind(ns, &asks).await?;
        let controller = Controller::reach(&cluster, ns.client()).await?;
        let node = token(&ztunnel_of(&asks).await?, "ztunnel").await?;
        let node = controller.client(&node, Caller::Node)?;
        // What is asked rightly is given: the client's and a server's pods are on this node.
        obtain(&node, &identity(ns.name(), "client")?).await?;
        for (account, namespace) in [
            ("ambit-controller", SYSTEM_NAMESPACE),
            ("ztunnel", SYSTEM_NAMESPACE),
            ("waypoint", ns.name()),
            ("default", ns.name()),
        ] {
            let asked = obtain(&node, &identity(namespace, account)?).await;
            is_denied(asked, account)?;
        }
        // A pod's own token, for another account of the same node.
        let own = token(&asks, "client").await?;
        let own = controller.client(&own, Caller::Workload)?;
        is_denied(obtain(&own, &identity(ns.name(), "web")?).await, "")?;
        let uid = asks.get().await?.metadata.uid.context("no uid")?;
        controller
            .pod
            .wait_log("the refusal, with the pod's uid", SOON, |line| {
                line.contains("refused") && line.contains(&uid)
            })
            .await
            .map(drop)
    })
    .await
}

/// A node may run pods that nobody asked the API server for, in any namespace, and they have no account.
#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_static_pod_has_no_identity() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "static", &[AMBIENT], async |ns| {
        let node = "worker-1";
        let file = StaticPod::put(&cluster, node, ns.name())?;
        let mirror = ns.pod(&format!("static-{node}"));
        mirror.wait("running", START, has_address).await?;
        // The index hears of pods in order: one that came later is in the mesh, so this one is known.
        let later = ns.run(&EchoClient::new("later").on(node), START).await?;
        later
            .wait("in the mesh", START, |pod: &Pod| {
                has_condition(pod, "ambit.mesh/InMesh", "True")
            })
            .await?;
        let controller = Controller::reach(&cluster, ns.client()).await?;
        let node = token(&ztunnel_of(&later).await?, "ztunnel").await?;
        let node = controller.client(&node, Caller::Node)?;
        obtain(&node, &identity(ns.name(), "later")?).await?;
        is_denied(
            obtain(&node, &identity(ns.name(), "default")?).await,
            "default",
        )?;
        let object = mirror.get().await?;
        ensure!(
            !has_condition(&object, "ambit.mesh/InMesh", "True"),
            "a pod without identity is said to be in the mesh"
        );
        drop(file);
        wait_gone(mirror.api().clone(), mirror.name(), START).await
    })
    .await
}

fn has_address(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .is_some_and(|status| status.pod_ip.is_some())
        && has_condition(pod, "Ready", "True")
}

/// A pod's description in a node's own folder; it goes when this does.
struct StaticPod(std::path::PathBuf);

impl StaticPod {
    fn put(cluster: &Cluster, node: &str, namespace: &str) -> Result<Self> {
        let folder = cluster.node(node)?.machine.path(STATIC_PODS);
        std::fs::create_dir_all(&folder)?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "static", "namespace": namespace},
            "spec": {"containers": [{"name": "echo", "image": ECHO_IMAGE,
                "imagePullPolicy": "IfNotPresent", "args": ["--port=8080"]}]},
        });
        let file = folder.join(format!("{namespace}.json"));
        std::fs::write(&file, pod.to_string())?;
        Ok(Self(file))
    }
}

impl Drop for StaticPod {
    fn drop(&mut self) {
        // The node may be gone with its folder.
        let _ = std::fs::remove_file(&self.0);
    }
}
