//! The one task that owns the index: what is told goes in, what changed goes out to those who act on it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh::process::readiness::Pending;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::discovery::snapshot::Snapshot;
use crate::index::changes::Changes;
use crate::index::{Index, Settings};
use crate::status::Order;
use crate::watch::{KINDS, Told};
use crate::waypoint::Task;

/// Changes that follow one another this fast are told as one. The first is told at once.
const TOGETHER: Duration = Duration::from_millis(10);
/// Inputs that are taken in before anything is told, so that a flood does not silence the index.
const FLOOD: usize = 10_000;

/// Where changes go.
#[derive(Debug)]
pub struct Outlets {
    /// To the proxies.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// To the API server.
    pub orders: mpsc::Sender<Order>,
    /// To the deployer.
    pub tasks: mpsc::Sender<Task>,
    /// To the publisher of the roots.
    pub roots: watch::Sender<BTreeSet<Arc<str>>>,
    /// To those who wait for it.
    pub progress: watch::Sender<Progress>,
    /// To people who debug.
    pub summary: Arc<ArcSwap<Value>>,
}

/// How far the index is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every kind has told all of its objects once.
    pub whole: bool,
    /// The mesh is being uninstalled.
    pub leaving: bool,
    /// Every write that was wanted is made.
    pub quiet: bool,
}

/// Owns the index.
pub struct Hub {
    index: Index,
    whole: HashSet<&'static str>,
    pending: Option<Pending>,
    snapshot: Snapshot,
    out: Outlets,
}

// === impl Hub ===

impl Hub {
    /// Knows nothing yet; `pending` is dropped when it knows all there is.
    pub fn new(settings: Settings, pending: Pending, out: Outlets) -> Self {
        Self {
            index: Index::new(settings),
            whole: HashSet::new(),
            pending: Some(pending),
            snapshot: Snapshot::default(),
            out,
        }
    }

    /// Runs until nobody tells anything any more.
    pub async fn run(mut self, mut told: mpsc::Receiver<Told>) {
        let mut last: Option<Instant> = None;
        while let Some(first) = told.recv().await {
            self.take(first);
            if let Some(last) = last
                && last.elapsed() < TOGETHER
            {
                tokio::time::sleep_until(last + TOGETHER).await;
            }
            for _ in 0..FLOOD {
                let Ok(next) = told.try_recv() else { break };
                self.take(next);
            }
            if self.whole.len() < KINDS {
                continue;
            }
            let changes = self.index.settle(&now());
            self.publish(changes).await;
            last = Some(Instant::now());
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Input(input) => self.index.apply(input),
            Told::Whole(kind) => {
                self.whole.insert(kind);
            }
        }
    }

    async fn publish(&mut self, changes: Changes) {
        if !changes.resources.is_empty() || !changes.placements.is_empty() {
            self.snapshot.apply(&changes);
            self.out
                .snapshots
                .send_replace(Arc::new(self.snapshot.clone()));
        }
        if let Some(roots) = changes.root_namespaces {
            self.out.roots.send_replace(roots);
        }
        // Whoever no longer listens has ended, and the process with it.
        for (target, write) in changes.writes {
            let _ = self
                .out
                .orders
                .send(Order::Write(target, write.map(Box::new)))
                .await;
        }
        for notice in changes.notices {
            let _ = self.out.orders.send(Order::Notice(notice)).await;
        }
        for (key, plan) in changes.waypoints {
            let _ = self.out.tasks.send(Task::Plan(key, plan)).await;
        }
        for class in changes.classes {
            let _ = self.out.tasks.send(Task::Class(class)).await;
        }
        self.out.summary.store(Arc::new(self.index.summary()));
        let progress = Progress {
            whole: true,
            leaving: self.index.leaving(),
            quiet: self.index.quiet(),
        };
        self.out
            .progress
            .send_if_modified(|before| std::mem::replace(before, progress) != progress);
        if self.pending.take().is_some() {
            tracing::info!("the index is whole");
        }
    }
}

/// As Kubernetes writes a time.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
