//! What goes wrong is logged once for all objects that it goes wrong with, not once for each.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Failure;
use super::queue::Work as _;
use super::{Work, WorkKind};
use crate::text::one_line;

/// How often the same kind of trouble with the same kind of object is logged.
const EVERY: Duration = Duration::from_secs(10);
/// A reason that is logged is no longer than this.
const MAX_REASON: usize = 512;

/// When what was complained about last, and how often it was not since. Bounded by the kinds of both.
#[derive(Debug, Default)]
pub(super) struct Complaints(HashMap<(WorkKind, &'static str), (Instant, u64)>);

// === impl Complaints ===

impl Complaints {
    pub(super) fn about(&mut self, work: &Work, failure: &Failure) {
        if let Some(others) = self.admit(work.lane().kind, failure.word(), Instant::now()) {
            let error = one_line(&failure.to_string(), MAX_REASON);
            tracing::warn!(
                ?work,
                error,
                others,
                "the cluster cannot be brought to what is wanted; trying again"
            );
        }
    }

    /// How many like it were not logged, if this one is to be.
    fn admit(&mut self, kind: WorkKind, word: &'static str, now: Instant) -> Option<u64> {
        match self.0.get_mut(&(kind, word)) {
            Some((at, silent)) if now < *at + EVERY => {
                *silent += 1;
                None
            }
            known => {
                let silent = known.map_or(0, |(_, silent)| *silent);
                self.0.insert((kind, word), (now, 0));
                Some(silent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_trouble_is_logged_once_and_counted() {
        let mut complaints = Complaints::default();
        let now = Instant::now();
        assert_eq!(complaints.admit(WorkKind::Roots, "late", now), Some(0));
        for _ in 0..100 {
            assert_eq!(complaints.admit(WorkKind::Roots, "late", now), None);
        }
        assert_eq!(complaints.admit(WorkKind::Roots, "busy", now), Some(0));
        assert_eq!(complaints.admit(WorkKind::Class, "late", now), Some(0));
        let later = now + EVERY;
        assert_eq!(complaints.admit(WorkKind::Roots, "late", later), Some(100));
    }
}
