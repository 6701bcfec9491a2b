//! Tokens, checked sparingly: answers are remembered for a while, and nobody can have more checked than his share.
//!
//! Guarantees: a token is checked once at a time, however many show it; at most [`IN_FLIGHT`] reviews run for strangers, and
//! as many for addresses that showed a good token lately; an address has [`PER_PEER`] bad ones per second checked, all
//! strangers together [`STRANGERS`]. Good tokens cost nothing of that. Every answer comes within [`REVIEW_DEADLINE`].
//! Assumptions: the issuer does not take back a token that is bound to a pod before the pod goes, which the index sees.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::answers::{Answers, Digest, digest, expiry};
use super::{Authenticate, AuthenticateError, Caller, REVIEW_DEADLINE};
use crate::metrics::Metrics;
use crate::rate::{Bucket, Buckets, Rate};

/// How long a good token is believed without asking again.
const ACCEPTED_FOR: Duration = Duration::from_secs(60);
/// How long a bad one is refused without asking again: it may become good, when clocks differ or an issuer is new.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Good tokens remembered: as many proxies as a large cluster has.
const ACCEPTED: usize = 16_384;
/// Bad tokens remembered: they cannot push out good ones.
const REFUSED: usize = 4096;
/// Reviews that run at once, for strangers and for others each.
const IN_FLIGHT: usize = 32;
/// Reviews that run at once for one address.
const IN_FLIGHT_PER_PEER: usize = 8;
/// Bad tokens of one address that are checked.
pub const PER_PEER: Rate = Rate {
    burst: 20,
    per_second: 5,
};
/// Bad tokens of all strangers that are checked.
pub const STRANGERS: Rate = Rate {
    burst: 200,
    per_second: 100,
};
/// Addresses whose share is kept.
const PEERS: usize = 65_536;
/// How long an address that showed a good token is no stranger.
const KNOWN_FOR: Duration = Duration::from_secs(60 * 60);

type Outcome = Result<Caller, AuthenticateError>;
type Flight = BoxFuture<'static, Outcome>;

/// Asks `A`, and no more often than it must. Cheap to clone.
pub struct Checked<A>(Arc<Inner<A>>);

struct Inner<A> {
    reviewer: A,
    strangers: Semaphore,
    known: Semaphore,
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    accepted: Answers<Caller>,
    refused: Answers<AuthenticateError>,
    flights: HashMap<Digest, WeakShared<Flight>>,
    flying: HashMap<IpAddr, usize>,
    peers: Buckets<IpAddr>,
    strangers: Bucket,
    known: Answers<(), IpAddr>,
}

/// What happens to a token.
enum Step {
    Answer(Outcome),
    Wait(Shared<Flight>),
}

/// A review under way; its end is seen however it ends.
struct Flying<A: Authenticate> {
    inner: Arc<Inner<A>>,
    token: Digest,
    peer: IpAddr,
}

// === impl Checked ===

impl<A: Authenticate> Checked<A> {
    /// Nothing is known so far.
    pub fn new(reviewer: A, metrics: Metrics) -> Self {
        let state = State {
            accepted: Answers::new(ACCEPTED),
            refused: Answers::new(REFUSED),
            flights: HashMap::new(),
            flying: HashMap::new(),
            peers: Buckets::new(PER_PEER, PEERS),
            strangers: Bucket::new(STRANGERS, Instant::now()),
            known: Answers::new(PEERS),
        };
        Self(Arc::new(Inner {
            reviewer,
            strangers: Semaphore::new(IN_FLIGHT),
            known: Semaphore::new(IN_FLIGHT),
            state: Mutex::new(state),
            metrics,
        }))
    }

    fn step(&self, token: &str, peer: IpAddr) -> Step {
        let (key, now) = (digest(token), Instant::now());
        let mut state = self.0.state.lock();
        if let Some(caller) = state.accepted.get(&key, now) {
            self.0.metrics.reviewed("remembered");
            return Step::Answer(Ok(caller));
        }
        if let Some(error) = state.refused.get(&key, now) {
            self.0.metrics.reviewed("remembered");
            return Step::Answer(Err(error));
        }
        if let Some(flight) = state.flights.get(&key).and_then(WeakShared::upgrade) {
            self.0.metrics.reviewed("shared");
            return Step::Wait(flight);
        }
        let known = state.known.get(&peer, now).is_some();
        if !state.may_ask(peer, known, now) {
            self.0.metrics.reviewed("limited");
            return Step::Answer(Err(AuthenticateError::Limited));
        }
        *state.flying.entry(peer).or_default() += 1;
        let flying = Flying {
            inner: self.0.clone(),
            token: key,
            peer,
        };
        let flight = flying.run(token.to_owned(), known).boxed().shared();
        if let Some(weak) = flight.downgrade() {
            state.flights.insert(key, weak);
        }
        Step::Wait(flight)
    }
}

#[tonic::async_trait]
impl<A: Authenticate> Authenticate for Checked<A> {
    async fn whose(&self, token: &str, peer: IpAddr) -> Outcome {
        match self.step(token, peer) {
            Step::Answer(outcome) => outcome,
            Step::Wait(flight) => flight.await,
        }
    }
}

// === impl State ===

impl State {
    fn may_ask(&mut self, peer: IpAddr, known: bool, now: Instant) -> bool {
        let flying = self.flying.get(&peer).copied().unwrap_or(0);
        if flying >= IN_FLIGHT_PER_PEER || !self.peers.take(&peer, now) {
            return false;
        }
        known || self.strangers.take(now)
    }

    fn remember(&mut self, token: Digest, ends: Option<Duration>, peer: IpAddr, outcome: &Outcome) {
        let now = Instant::now();
        match outcome {
            Ok(caller) => {
                if !self.is_known(peer, now) {
                    self.strangers.give_back();
                }
                self.peers.give_back(&peer);
                self.known.insert(peer, (), now + KNOWN_FOR, now);
                // A token whose end cannot be read is asked about each time.
                if let Some(left) = ends {
                    let until = now + left.min(ACCEPTED_FOR);
                    self.accepted.insert(token, caller.clone(), until, now);
                }
            }
            Err(error) if error.is_verdict() => {
                self.refused
                    .insert(token, error.clone(), now + REFUSED_FOR, now);
            }
            Err(_) => {}
        }
    }

    fn is_known(&mut self, peer: IpAddr, now: Instant) -> bool {
        self.known.get(&peer, now).is_some()
    }
}

// === impl Flying ===

impl<A: Authenticate> Flying<A> {
    async fn run(self, token: String, known: bool) -> Outcome {
        let ends = expiry(&token);
        let slots = if known {
            &self.inner.known
        } else {
            &self.inner.strangers
        };
        let review = async {
            // It is never closed.
            let _slot = slots.acquire().await;
            self.inner.reviewer.whose(&token, self.peer).await
        };
        let outcome = timeout(REVIEW_DEADLINE, review)
            .await
            .unwrap_or(Err(AuthenticateError::Timeout));
        let label = match &outcome {
            Ok(_) => "accepted",
            Err(error) if error.is_verdict() => "refused",
            Err(_) => "failed",
        };
        self.inner.metrics.reviewed(label);
        let left = ends.map(|ends| ends.duration_since(SystemTime::now()).unwrap_or_default());
        let mut state = self.inner.state.lock();
        state.remember(self.token, left, self.peer, &outcome);
        drop(state);
        outcome
    }
}

impl<A: Authenticate> Drop for Flying<A> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.flights.remove(&self.token);
        match state.flying.get(&self.peer).copied() {
            Some(count) if count > 1 => drop(state.flying.insert(self.peer, count - 1)),
            _ => drop(state.flying.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests;
