//! What befalls the controllers, in turn.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::{REPLICAS, Scene};
use crate::mesh::SYSTEM_NAMESPACE;
use crate::probe::{PodRef, eventually, has_condition, wait_available, wait_gone};
use crate::replicas::{self, CONTROLLER, Replica};

/// Until both are there again and one leads; the machine is busy.
const RECOVERED: Duration = Duration::from_secs(90);
/// How many ways there are to harm them.
const WAYS: u32 = 5;

/// What was done to them.
#[derive(Debug, Default)]
pub struct Harm {
    /// Ended without a word: the leader and the other one in turn.
    pub killed: usize,
    /// Deleted in good order: the leader.
    pub deleted: usize,
    /// Deleted by force: the one that does not lead.
    pub forced: usize,
    /// Both replaced by a rolling update.
    pub rolled: usize,
}

/// Harms one way after another, each when all is well again, until it is time to end and each was tried.
pub(super) async fn do_it(scene: &Scene<'_>, enough: &CancellationToken) -> Result<Harm> {
    let mut harm = Harm::default();
    for turn in 0.. {
        if turn >= WAYS && enough.is_cancelled() {
            break;
        }
        one(scene, turn, &mut harm).await?;
    }
    replicas::wait_led(scene.ns.client(), REPLICAS, RECOVERED).await?;
    Ok(harm)
}

/// Takes one away and waits until it is replaced: the other one serves meanwhile.
async fn one(scene: &Scene<'_>, turn: u32, harm: &mut Harm) -> Result<()> {
    let client = scene.ns.client();
    let (leader, others) = replicas::wait_led(client, REPLICAS, RECOVERED).await?;
    let led = replicas::leadership(client).await?.holder;
    let other = others.first().context("only one controller")?;
    match turn % WAYS {
        0 => {
            killed(scene, &leader).await?;
            harm.killed += 1;
        }
        1 => {
            other.delete(true).await?;
            gone(&other.pod).await?;
            harm.forced += 1;
        }
        2 => {
            leader.delete(false).await?;
            gone(&leader.pod).await?;
            harm.deleted += 1;
        }
        3 => {
            killed(scene, other).await?;
            harm.killed += 1;
        }
        _ => {
            rolled(scene).await?;
            harm.rolled += 1;
        }
    }
    if turn.is_multiple_of(WAYS) {
        // Its status and its Lease outlive it for a while.
        eventually("another holder of the Lease", RECOVERED, async || {
            let now = replicas::leadership(client).await?.holder;
            ensure!(!now.is_empty() && now != led, "held by {now:?}");
            Ok(())
        })
        .await?;
    }
    replicas::wait_led(client, REPLICAS, RECOVERED)
        .await
        .map(drop)
}

/// Ends its processes, and waits for those that come after them.
async fn killed(scene: &Scene<'_>, replica: &Replica) -> Result<()> {
    let before = replica.pod.containers().await?;
    replica.signal(scene.cluster, Signal::SIGKILL)?;
    replica
        .pod
        .wait("restarted and ready", RECOVERED, |pod: &Pod| {
            let status = pod.status.clone().unwrap_or_default();
            let restarts = |one: &ContainerStatus| one.restart_count;
            let now = status.container_statuses.unwrap_or_default();
            now.iter().map(restarts).ne(before.iter().map(|(_, n)| *n))
                && now.iter().all(|one| one.ready)
                && has_condition(pod, "Ready", "True")
        })
        .await
        .map(drop)
}

async fn gone(pod: &PodRef) -> Result<()> {
    wait_gone(pod.api().clone(), pod.name(), RECOVERED).await
}

async fn rolled(scene: &Scene<'_>) -> Result<()> {
    replicas::roll(scene.cluster)?;
    let client = scene.ns.client().clone();
    let deployments: Api<Deployment> = Api::namespaced(client, SYSTEM_NAMESPACE);
    wait_available(deployments, CONTROLLER, RECOVERED).await
}
