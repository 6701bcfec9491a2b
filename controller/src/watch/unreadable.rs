//! The objects of a kind that cannot be decoded: each is told to people once, and all are counted.

use std::collections::BTreeSet;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use crate::index::names::Key;
use crate::rate::{Bucket, Rate};

/// Lines in the log. Whoever may write an object may make it readable and unreadable in turn.
const LINES: Rate = Rate {
    burst: 20,
    per_second: 1,
};

/// Those that cannot be decoded now.
#[derive(Debug)]
pub(super) struct Unreadable {
    kind: &'static str,
    keys: BTreeSet<Key>,
    lines: Bucket,
    counted: Gauge,
}

// === impl Unreadable ===

impl Unreadable {
    pub(super) fn new(kind: &'static str, counted: Gauge) -> Self {
        Self {
            kind,
            keys: BTreeSet::new(),
            lines: Bucket::new(LINES, Instant::now()),
            counted,
        }
    }

    /// This one cannot be decoded.
    pub(super) fn add(&mut self, key: Key, why: &str) {
        if self.keys.contains(&key) {
            return;
        }
        if self.lines.take(Instant::now()) {
            tracing::warn!(
                kind = self.kind,
                namespace = &*key.namespace,
                name = &*key.name,
                // Quoted, because it may quote the object.
                ?why,
                "an object cannot be read: the mesh goes on with what it knew of this object"
            );
        }
        self.keys.insert(key);
        self.count();
    }

    /// This one can be decoded, or is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        if self.keys.remove(key) {
            self.count();
        }
    }

    /// Of all that there are, only these cannot be decoded.
    pub(super) fn retain(&mut self, listed: &BTreeSet<Key>) {
        self.keys.retain(|key| listed.contains(key));
        self.count();
    }

    fn count(&self) {
        self.counted
            .set(self.keys.len().try_into().unwrap_or(i64::MAX));
    }
}
