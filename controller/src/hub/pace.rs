//! How fast changes are published: a few at once, and then so many in a second that every stream can follow.

use std::time::Duration;

use tokio::time::Instant;

/// In a lasting flood changes of this long are published as one: 100 times in a second.
const COALESCE_WINDOW: Duration = Duration::from_millis(10);
/// So many windows may be used up beforehand. Without any, changes that come once per window would each wait for the
/// one before, whose own wait made it late; with them only what is faster than that waits at all.
const BURST_WINDOWS: u32 = 5;

/// When the next may be published.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Until when the windows of what was published last, one after the other.
    used: Option<Instant>,
}

// === impl Pace ===

impl Pace {
    /// Until when to wait; `None`: not at all.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        let next = self.used?.checked_sub(COALESCE_WINDOW * BURST_WINDOWS)?;
        (next > now).then_some(next)
    }

    /// Something was published.
    pub(super) fn published(&mut self, now: Instant) {
        let from = self.used.map_or(now, |used| used.max(now));
        self.used = Some(from + COALESCE_WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishes at each of these times, in milliseconds, or when it may; how long each waited.
    fn waits(times: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now() + Duration::from_secs(60);
        let mut pace = Pace::default();
        let mut free = start;
        let mut waits = Vec::new();
        for at in times {
            let came = start + Duration::from_millis(at);
            let now = came.max(free);
            free = pace.wait(now).unwrap_or(now);
            pace.published(free);
            waits.push(u64::try_from((free - came).as_millis()).unwrap_or(u64::MAX));
        }
        waits
    }

    #[test]
    fn a_steady_hundred_in_a_second_waits_for_nothing() {
        assert_eq!(waits((0..500).map(|n| n * 10)), [0; 500]);
        // Nor when they come unevenly: in pairs.
        assert_eq!(waits((0..500).map(|n| n / 2 * 20)), [0; 500]);
    }

    #[test]
    fn a_flood_is_published_once_per_window() {
        let waits = waits((0..200).map(|n| n / 10));
        let at_once = waits.iter().take_while(|wait| **wait == 0).count();
        assert_eq!(at_once, 6);
        // 200 came within 20 ms; one after the other they would take 10 ms each.
        assert!(waits[199] > 1900, "{waits:?}");
    }

    #[test]
    fn after_a_pause_the_first_is_published_at_once() {
        let flood = std::iter::repeat_n(0, 100);
        let waits = waits(flood.chain([5_000]));
        assert_eq!(waits.last(), Some(&0));
    }
}
