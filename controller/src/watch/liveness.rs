//! DECISION: whether this replica has missed so much of one kind that proxies had better ask another replica.
//!
//! It has if the API server spoke to it all the time, and one of its watches has heard nothing for longer than a dead watch
//! needs to recover. It says so by being unready, with the kind's name for a reason, and never
//! * while the API server answers nobody: no replica knows more, and without endpoints of the Service no proxy could even
//!   begin. Once the server is back, every watch has as long as ever to find that out;
//! * while it leads: what breaks a watch may break it for every replica (a right that is missing, a kind whose lists fail),
//!   and one of them serves, as long as one leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh::process::readiness::{Pending, Readiness};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{IDLE, RECOVERED_WITHIN};

/// How often it is looked: nothing beside [`RECOVERED_WITHIN`], and soon once a watch is back.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// When each watch last heard something. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Liveness(Arc<Mutex<Heard>>);

/// What was heard when: a whole list, an event, a bookmark, or that there is no such kind.
#[derive(Debug)]
struct Heard {
    kinds: BTreeMap<&'static str, Instant>,
    /// By any watch.
    last: Instant,
    /// From then on until `last` never longer than [`IDLE`] passed in between.
    since: Instant,
}

// === impl Liveness ===

impl Liveness {
    /// Of watches that begin now.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Heard::new(Instant::now()))))
    }

    /// The watch of this kind heard something, or begins.
    pub(super) fn heard(&self, kind: &'static str) {
        self.0.lock().hear(kind, Instant::now());
    }

    /// Keeps the replica unready while it is to be.
    pub async fn keep(self, ready: Readiness, leads: impl Fn() -> bool) {
        let mut unready: Option<(&'static str, Pending)> = None;
        loop {
            sleep(POLL_INTERVAL).await;
            let broken = self.0.lock().broken(Instant::now(), leads());
            if unready.as_ref().map(|(kind, _)| *kind) == broken {
                continue;
            }
            match broken {
                Some(kind) => tracing::warn!(
                    kind,
                    "unready: this kind's watch is broken, and the API server is not away"
                ),
                None => tracing::info!("ready again"),
            }
            unready = broken.map(|kind| (kind, ready.wait_for(kind)));
        }
    }
}

impl Default for Liveness {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Heard ===

impl Heard {
    fn new(now: Instant) -> Self {
        Self {
            kinds: BTreeMap::new(),
            last: now,
            since: now,
        }
    }

    fn hear(&mut self, kind: &'static str, now: Instant) {
        if now - self.last > IDLE {
            self.since = now;
        }
        self.last = now;
        self.kinds.insert(kind, now);
    }

    /// The kind for whose sake this replica is unready.
    fn broken(&self, now: Instant, leads: bool) -> Option<&'static str> {
        if leads || now - self.last > IDLE {
            return None;
        }
        let missed = |heard: Instant| self.last - heard.max(self.since);
        let mut kinds = self.kinds.iter();
        let broken = kinds.find(|(_, heard)| missed(**heard) > RECOVERED_WITHIN);
        broken.map(|(kind, _)| *kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `routes` is heard every minute until one second, `pods` until another and then from 700 s on until a third.
    fn broken([routes, pods, again]: [u64; 3], now: u64, leads: bool) -> bool {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let of_routes = (0..=routes).step_by(60).map(|second| (second, "routes"));
        let of_pods = (0..=pods).step_by(60).chain((700..=again).step_by(60));
        let of_pods = of_pods.map(|second| (second, "pods"));
        let mut all: Vec<_> = of_routes.chain(of_pods).collect();
        all.sort_unstable();
        let mut heard = Heard::new(start);
        for (second, kind) in all {
            heard.hear(kind, at(second));
        }
        let broken = heard.broken(at(now), leads);
        assert!(broken.is_none_or(|kind| kind == "routes"));
        broken.is_some()
    }

    #[test]
    fn only_a_kind_that_is_behind_others_makes_a_follower_unready() {
        assert_eq!(RECOVERED_WITHIN.as_secs(), 510);
        for (what, heard, now, leads, expected) in [
            ("all is well", [6000, 6000, 0], 6000, false, false),
            ("not yet", [60, 540, 0], 600, false, false),
            ("for too long", [60, 600, 0], 601, false, true),
            ("the leader serves", [60, 600, 0], 601, true, false),
            ("the server is away", [60, 60, 0], 601, false, false),
            ("it may be away", [60, 600, 0], 750, false, true),
            ("it is, by now", [60, 600, 0], 751, false, false),
            ("it is back", [60, 60, 700], 701, false, false),
            ("one lags", [60, 60, 1180], 1181, false, false),
            ("for good", [60, 60, 1240], 1241, false, true),
            ("and back", [1200, 60, 1240], 1241, false, false),
        ] {
            assert_eq!(broken(heard, now, leads), expected, "{what}");
        }
    }
}
