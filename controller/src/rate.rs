//! Token buckets on a clock that the caller names: so much at once, so much per second.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// How much at once, and how fast it comes back.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// And then per second.
    pub per_second: u32,
}

/// One bucket, full at first.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    rate: Rate,
    left: f64,
    seen: Instant,
}

/// A bucket each, for at most so many.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    most: usize,
    all: HashMap<K, Bucket>,
}

// === impl Bucket ===

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            left: rate.burst.into(),
            seen: now,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(1, now).is_ok()
    }

    /// Takes so many at once, or says how long until there are as many. Of more than it can ever hold, it takes all it holds.
    pub fn take_many(&mut self, count: usize, now: Instant) -> Result<(), Duration> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let count = f64::from(count.min(self.rate.burst));
        match self.until(count, now) {
            None => {
                self.left -= count;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }

    /// When there is one.
    pub fn ready(&mut self, now: Instant) -> Instant {
        now + self.until(1.0, now).unwrap_or_default()
    }

    /// How long until there are so many, if there are not yet.
    fn until(&mut self, count: f64, now: Instant) -> Option<Duration> {
        self.fill(now);
        let missing = count - self.left;
        // A little more than exactly: a sum of fractions may fall short.
        let wait = missing / f64::from(self.rate.per_second) + 0.001;
        (missing > 0.0).then(|| Duration::from_secs_f64(wait))
    }

    /// What was taken did no harm.
    pub fn give_back(&mut self) {
        self.left = (self.left + 1.0).min(self.rate.burst.into());
    }

    /// Whether it has as much as it can hold: as good as new.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.rate.burst.into()
    }

    fn fill(&mut self, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        let more = passed.as_secs_f64() * f64::from(self.rate.per_second);
        self.left = (self.left + more).min(self.rate.burst.into());
    }
}

// === impl Buckets ===

impl<K: Clone + Eq + Hash> Buckets<K> {
    /// None so far.
    pub fn new(rate: Rate, most: usize) -> Self {
        Self {
            rate,
            most,
            all: HashMap::new(),
        }
    }

    /// Takes one from this bucket. When there are too many buckets, none that is not full is forgotten: newcomers get nothing.
    pub fn take(&mut self, of: &K, now: Instant) -> bool {
        if let Some(bucket) = self.all.get_mut(of) {
            return bucket.take(now);
        }
        if self.all.len() >= self.most {
            self.all.retain(|_, bucket| !bucket.is_full(now));
        }
        if self.all.len() >= self.most {
            return false;
        }
        let bucket = self
            .all
            .entry(of.clone())
            .or_insert_with(|| Bucket::new(self.rate, now));
        bucket.take(now)
    }

    /// What was taken from this bucket did no harm.
    pub fn give_back(&mut self, of: &K) {
        if let Some(bucket) = self.all.get_mut(of) {
            bucket.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 3,
        per_second: 2,
    };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        let taken = |bucket: &mut Bucket, at| (0..10).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(499)), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(500)), 1);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(100)), 3);
        bucket.give_back();
        assert!(
            bucket.take(start),
            "a clock that went back takes nothing away"
        );
    }

    #[test]
    fn a_bucket_says_when_there_is_one_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        assert_eq!(bucket.ready(start), start);
        while bucket.take(start) {}
        let ready = bucket.ready(start);
        assert!(ready > start && ready < start + Duration::from_millis(510));
        assert!(bucket.take(ready) && !bucket.take(ready));
        let wait = bucket.take_many(2, ready).expect_err("there are none");
        assert!(!bucket.take(ready), "nothing was taken");
        assert_eq!(bucket.take_many(2, ready + wait), Ok(()));
        let full = ready + Duration::from_secs(100);
        assert!(bucket.take_many(100, full).is_ok() && !bucket.take(full));
    }

    #[test]
    fn buckets_are_bounded_and_only_full_ones_are_forgotten() {
        let start = Instant::now();
        let mut buckets = Buckets::new(RATE, 2);
        assert!(buckets.take(&1, start));
        assert!(buckets.take(&2, start));
        assert!(!buckets.take(&3, start), "there is no room");
        let later = start + Duration::from_secs(1);
        assert!(buckets.take(&1, later));
        assert!(buckets.take(&3, later), "the second is full again");
        assert_eq!(buckets.all.len(), 2);
    }
}
