//! What befalls the controllers, in turn.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::{REPLICAS, Scene};
use crate::mesh::{SYSTEM_NAMESPACE, kubectl};
use crate::replicas::{self, CONTROLLER};

/// Until both are there again and one leads; the machine is busy.
const RECOVERED: Duration = Duration::from_secs(90);

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

/// Harms one way after another, each when all is well again, until the storm is over.
pub(super) async fn do_it(scene: &Scene<'_>, over: CancellationToken) -> Result<Harm> {
    let mut harm = Harm::default();
    for turn in 0.. {
        if over.is_cancelled() {
            break;
        }
        one(scene, turn, &mut harm).await?;
    }
    replicas::wait_led(scene.ns.client(), REPLICAS, RECOVERED).await?;
    Ok(harm)
}

async fn one(scene: &Scene<'_>, turn: u32, harm: &mut Harm) -> Result<()> {
    let client = scene.ns.client();
    let (leader, others) = replicas::wait_led(client, REPLICAS, RECOVERED).await?;
    let other = others.first().unwrap_or(&leader);
    match turn % 5 {
        0 => {
            leader.signal(scene.cluster, Signal::SIGKILL)?;
            harm.killed += 1;
        }
        1 => {
            other.delete(true).await?;
            harm.forced += 1;
        }
        2 => {
            leader.delete(false).await?;
            harm.deleted += 1;
        }
        3 => {
            other.signal(scene.cluster, Signal::SIGKILL)?;
            harm.killed += 1;
        }
        _ => {
            let deployment = format!("deployment/{CONTROLLER}");
            kubectl(
                scene.cluster,
                &["-n", SYSTEM_NAMESPACE, "rollout", "restart", &deployment],
            )?;
            harm.rolled += 1;
        }
    }
    Ok(())
}
