//! A token bucket: so many at once, and so many a second from then on.

use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and so many a second from then on.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

// === impl Bucket ===

impl Bucket {
    /// Full at `now`.
    pub(super) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self {
            burst: burst.into(),
            per_second: per_second.into(),
            left: burst.into(),
            at: now,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }

    /// When there is one.
    pub(super) fn ready(&self, now: Instant) -> Instant {
        let mut then = self.clone();
        then.fill(now);
        let missing = (1.0 - then.left).max(0.0);
        // A little more than exactly: a sum of fractions may fall short.
        let wait = if missing > 0.0 {
            missing / self.per_second + 0.001
        } else {
            0.0
        };
        now + Duration::from_secs_f64(wait)
    }

    /// Whether nothing was taken of late.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let mut then = self.clone();
        then.fill(now);
        then.left >= then.burst
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.burst);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10, start);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        assert!(!bucket.is_full(start));
        let ready = bucket.ready(start);
        assert!(ready > start && ready < start + Duration::from_millis(110));
        assert!(bucket.take(ready) && !bucket.take(ready));
        let later = start + Duration::from_secs(60);
        assert!(bucket.is_full(later));
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 3);
    }
}
