//! The controller away for a while: traffic goes on, new pods wait with a reason, and all catches up when it is back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace};
use e2e::cluster::Cluster;
use e2e::mesh::{SYSTEM_NAMESPACE, kubectl, serving};
use e2e::probe::{PodRef, eventually, has_condition, wait_until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams};

/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(90);
/// kubelet waits longer and longer before it tries a held pod again.
const RETRIED: Duration = Duration::from_secs(180);
/// What goes over the API server and the controller.
const SOON: Duration = Duration::from_secs(45);
/// How many there are.
const REPLICAS: u8 = 2;
const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn the_mesh_goes_on_without_its_controller() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let worked = Namespace::within(&client, "away", &[AMBIENT], async |ns| {
        Box::pin(away(&cluster, ns)).await
    })
    .await;
    // Whatever failed, the tests after this one find the controllers.
    scale(&cluster, REPLICAS)?;
    serving(&client).await?;
    worked
}

async fn away(cluster: &Cluster, ns: &Namespace) -> Result<()> {
    let web = EchoServer::new("web", "v1").replicas(2);
    ns.deploy(&web).await?;
    let client = ns.start(&EchoClient::new("client")).await?;
    ns.serve(&web, START).await?;
    for pod in [vec![client.clone()], ns.pods("app=web").await?].concat() {
        pod.wait("ready, in the mesh", START, |pod| {
            in_mesh(pod) && has_condition(pod, "Ready", "True")
        })
        .await?;
    }
    let mut load = client.load("http://web/", 50).await?;
    let hold = client
        .hold("tcp://web:9090", Duration::from_millis(100))
        .await?;
    let ztunnels = ztunnels(ns.client()).await?;

    scale(cluster, 0)?;
    no_controller(ns.client()).await?;
    more(&mut load, 100).await?;

    let other = Namespace::within(ns.client(), "plain", &[], async |plain| {
        plain.run(&EchoClient::new("plain"), START).await.map(drop)
    });
    other.await.context("a pod outside the mesh")?;

    let held = restart_one(ns).await?;
    let event = ns.wait_event(held.name(), "controller", START).await?;
    println!("held: {event}");
    ensure!(
        event.contains("FailedCreatePodSandBox") && event.contains("cannot be reached"),
        "the Event names another reason: {event}"
    );
    ensure!(held.containers().await?.iter().all(|(id, _)| id.is_empty()));
    more(&mut load, 100).await?;

    scale(cluster, REPLICAS)?;
    serving(ns.client()).await?;
    held.wait("ready, in the mesh", RETRIED, |pod| {
        in_mesh(pod) && has_condition(pod, "Ready", "True")
    })
    .await?;
    let name = held.name().to_owned();
    eventually("the held pod serves", SOON, async || {
        let now = load.now().await?;
        ensure!(now.hosts.contains_key(&name), "{:?}", now.hosts);
        Ok(())
    })
    .await?;

    let (load, hold) = (load.stop().await?, hold.stop().await?);
    println!(
        "controller away: {} requests, {} failed, slowest {:.0} ms; {} rounds on the open connection",
        load.sent, load.failed, load.latency_max_ms, hold.rounds
    );
    ensure!(load.failed == 0 && load.ok == load.sent, "{load:?}");
    // Its server may be the one that was restarted.
    ensure!(
        hold.broken.is_none() || ns.pod(&hold.hostname).get().await.is_err(),
        "{hold:?}"
    );
    ensure!(
        ztunnels == self::ztunnels(ns.client()).await?,
        "a ztunnel was restarted"
    );
    Ok(())
}

fn in_mesh(pod: &Pod) -> bool {
    has_condition(pod, "ambit.mesh/InMesh", "True")
}

fn scale(cluster: &Cluster, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    let args = [
        "-n",
        SYSTEM_NAMESPACE,
        "scale",
        "deployment/ambit-controller",
        &replicas,
    ];
    kubectl(cluster, &args).map(drop)
}

async fn no_controller(client: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    wait_until(deployments, "ambit-controller", "scaled down", START, |d| {
        let status = d.status.clone().unwrap_or_default();
        status.observed_generation == d.metadata.generation && status.replicas.unwrap_or(0) == 0
    })
    .await?;
    eventually("no controller", START, async || {
        let selector = ListParams::default().labels("app.kubernetes.io/name=ambit-controller");
        let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let left = pods.list(&selector).await?.items.len();
        ensure!(left == 0, "{left} pods of it are left");
        Ok(())
    })
    .await
}

/// Waits until so many more requests were answered.
async fn more(load: &mut e2e::probe::Run<e2e::echo::LoadSummary>, count: u64) -> Result<()> {
    let before = load.now().await?.ok;
    eventually("new connections", SOON, async || {
        let now = load.now().await?;
        ensure!(now.ok >= before + count, "{} after {before}", now.ok);
        Ok(())
    })
    .await
}

/// Deletes one of the servers; its replacement.
async fn restart_one(ns: &Namespace) -> Result<PodRef> {
    let before = ns.pods("app=web").await?;
    let victim = before.first().context("no server")?;
    victim
        .api()
        .delete(victim.name(), &DeleteParams::default())
        .await?;
    let known = |pod: &PodRef| before.iter().any(|old| old.name() == pod.name());
    eventually("a replacement", SOON, async || {
        let pods = ns.pods("app=web").await?;
        pods.into_iter().find(|pod| !known(pod)).context("none yet")
    })
    .await
}

/// Each ztunnel's container and how often it was restarted.
async fn ztunnels(client: &Client) -> Result<Vec<(String, i32)>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/name=ztunnel");
    let mut all = Vec::new();
    for pod in pods.list(&selector).await?.items {
        let name = pod.metadata.name.unwrap_or_default();
        let pod = PodRef::new(client, SYSTEM_NAMESPACE, &name);
        all.extend(pod.containers().await?);
    }
    all.sort();
    Ok(all)
}
