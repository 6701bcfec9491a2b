//! How many log lines strangers can cause: so many at once, then so many a second; the rest is told as a count.
//!
//! For lines about who was *not* served. Anybody can be refused thousands of times a second, and would push the lines that
//! matter out of a node's log, which keeps some megabytes of each container. All of them are in the metrics.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Lines of one kind at once: more than people read, and than tests or a restart of a large client cause.
pub const BURST: u32 = 100;

/// Then one in this time: some hours of it are what a kubelet keeps of a container's log (50 MiB).
pub const EVERY: Duration = Duration::from_millis(100);

/// Lines of one kind, as one thread or one pod's proxy may write them. Has no clock: the caller says what time it is.
#[derive(Debug, Default)]
pub struct LineLimit {
    /// When the burst will be whole again; `None`: it has been whole ever since.
    whole: Option<Instant>,
    unlogged: u64,
}

/// A line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pass {
    /// How many lines of its kind were not written since the last one that was. To be told with this one.
    pub unlogged: Option<NonZeroU64>,
}

impl LineLimit {
    /// With the whole burst ahead.
    pub const fn new() -> Self {
        Self {
            whole: None,
            unlogged: 0,
        }
    }

    /// Whether one more line may be written now. `None`: it is counted instead.
    pub fn pass(&mut self, now: Instant) -> Option<Pass> {
        // One line takes one share of the burst, which is back that much later.
        let whole = self.whole.map_or(now, |whole| whole.max(now)) + EVERY;
        if whole.saturating_duration_since(now) > EVERY * BURST {
            self.unlogged = self.unlogged.saturating_add(1);
            return None;
        }
        self.whole = Some(whole);
        let unlogged = NonZeroU64::new(std::mem::take(&mut self.unlogged));
        Some(Pass { unlogged })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many lines pass at this time.
    fn written(limit: &mut LineLimit, lines: u32, now: Instant) -> u32 {
        let passed = (0..lines).filter(|_| limit.pass(now).is_some());
        u32::try_from(passed.count()).expect("few")
    }

    #[test]
    fn a_flood_becomes_a_burst_a_trickle_and_a_count() {
        let (mut limit, began) = (LineLimit::new(), Instant::now());
        assert_eq!(written(&mut limit, 10_000, began), BURST);
        let mut total = 0;
        for tenth in 1..=600 {
            let now = began + EVERY * tenth;
            let pass = limit.pass(now).expect("one in each tenth of a second");
            total += pass.unlogged.map_or(0, NonZeroU64::get);
            assert_eq!(written(&mut limit, 50, now), 0);
        }
        // All that was left out so far but for the last turn's.
        assert_eq!(total, 9_900 + 599 * 50);
    }

    #[test]
    fn rest_brings_the_burst_back_and_never_more() {
        for (rest, lines) in [
            (Duration::ZERO, 0),
            (EVERY / 2, 0),
            (EVERY, 1),
            (EVERY * 7, 7),
            (EVERY * BURST, BURST),
            (Duration::from_secs(86_400), BURST),
        ] {
            let (mut limit, began) = (LineLimit::new(), Instant::now());
            assert_eq!(written(&mut limit, BURST, began), BURST);
            assert_eq!(written(&mut limit, 1_000, began + rest), lines, "{rest:?}");
        }
    }

    #[test]
    fn who_is_seldom_refused_is_told_nothing_of_a_limit() {
        let (mut limit, began) = (LineLimit::new(), Instant::now());
        for n in 0..1_000 {
            let pass = limit.pass(began + EVERY * n);
            assert_eq!(pass, Some(Pass { unlogged: None }));
        }
    }
}
