//! Two programs that each put the node's configuration right: how long the other one's rewrite is left unanswered.

use std::time::Duration;

use tokio::time::Instant;

/// How often in a row the configuration had to be written.
#[derive(Debug, Default)]
pub(super) struct Contest {
    times: u32,
    last: Option<Instant>,
}

/// The wait before a rewrite is answered, doubled with each one: several events in a row are one, and a network plugin
/// that writes a few times as it starts is answered at once. The last is short enough for a node on which pods start, and
/// long enough for the other program, the disk and the log.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));

/// More rewrites than a network plugin needs to start.
const INSISTING: u32 = 6;

/// Nobody who insists waits longer.
const QUIET: Duration = Duration::from_secs(60);

// === impl Contest ===

impl Contest {
    /// The configuration was looked at, and had to be written or not.
    pub(super) fn look(&mut self, now: Instant, written: bool) {
        if self.last.is_some_and(|last| now - last >= QUIET) {
            self.times = 0;
        }
        if written {
            self.times = self.times.saturating_add(1);
            self.last = Some(now);
        }
    }

    /// How often it was written, if another program insists on its own version.
    pub(super) fn insisting(&self) -> Option<u32> {
        (self.times >= INSISTING).then_some(self.times)
    }

    /// How long after an event is looked again.
    pub(super) fn pause(&self) -> Duration {
        let (first, last) = PAUSES;
        let doubled = 1 << self.times.saturating_sub(1).min(16);
        first.saturating_mul(doubled).min(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_insists_is_answered_ever_later_and_forgiven_after_a_quiet_minute() {
        let (mut contest, mut now) = (Contest::default(), Instant::now());
        contest.look(now, true);
        assert_eq!(contest.pause(), PAUSES.0);
        let (mut writes, began) = (1, now);
        while now - began < Duration::from_secs(300) {
            now += contest.pause();
            // What we write is an event, too.
            contest.look(now, false);
            now += contest.pause();
            contest.look(now, true);
            writes += 1;
            assert_eq!(contest.insisting(), (writes >= INSISTING).then_some(writes));
        }
        assert_eq!(contest.pause(), PAUSES.1);
        assert!(writes < 30, "{writes} writes in five minutes");

        contest.look(now + QUIET / 2, false);
        assert!(contest.insisting().is_some());
        contest.look(now + QUIET, false);
        assert_eq!((contest.insisting(), contest.pause()), (None, PAUSES.0));
    }
}
