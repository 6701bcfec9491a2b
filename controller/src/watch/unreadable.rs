//! The objects of a kind that cannot be decoded: each is told to people once, and all are counted.

use std::collections::BTreeSet;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::Watched;
use crate::index::changes::{Kind, Notice, Target};
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
    notices: Option<(Kind, Sender<Notice>)>,
}

// === impl Unreadable ===

impl Unreadable {
    pub(super) fn new(watched: &Watched) -> Self {
        Self {
            kind: watched.kind,
            keys: BTreeSet::new(),
            lines: Bucket::new(LINES, Instant::now()),
            counted: watched.unreadable.clone(),
            notices: watched.notices.clone(),
        }
    }

    /// This one cannot be decoded.
    pub(super) fn add(&mut self, key: Key, uid: &str, why: &str) {
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
        self.tell(&key, uid, why);
        self.keys.insert(key);
        self.count();
    }

    /// Tells it on the object. How many a namespace may have is for those to bound who make Events of it.
    fn tell(&self, key: &Key, uid: &str, why: &str) {
        let Some((kind, notices)) = &self.notices else {
            return;
        };
        let target = Target {
            kind: *kind,
            key: key.clone(),
        };
        let notice = Notice {
            target,
            uid: uid.into(),
            warning: true,
            reason: "Unreadable".to_owned(),
            note: format!("{why}; the mesh goes on with what it knew of this object before"),
        };
        // It is counted and logged all the same.
        let _ = notices.try_send(notice);
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
