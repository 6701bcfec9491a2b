//! Two controllers: one that writes is killed, hangs or is cut off, the API server hangs, and the mesh goes on.

mod shop;

#[path = "controller_ha/api_server.rs"]
mod api_server;
#[path = "controller_ha/storm.rs"]
mod storm;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{Namespace, dynamic};
use e2e::cluster::Cluster;
use e2e::echo::LoadSummary;
use e2e::probe::{PodRef, Run, conditions, eventually, wait_until};
use e2e::replicas::{self, CONTROLLER, Replica};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use shop::{AMBIENT, GATEWAY_API, SOON, START};

/// The promise: so long after a leader was lost another one writes.
const REPLACED: Duration = Duration::from_secs(15);
/// For so long nobody is seen to write what is written already. Two who fight do so many times a second.
const OBSERVED: Duration = Duration::from_secs(3);
/// kubelet may write a pod's status for its own reasons.
const OTHERS_WRITES: usize = 2;
/// How many there are.
const REPLICAS: usize = 2;

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_leader_that_is_killed_is_replaced() -> Result<()> {
    beside_a_load("a leader killed", async |cluster, ns| {
        let (leader, _) = replicas::wait_led(ns.client(), REPLICAS, START).await?;
        let kubelet = &cluster.node(&leader.node)?.machine;
        // Else its kubelet starts it again, under the same name, before anybody misses it.
        kubelet.signal("kubelet", Signal::SIGSTOP)?;
        let replaced = another_writes(ns, &leader, async || {
            leader.signal(cluster, Signal::SIGKILL)
        })
        .await;
        kubelet.signal("kubelet", Signal::SIGCONT)?;
        replaced
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_leader_that_hangs_is_replaced_and_does_not_fight_when_it_is_back() -> Result<()> {
    beside_a_load("a leader frozen", async |cluster, ns| {
        let (leader, _) = replicas::wait_led(ns.client(), REPLICAS, START).await?;
        let replaced = another_writes(ns, &leader, async || {
            leader.signal(cluster, Signal::SIGSTOP)
        })
        .await;
        leader.signal(cluster, Signal::SIGCONT)?;
        replaced?;
        nobody_fights(ns).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_leader_that_is_cut_off_from_the_api_server_is_replaced() -> Result<()> {
    beside_a_load("a leader cut off", async |cluster, ns| {
        let (leader, _) = replicas::wait_led(ns.client(), REPLICAS, START).await?;
        let replaced = another_writes(ns, &leader, async || leader.cut_off(cluster, true)).await;
        leader.cut_off(cluster, false)?;
        replaced?;
        nobody_fights(ns).await
    })
    .await
}

/// A roll leaves at least one that is ready at any moment, and loses nothing.
#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_roll_never_leaves_fewer_than_one() -> Result<()> {
    beside_a_load("both rolled", async |cluster, ns| {
        replicas::wait_led(ns.client(), REPLICAS, START).await?;
        let deployments: Api<Deployment> = Api::namespaced(ns.client().clone(), "ambit-system");
        replicas::roll(cluster)?;
        let mut fewest = i32::MAX;
        wait_until(deployments, CONTROLLER, "rolled", START, |deployment| {
            let status = deployment.status.clone().unwrap_or_default();
            fewest = fewest.min(status.ready_replicas.unwrap_or(0));
            status.observed_generation == deployment.metadata.generation
                && status.updated_replicas == Some(2)
                && status.available_replicas == Some(2)
                && status.replicas == Some(2)
        })
        .await?;
        ensure!(fewest >= 1, "at one moment {fewest} were ready");
        replicas::wait_led(ns.client(), REPLICAS, START).await?;
        nobody_fights(ns).await
    })
    .await
}

/// Takes the leader away, and waits for a status that only the other one can write.
async fn another_writes(
    ns: &Namespace,
    leader: &Replica,
    take_away: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let before = replicas::leadership(ns.client()).await?;
    let began = Instant::now();
    take_away().await?;
    written(ns.client(), REPLACED).await?;
    let took = began.elapsed();
    let now = replicas::leadership(ns.client()).await?;
    println!(
        "{} of {} is gone; after {:.1} s a status is written by {} ({} transitions, {} before)",
        leader.pod.name(),
        leader.node,
        took.as_secs_f32(),
        now.holder,
        now.transitions,
        before.transitions
    );
    ensure!(
        !leader.is(&now.holder),
        "the Lease is still held by {now:?}"
    );
    ensure!(took <= REPLACED, "it took {took:?}");
    Ok(())
}

/// Gives a namespace a label that means nothing, and waits for the condition that says so.
async fn written(client: &Client, within: Duration) -> Result<()> {
    let mode = ("istio.io/dataplane-mode", "ambiant");
    Namespace::within(client, "typo", &[mode], async |typo| {
        let all = Api::<KubeNamespace>::all(client.clone());
        wait_until(all, typo.name(), "refused", within, |namespace| {
            conditions(namespace).iter().any(|[kind, _, reason, _]| {
                kind == "ambit.mesh/InMesh" && reason == "UnknownDataplaneMode"
            })
        })
        .await
        .map(drop)
    })
    .await
}

/// Both replicas are there, one leads, and what both have an opinion on is not written again and again.
async fn nobody_fights(ns: &Namespace) -> Result<()> {
    let (leader, _) = replicas::wait_led(ns.client(), REPLICAS, START).await?;
    written(ns.client(), SOON).await?;
    let core = ["Pod", "Service"].map(|kind| ("v1", kind));
    let gateway_api = ["Gateway", "HTTPRoute"].map(|kind| (GATEWAY_API, kind));
    let until = Instant::now() + OBSERVED;
    let observed = core
        .into_iter()
        .chain(gateway_api)
        .map(async |(api, kind)| {
            let objects = dynamic(ns.client(), api, kind, Some(ns.name())).await?;
            writes(objects, until).await.context(kind)
        });
    let writes: usize = try_join_all(observed).await?.into_iter().sum();
    println!(
        "led by {}; {writes} writes in {OBSERVED:?}",
        leader.pod.name()
    );
    ensure!(writes <= OTHERS_WRITES, "{writes} writes in {OBSERVED:?}");
    Ok(())
}

/// How often objects are changed until then.
async fn writes(objects: Api<DynamicObject>, until: Instant) -> Result<usize> {
    let known = objects.list(&ListParams::default()).await?;
    let version = known.metadata.resource_version.unwrap_or_default();
    let changes = objects.watch(&WatchParams::default(), &version).await?;
    let mut changes = changes.boxed();
    let mut writes = 0;
    while let Ok(change) = tokio::time::timeout_at(until, changes.next()).await {
        let change = change.context("the watch ended: nothing was observed")??;
        writes += usize::from(matches!(change, WatchEvent::Modified(_)));
    }
    Ok(writes)
}

/// The shop's pods in the mesh and a load on them; nothing is lost and nobody leaves the mesh, whatever `work` does.
async fn beside_a_load(
    what: &str,
    work: impl AsyncFn(&Cluster, &Namespace) -> Result<()>,
) -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "ha", &[AMBIENT], async |ns| {
        let pod = shop::open(ns).await?;
        // Objects of every kind on which a controller has an opinion.
        shop::bind(ns, &pod).await?;
        ns.apply(&shop::all_to_version("v1")).await?;
        let load = pod.load("http://web/", 50).await?;
        Box::pin(work(&cluster, ns)).await?;
        unharmed(what, load).await?;
        for pod in [vec![pod], ns.pods("app=web").await?].concat() {
            in_mesh(&pod).await?;
        }
        Ok(())
    })
    .await
}

async fn in_mesh(pod: &PodRef) -> Result<()> {
    let object = pod.get().await?;
    let inside = e2e::probe::has_condition(&object, "ambit.mesh/InMesh", "True");
    ensure!(inside, "{}: {:?}", pod.name(), conditions(&object));
    Ok(())
}

async fn unharmed(what: &str, load: Run<LoadSummary>) -> Result<()> {
    let load = load.stop().await?;
    println!(
        "{what}: {} requests, {} failed, slowest {:.0} ms",
        load.sent, load.failed, load.latency_max_ms
    );
    ensure!(load.failed == 0 && load.ok == load.sent, "{what}: {load:?}");
    Ok(())
}

/// The replicas that are ready, however few there are for a moment.
async fn some_are_ready(client: &Client) -> Result<()> {
    eventually("both are ready", START, async || {
        let count = replicas::ready(client).await?.len();
        ensure!(count == REPLICAS, "{count} are ready");
        Ok(())
    })
    .await
    .context("the controller")
}
