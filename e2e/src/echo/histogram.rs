//! How long requests took, kept as counts: small enough to send as a line, and sums of runs have percentiles too.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Steps between a duration and its double: a percentile is off by 0.4 % at most.
const STEPS: u64 = 128;

/// How often each duration was seen, rounded to a 128th of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(BTreeMap<u32, u64>);

impl Histogram {
    /// One more of this duration.
    pub fn record(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        *self.0.entry(step(nanos)).or_default() += 1;
    }

    /// Adds what another one has seen.
    pub fn add(&mut self, other: &Self) {
        for (step, count) in &other.0 {
            *self.0.entry(*step).or_default() += count;
        }
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The duration that so many of a hundred do not exceed, by nearest rank; nothing of none.
    pub fn percentile(&self, percent: u64) -> Option<Duration> {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.0.iter().find(|(_, count)| {
            seen += *count;
            seen >= rank
        });
        found.map(|(step, _)| Duration::from_nanos(middle(*step)))
    }
}

/// Which step a duration falls on: each nanosecond has its own up to 128, then 128 share each doubling.
fn step(nanos: u64) -> u32 {
    let doublings = nanos.max(1).ilog2().saturating_sub(STEPS.ilog2());
    let within = nanos >> doublings;
    let step = u64::from(doublings) * STEPS + within;
    u32::try_from(step).unwrap_or(u32::MAX)
}

/// The middle of a step, in nanoseconds.
fn middle(step: u32) -> u64 {
    let step = u64::from(step);
    // The first two hundreds of steps are one nanosecond wide.
    let doublings = (step / STEPS).saturating_sub(1);
    let within = step - doublings * STEPS;
    let width = 1_u64 << doublings.min(56);
    within.saturating_mul(width).saturating_add(width / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_comes_back_as_its_step() {
        for nanos in [
            0,
            1,
            127,
            128,
            255,
            256,
            257,
            1_000,
            123_456,
            7_654_321_000,
            1 << 40,
        ] {
            let back = middle(step(nanos));
            assert!(
                back.abs_diff(nanos) <= nanos / 128,
                "{nanos} came back as {back}"
            );
        }
        let steps: Vec<u32> = (0..100_000).map(step).collect();
        assert!(steps.is_sorted(), "a longer duration has an earlier step");
    }

    #[test]
    fn percentiles_are_nearest_rank_and_of_all_that_was_added() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        assert_eq!(low.percentile(50), None);
        for millis in 1..=100 {
            low.record(Duration::from_millis(millis));
            high.record(Duration::from_millis(100 + millis));
        }
        low.add(&high);
        assert_eq!(low.count(), 200);
        for (percent, millis) in [(0, 1.0), (50, 100.0), (99, 198.0), (100, 200.0)] {
            let found = low.percentile(percent).expect("some").as_secs_f64() * 1e3;
            assert!((found / millis - 1.0).abs() < 0.01, "{percent}: {found}");
        }
    }

    #[test]
    fn it_travels_as_json() {
        let mut one = Histogram::default();
        one.record(Duration::from_micros(250));
        let line = serde_json::to_string(&one).expect("JSON");
        assert_eq!(serde_json::from_str::<Histogram>(&line).expect("JSON"), one);
    }
}
