//! DECISION: when the server's own certificate is made anew.
//!
//! By the wall clock, which a certificate's life is measured on and which may jump: whoever waits asks again at least every
//! [`LONGEST_WAIT`].

use std::time::{Duration, SystemTime};

/// The wall clock is looked at this often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// After the first failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Between two attempts, however many failed.
const LAST_RETRY: Duration = Duration::from_secs(300);
/// An issuer that ends soon signs short lives: even they are not renewed all the time.
const SHORTEST: Duration = Duration::from_secs(30);

/// When the next attempt is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renewal {
    at: SystemTime,
    /// When that was decided: a clock that shows less went back, and what was signed may lie in its future.
    since: SystemTime,
    failures: u32,
}

// === impl Renewal ===

impl Renewal {
    /// After success: once half of what is left of the certificate's life has passed.
    pub(super) fn issued(now: SystemTime, not_after: SystemTime) -> Self {
        let left = not_after.duration_since(now).unwrap_or_default();
        Self {
            at: now + (left / 2).max(SHORTEST),
            since: now,
            failures: 0,
        }
    }

    /// After a failure: soon.
    pub(super) fn failed(self, now: SystemTime) -> Self {
        let delay = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        Self {
            at: now + delay.min(LAST_RETRY),
            since: now,
            failures: self.failures.saturating_add(1),
        }
    }

    /// How long to wait before asking again; nothing: it is due.
    pub(super) fn wait(&self, now: SystemTime) -> Option<Duration> {
        let left = self.at.duration_since(now).ok()?;
        (!left.is_zero() && now >= self.since).then(|| left.min(LONGEST_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    #[test]
    fn a_certificate_is_renewed_at_half_its_life_whatever_the_clock_did() {
        let renewal = Renewal::issued(start(), start() + DAY);
        assert_eq!(renewal.wait(start()), Some(LONGEST_WAIT));
        let nearly = start() + DAY / 2 - Duration::from_secs(1);
        assert_eq!(renewal.wait(nearly), Some(Duration::from_secs(1)));
        assert_eq!(renewal.wait(start() + DAY / 2), None);
        assert_eq!(renewal.wait(start() + 3 * DAY), None);
        assert_eq!(renewal.wait(start() - DAY), None, "the clock went back");
    }

    #[test]
    fn a_failure_is_tried_again_soon_and_never_later_than_minutes() {
        let mut renewal = Renewal::issued(start(), start() + DAY);
        let mut now = start() + DAY / 2;
        let mut delays = Vec::new();
        while now < start() + DAY {
            assert_eq!(renewal.wait(now), None);
            renewal = renewal.failed(now);
            let delay = renewal.at.duration_since(now).expect("later");
            delays.push(delay.as_secs());
            now = renewal.at;
        }
        assert_eq!(delays[..8], [5, 10, 20, 40, 80, 160, 300, 300]);
        assert!(delays.len() > 100, "many attempts before it ends");
        let renewal = Renewal::issued(now, now + DAY);
        assert_eq!(renewal.failures, 0);
    }

    #[test]
    fn a_life_that_is_all_but_over_is_no_reason_to_hurry_without_end() {
        for not_after in [start(), start() - DAY, start() + Duration::from_secs(2)] {
            let renewal = Renewal::issued(start(), not_after);
            assert_eq!(renewal.wait(start()), Some(SHORTEST));
        }
    }
}
