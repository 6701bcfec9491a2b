//! What this process sees of each endpoint: how much it has to do, how fast it answers, whether it could be reached.
//!
//! Kept by workload and port, by all cores, however often sets are built again, for as long as the workload is known.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::intern::Sweep;
use crate::names::Uid;

/// How long an endpoint is left alone after it could not be reached; twice as long each further time.
const AVOIDED: Duration = Duration::from_secs(1);

/// But not longer: a pod that comes back is found within this time, and until the control plane notices that a node
/// is dead (40 s), a handful of connections pay for looking.
const AVOIDED_AT_MOST: Duration = Duration::from_secs(16);

/// A measurement counts as an eighth of what is remembered.
const WEIGHT: u32 = 8;

/// Instants are kept as milliseconds since somebody first kept one.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What is seen of one port of one workload. A count that two cores write at once may be a little behind, never wrong for long.
#[derive(Debug, Default)]
pub struct EndpointStats {
    in_flight: AtomicU32,
    /// Of answers, in µs, weighted; 0: none was measured.
    latency: AtomicU32,
    /// Times in a row that it could not be reached.
    failures: AtomicU32,
    /// Until then it is avoided.
    failed_until: AtomicU64,
    /// When it was last reached.
    reached: AtomicU64,
}

/// One connection or request that an endpoint has; over when dropped.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointStats>);

/// What is seen of all endpoints that were ever in a set.
#[derive(Debug, Default)]
pub(crate) struct StatsTable(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    all: HashMap<Uid, Vec<(u16, Arc<EndpointStats>)>>,
    sweep: Sweep,
}

// === impl EndpointStats ===

impl EndpointStats {
    /// It has one more.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// What it has to do now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// It answered after this time.
    pub fn answered(&self, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX).max(1);
        let before = self.latency.load(Relaxed);
        let now = match before {
            0 => sample,
            _ => before - before / WEIGHT + sample / WEIGHT,
        };
        self.latency.store(now.max(1), Relaxed);
    }

    /// How fast it answers; nothing before it has.
    pub fn latency(&self) -> Option<Duration> {
        match self.latency.load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros.into())),
        }
    }

    /// It was reached.
    pub fn reached(&self, now: Instant) {
        self.reached.store(millis(now), Relaxed);
        // Read first: what many cores only read is not taken from one another.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.failed_until.store(0, Relaxed);
        }
    }

    /// It could not be reached by somebody who began to try at `began`.
    ///
    /// Whoever else has reached it since then shows that the reason is not the endpoint: one client that is not let
    /// through to it takes it from nobody. What was tried at the same time fails once.
    pub fn failed(&self, began: Instant, now: Instant) {
        let (began, now) = (millis(began), millis(now));
        if self.reached.load(Relaxed) > began || self.failed_until.load(Relaxed) > now {
            return;
        }
        let before = self.failures.fetch_add(1, Relaxed);
        let longer = AVOIDED
            .saturating_mul(1 << before.min(8))
            .min(AVOIDED_AT_MOST);
        let until = now + longer.as_millis() as u64;
        self.failed_until.store(until, Relaxed);
    }

    /// Whether it could not be reached just now.
    pub fn is_avoided(&self, now: Instant) -> bool {
        match self.failed_until.load(Relaxed) {
            0 => false,
            until => millis(now) < until,
        }
    }

    /// Compares pending × latency. Where either was not measured, only what they have to do can be compared.
    pub(super) fn load_against(&self, other: &Self) -> std::cmp::Ordering {
        let (pending, others) = (u64::from(self.in_flight()), u64::from(other.in_flight()));
        match (self.latency.load(Relaxed), other.latency.load(Relaxed)) {
            (0, _) | (_, 0) => pending.cmp(&others),
            (ours, theirs) => (pending * u64::from(ours)).cmp(&(others * u64::from(theirs))),
        }
    }
}

/// Never 0, which is for what has not happened.
fn millis(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*ORIGIN).as_millis();
    u64::try_from(since).unwrap_or(u64::MAX).max(1)
}

// === impl InFlight ===

impl InFlight {
    /// Of the endpoint that has it.
    pub fn stats(&self) -> &EndpointStats {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

// === impl StatsTable ===

impl StatsTable {
    /// Of one endpoint: the same each time.
    pub(crate) fn of(&self, uid: &Uid, target: u16) -> Arc<EndpointStats> {
        self.0.lock().of(uid, target)
    }

    /// The workload went, or is another at another address.
    pub(crate) fn forget(&self, uid: &Uid) {
        self.0.lock().all.remove(uid);
    }

    /// Now and then, drops what a set of an old snapshot brought back after it was forgotten.
    pub(crate) fn tidy(&self, is_known: impl Fn(&Uid) -> bool) {
        let Seen { all, sweep } = &mut *self.0.lock();
        if sweep.is_due(all.len()) {
            all.retain(|uid, _| is_known(uid));
            sweep.done(all.len());
        }
    }
}

impl Seen {
    fn of(&mut self, uid: &Uid, target: u16) -> Arc<EndpointStats> {
        let Some(known) = self.all.get_mut(uid) else {
            let new = Arc::default();
            self.all
                .insert(uid.clone(), vec![(target, Arc::clone(&new))]);
            return new;
        };
        if let Some((_, stats)) = known.iter().find(|(port, _)| *port == target) {
            return Arc::clone(stats);
        }
        let new = Arc::default();
        known.push((target, Arc::clone(&new)));
        new
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    #[test]
    fn what_is_over_counts_no_more_however_it_ended() {
        let stats = Arc::new(EndpointStats::default());
        let (first, second) = (stats.begin(), stats.begin());
        assert_eq!(stats.in_flight(), 2);
        drop(first);
        assert_eq!(stats.in_flight(), 1);
        let cancelled = async move {
            let _held = second;
            std::future::pending::<()>().await;
        };
        drop(cancelled);
        assert_eq!(stats.in_flight(), 0);
    }

    #[test]
    fn what_fails_is_avoided_for_longer_each_time_and_comes_back() {
        let stats = EndpointStats::default();
        let mut now = Instant::now();
        assert!(!stats.is_avoided(now));
        for seconds in [1, 2, 4, 8, 16, 16, 16] {
            stats.failed(now, now);
            // What failed with it counts once.
            stats.failed(now, now);
            let last = now + Duration::from_secs(seconds) - Duration::from_millis(1);
            assert!(stats.is_avoided(now) && stats.is_avoided(last), "{seconds}");
            now += Duration::from_secs(seconds);
            assert!(!stats.is_avoided(now), "{seconds}");
        }
        stats.reached(now);
        now += Duration::from_secs(1);
        stats.failed(now, now);
        assert!(stats.is_avoided(now));
        assert!(!stats.is_avoided(now + AVOIDED));
        stats.reached(now);
        assert!(!stats.is_avoided(now));
    }

    #[test]
    fn one_client_that_is_not_let_through_takes_an_endpoint_from_nobody() {
        let stats = EndpointStats::default();
        let began = Instant::now();
        let later = |seconds| began + Duration::from_secs(seconds);
        stats.reached(later(5));
        stats.failed(began, later(10));
        assert!(!stats.is_avoided(later(10)));
        // Nobody since.
        stats.failed(later(6), later(16));
        assert!(stats.is_avoided(later(16)));
    }

    #[test]
    fn less_to_do_is_pending_times_latency() {
        let of = |pending: u32, micros: u32| EndpointStats {
            in_flight: pending.into(),
            latency: micros.into(),
            ..Default::default()
        };
        for (one, other, expected) in [
            ((1, 0), (2, 0), Ordering::Less),
            ((1, 9_000), (2, 0), Ordering::Less),
            ((1, 9_000), (2, 1_000), Ordering::Greater),
            ((1, 1_000), (9, 1_000), Ordering::Less),
            // Idle is idle: a slow one is still tried, or nobody learns that it has recovered.
            ((0, 9_000), (0, 1_000), Ordering::Equal),
        ] {
            let (one, other) = (of(one.0, one.1), of(other.0, other.1));
            assert_eq!(one.load_against(&other), expected);
            assert_eq!(other.load_against(&one), expected.reverse());
        }
    }

    #[test]
    fn latency_follows_what_is_measured() {
        let stats = EndpointStats::default();
        assert_eq!(stats.latency(), None);
        stats.answered(Duration::from_millis(8));
        assert_eq!(stats.latency(), Some(Duration::from_millis(8)));
        for _ in 0..50 {
            stats.answered(Duration::from_millis(1));
        }
        let now = stats.latency().unwrap_or_default();
        assert!(now < Duration::from_micros(1_100), "{now:?}");
    }

    #[test]
    fn the_table_keeps_one_for_each_port_until_it_is_forgotten() {
        let table = StatsTable::default();
        let of = |uid: &str, port| table.of(&Uid::from(uid), port);
        let (a, other) = (of("a", 80), of("a", 81));
        assert!(Arc::ptr_eq(&a, &of("a", 80)) && !Arc::ptr_eq(&a, &other));
        table.forget(&Uid::from("a"));
        assert!(!Arc::ptr_eq(&a, &of("a", 80)));
        // What was brought back for nobody.
        for uid in 0..2_000 {
            of(&uid.to_string(), 80);
        }
        let kept = of("7", 80);
        table.tidy(|uid| uid.as_str() == "7");
        assert_eq!(table.0.lock().all.len(), 1);
        assert!(Arc::ptr_eq(&kept, &of("7", 80)));
    }
}
