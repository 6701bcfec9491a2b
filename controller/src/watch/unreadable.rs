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
const LOG_LINES: Rate = Rate {
    burst: 20,
    per_second: 1,
};

/// Those that cannot be decoded now.
#[derive(Debug)]
pub(super) struct Unreadable {
    kind: &'static str,
    keys: BTreeSet<Key>,
    /// Those of them whose Event there was no room for: it is tried again when they are met again.
    untold: BTreeSet<Key>,
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
            untold: BTreeSet::new(),
            lines: Bucket::new(LOG_LINES, Instant::now()),
            counted: watched.unreadable.clone(),
            notices: watched.notices.clone(),
        }
    }

    /// This one cannot be decoded.
    pub(super) fn add(&mut self, key: Key, uid: &str, why: &str) {
        if self.keys.contains(&key) {
            if self.untold.contains(&key) && self.tell(&key, uid, why) {
                self.untold.remove(&key);
            }
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
        if !self.tell(&key, uid, why) {
            self.untold.insert(key.clone());
        }
        self.keys.insert(key);
        self.count();
    }

    /// Tells it on the object; `false`: there is no room now. How many a namespace may have is for those to bound who make
    /// Events of it.
    fn tell(&self, key: &Key, uid: &str, why: &str) -> bool {
        let Some((kind, notices)) = &self.notices else {
            return true;
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
        notices.try_send(notice).is_ok()
    }

    /// This one can be decoded, or is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        self.untold.remove(key);
        if self.keys.remove(key) {
            self.count();
        }
    }

    /// Of all that there are, only these cannot be decoded.
    pub(super) fn retain(&mut self, listed: &BTreeSet<Key>) {
        self.keys.retain(|key| listed.contains(key));
        self.untold.retain(|key| listed.contains(key));
        self.count();
    }

    fn count(&self) {
        self.counted
            .set(self.keys.len().try_into().unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_that_there_was_no_room_for_is_told_when_the_object_is_met_again() {
        let (notices, mut told) = mpsc::channel(1);
        let mut unreadable = Unreadable {
            kind: "pods",
            keys: BTreeSet::new(),
            untold: BTreeSet::new(),
            lines: Bucket::new(LOG_LINES, Instant::now()),
            counted: Gauge::default(),
            notices: Some((Kind::Pod, notices)),
        };
        let key = |name: &str| Key::new("shop", name);
        let mut next = || told.try_recv().ok().map(|notice| notice.target.key);
        for name in ["a", "b", "c"] {
            unreadable.add(key(name), "uid", "why");
        }
        assert_eq!(next(), Some(key("a")));
        // Whoever was told is not told again, and whoever is gone has nothing to hear.
        unreadable.remove(&key("c"));
        unreadable.add(key("a"), "uid", "why");
        assert_eq!(next(), None);
        for _ in 0..2 {
            unreadable.add(key("b"), "uid", "why");
        }
        assert_eq!(next(), Some(key("b")));
        assert_eq!(next(), None);
        assert_eq!(unreadable.counted.get(), 2);
    }
}
