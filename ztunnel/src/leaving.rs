//! Whether ztunnel goes for good: only the controller, which sees the mesh being uninstalled, can say so.

use std::time::Duration;

use mesh::{world::World, xds::client::BACK_WITHIN};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::pods::{LATE_CONNECTIONS, Leaving, Pods};

/// On a stream that lives the controller says it within this, if there is anything to say: it hears of the end of the
/// mesh's namespace no later than the kubelet does.
const SAID_WITHIN: Duration = Duration::from_secs(5);

/// Hands the pods over to a successor, within `time`. If the controller says, before or meanwhile, that there will be
/// none, calls `give_back` for the node and takes every pod out of the mesh.
///
/// The word may be late, or the stream just reconnecting: it counts for as long as no successor serves the pods. A node
/// without any has no successor by that measure: there, `successor` ends the wait, or that the word could have come.
pub async fn leave(
    world: &World,
    pods: &Pods,
    time: Duration,
    successor: impl Future<Output = ()>,
    give_back: impl AsyncFnOnce(),
) {
    let deadline = Instant::now() + time;
    let left = || deadline.saturating_duration_since(Instant::now());
    let handed_over = async {
        let silent = silence(pods.connected(), time.saturating_sub(LATE_CONNECTIONS));
        let no_word = async {
            tokio::select! {
                () = successor => {}
                () = silent => {}
            }
        };
        tokio::join!(pods.leave(Leaving::Restart, left()), no_word);
    };
    tokio::select! {
        biased;
        () = told_for_good(world) => {}
        () = handed_over => return,
    }
    tracing::info!("the mesh is being uninstalled: the node goes back to what it was");
    give_back().await;
    pods.leave(Leaving::ForGood, left()).await;
}

/// Returns once the controller had a live stream for as long as the word may take; at the latest when no stream can be
/// expected to come back any more, or after `most`.
async fn silence(mut connected: watch::Receiver<bool>, most: Duration) {
    let heard = async {
        while connected.wait_for(|connected| *connected).await.is_ok() {
            let lost = connected.wait_for(|connected| !*connected);
            if timeout(SAID_WITHIN, lost).await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(most.min(BACK_WITHIN + SAID_WITHIN), heard).await;
}

/// Returns once the controller has said that the mesh is being uninstalled, which it may have done before.
///
/// Nothing else returns: a controller that cannot be reached, that refuses us, or that does not know the question (it
/// then answers it with nothing) says nothing about that, and a restart is the case in which doing nothing is right.
async fn told_for_good(world: &World) {
    let mut changed = world.changed();
    loop {
        if world.look(|world| world.uninstalling()) {
            return;
        }
        if changed.changed().await.is_err() {
            // Nobody writes this world any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh::{
        proto::node::MeshState,
        world::{WorldWriter, world},
        xds::{ENROLMENT_TYPE, MESH_STATE_NAME, MESH_STATE_TYPE, Update},
    };
    use prost::Message;
    use tokio::time::timeout;

    use super::*;

    /// Longer than any pod's termination grace.
    const LONG: Duration = Duration::from_secs(3600);

    fn say(writer: &mut WorldWriter, uninstalling: bool) {
        let state = MeshState { uninstalling }.encode_to_vec().into();
        let update = Update {
            type_url: MESH_STATE_TYPE,
            updated: vec![(MESH_STATE_NAME.to_owned(), state)],
            removed: vec![],
        };
        writer.apply(&update).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_but_the_word_counts() {
        let (mut writer, world) = world();
        assert!(timeout(LONG, told_for_good(&world)).await.is_err());
        // Everything of the node goes, as from a controller that knows nothing yet.
        for type_url in [ENROLMENT_TYPE, MESH_STATE_TYPE] {
            let update = Update {
                type_url,
                updated: vec![],
                removed: vec![MESH_STATE_NAME.to_owned()],
            };
            writer.apply(&update).unwrap();
        }
        say(&mut writer, false);
        assert!(timeout(LONG, told_for_good(&world)).await.is_err());
        drop(writer);
        assert!(timeout(LONG, told_for_good(&world)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_word_is_waited_for_until_it_could_have_come() {
        let began = Instant::now();
        let (stream, connected) = watch::channel(true);
        silence(connected.clone(), LONG).await;
        assert_eq!(began.elapsed(), SAID_WITHIN);

        // Lost, and back as late as a stream may be: it gets its time.
        let began = Instant::now();
        stream.send_replace(false);
        let mut silent = Box::pin(silence(connected.clone(), LONG));
        assert!(timeout(BACK_WITHIN, &mut silent).await.is_err());
        stream.send_replace(true);
        silent.await;
        assert_eq!(began.elapsed(), BACK_WITHIN + SAID_WITHIN);

        // Never back.
        let began = Instant::now();
        stream.send_replace(false);
        silence(connected.clone(), LONG).await;
        assert_eq!(began.elapsed(), BACK_WITHIN + SAID_WITHIN);

        // Not longer than there is time.
        let began = Instant::now();
        silence(connected, Duration::from_secs(1)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_word_counts_before_and_after_we_are_told_to_end() {
        let (mut writer, world) = world();
        let mut told = Box::pin(told_for_good(&world));
        assert!(timeout(LONG, &mut told).await.is_err());
        say(&mut writer, true);
        told.await;
        // Said, and the controller went with the rest of the mesh.
        drop(writer);
        told_for_good(&world).await;
    }
}
