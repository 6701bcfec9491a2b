//! How long to wait before the next attempt: doubling, bounded, and different for each process.

use std::time::Duration;

/// The delays of one series of failures.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// One more failure: between half of the delay and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1 << self.failures.min(30))
            .min(self.most);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(15));
        let first = backoff.next();
        assert!(first >= Duration::from_millis(5) && first <= Duration::from_millis(10));
        for _ in 0..100 {
            assert!(backoff.next() <= Duration::from_secs(15));
        }
        assert!(backoff.next() >= Duration::from_millis(7500));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(10));
    }
}
