//! The one task that owns the index: what is told goes in, what changed goes out to those who act on it.

mod pace;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh::process::readiness::Pending;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use self::pace::Pace;
use crate::discovery::snapshot::Snapshot;
use crate::index::changes::Changes;
use crate::index::desired::DesiredState;
use crate::index::{Index, Input, Settings};

/// Inputs that are taken in before anything is published, so that a flood does not silence the index.
const MAX_BATCH: usize = 10_000;

/// A turn of the index, in which it waits for what one watch tells later than another: see [`Input::Turn`].
const TURN: Duration = Duration::from_millis(100);

/// How far the watches are is published with what they changed; when that is nothing, after this time. Every stream wakes.
const POSITIONS_WITHIN: Duration = Duration::from_secs(1);

/// Where changes are published. Nothing here can make the hub wait: readers that lag see the newest version only.
#[derive(Debug)]
pub struct Outputs {
    /// To the proxies.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// To the reconcilers.
    pub desired: watch::Sender<DesiredState>,
    /// To those who wait for the index.
    pub state: watch::Sender<IndexState>,
    /// To people who debug.
    pub summary: Arc<ArcSwap<Value>>,
}

/// How far the index is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexState {
    /// Every kind has listed all of its objects once.
    pub synced: bool,
    /// The mesh is being uninstalled.
    pub uninstalling: bool,
    /// Every status is seen to be as it should be.
    pub writes_settled: bool,
}

/// Owns the index.
pub struct Hub {
    index: Index,
    pending: Option<Pending>,
    snapshot: Snapshot,
    desired: DesiredState,
    /// When it is published how far the watches are, though nothing else has changed.
    positions_due: Option<Instant>,
    /// When the turn ends, while the index waits.
    turn_due: Option<Instant>,
    out: Outputs,
}

// === impl Hub ===

impl Hub {
    /// Knows nothing yet; `pending` is dropped when it knows all there is.
    pub fn new(settings: Settings, pending: Pending, out: Outputs) -> Self {
        Self {
            snapshot: Snapshot::new(settings.network.clone()),
            index: Index::new(settings),
            pending: Some(pending),
            desired: DesiredState::default(),
            positions_due: None,
            turn_due: None,
            out,
        }
    }

    /// Runs until nobody tells anything any more.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut pace = Pace::default();
        while let Some(first) = self.next(&mut inputs).await {
            self.index.apply(first);
            if let Some(until) = pace.wait(Instant::now()) {
                tokio::time::sleep_until(until).await;
            }
            for _ in 0..MAX_BATCH {
                let Ok(next) = inputs.try_recv() else { break };
                self.index.apply(next);
            }
            if !self.index.synced() {
                continue;
            }
            self.turn_if_due();
            let changes = self.index.settle();
            self.publish(changes);
            self.plan_turn();
            pace.published(Instant::now());
        }
    }

    /// The next input. Meanwhile streams learn how far the watches are, should some of them wait for that alone.
    async fn next(&mut self, inputs: &mut mpsc::Receiver<Input>) -> Option<Input> {
        loop {
            let dues = self.positions_due.into_iter().chain(self.turn_due);
            let Some(due) = dues.min() else {
                return inputs.recv().await;
            };
            if let Ok(next) = timeout_at(due, inputs.recv()).await {
                return next;
            }
            if self.turn_due.take_if(|turn| *turn <= due).is_some() {
                return Some(Input::Turn);
            }
            self.publish_snapshot();
        }
    }

    /// Ends the index's turn though there is always a next input.
    fn turn_if_due(&mut self) {
        let now = Instant::now();
        if self.turn_due.take_if(|turn| *turn <= now).is_some() {
            self.index.apply(Input::Turn);
        }
    }

    /// The next turn begins while the index waits, and only then.
    fn plan_turn(&mut self) {
        let planned = self.turn_due.unwrap_or_else(|| Instant::now() + TURN);
        self.turn_due = self.index.waits().then_some(planned);
    }

    fn publish_snapshot(&mut self) {
        self.positions_due = None;
        self.snapshot.set_positions(self.index.positions());
        self.out
            .snapshots
            .send_replace(Arc::new(self.snapshot.clone()));
    }

    fn publish(&mut self, changes: Changes) {
        if !changes.resources.is_empty() || !changes.placements.is_empty() {
            self.snapshot.apply(&changes);
            self.publish_snapshot();
        } else if self.index.positions() != self.snapshot.positions() {
            let now = Instant::now();
            match self.positions_due {
                Some(due) if due <= now => self.publish_snapshot(),
                Some(_) => {}
                None => self.positions_due = Some(now + POSITIONS_WITHIN),
            }
        }
        if !changes.desired.is_empty() {
            for (item, entry) in changes.desired {
                match entry {
                    Some(entry) => self.desired.insert(item, entry),
                    None => self.desired.remove(&item),
                };
            }
            self.out.desired.send_replace(self.desired.clone());
        }
        self.out.summary.store(Arc::new(self.index.summary()));
        let state = IndexState {
            synced: true,
            uninstalling: self.index.uninstalling(),
            writes_settled: self.index.writes_settled(),
        };
        self.out
            .state
            .send_if_modified(|before| std::mem::replace(before, state) != state);
        if self.pending.take().is_some() {
            tracing::info!("the index is synced");
        }
    }
}
