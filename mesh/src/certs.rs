//! A certificate per identity: fetched on need, renewed at half its life, dropped when nobody holds it.
//!
//! One [`Keeper`] on the control thread owns them all; every thread asks through [`Certificates`].
//! Guarantees: one fetch per identity at a time; at most [`CONCURRENCY`] in all, those that somebody waits for
//! first; a failed renewal keeps the certificate that is there until it ends.

mod clock;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hbone::{Credentials, CredentialsWriter, Identity, Revocations, SpiffeId, credentials};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::clock::Clock;
use crate::backoff::Backoff;
use crate::ca::{Authority, CaError, obtain, usable};
use crate::revocations::InForce;

/// Fetches under way at once: a node that starts with hundreds of identities must not storm the controller.
const CONCURRENCY: usize = 8;
/// Questions that wait for the keeper.
const QUESTIONS: usize = 1024;
/// The first delay after a failed fetch.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest delay between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(150);
/// Who asks this shortly before the next attempt waits for it; others are told the last failure at once.
const NEAR_RETRY: Duration = Duration::from_secs(5);
/// How long a certificate that nobody holds is kept, in case somebody comes back.
const KEPT_UNUSED: Duration = Duration::from_secs(300);
/// Nothing is renewed more often, however short its life.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(10);
/// The keeper looks at the wall clock at least this often: it may jump.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Certificates, for any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates {
    questions: mpsc::Sender<Question>,
    list: watch::Receiver<Arc<[Held]>>,
}

/// The owner of all certificates. [`run`](Keeper::run) it on the control thread.
pub struct Keeper<A> {
    authority: Arc<A>,
    clock: Clock,
    questions: mpsc::Receiver<Question>,
    entries: HashMap<SpiffeId, Entry>,
    fetches: FuturesUnordered<BoxFuture<'static, (SpiffeId, Result<Identity, CaError>)>>,
    list: watch::Sender<Arc<[Held]>>,
    /// What peers of all identities are judged by.
    revocations: InForce,
    metrics: Metrics,
}

/// Why there is no certificate for an identity.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertError {
    /// The last attempt failed.
    #[error("no certificate for {id}: {source}")]
    Failed {
        /// Asked for.
        id: SpiffeId,
        /// Of the last attempt.
        source: Arc<CaError>,
    },
    /// It was released while somebody waited for it.
    #[error("the certificate of {0} was released")]
    Released(SpiffeId),
    /// The process ends.
    #[error("nobody keeps certificates any more")]
    Stopped,
}

/// One certificate, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Held {
    /// Whose.
    pub id: String,
    /// Hexadecimal; empty while there is none.
    pub serial: String,
    /// Seconds since the epoch; 0 while there is none.
    pub not_after: u64,
    /// Why the last attempt failed; empty when it did not.
    pub failure: String,
}

/// What the keeper counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    held: Gauge,
    fetches: Family<Outcome, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

enum Question {
    Get(SpiffeId, oneshot::Sender<Result<Credentials, CertError>>),
    Release(SpiffeId),
}

/// One identity.
struct Entry {
    current: Option<CredentialsWriter>,
    next: Next,
    waiting: Vec<oneshot::Sender<Result<Credentials, CertError>>>,
    failure: Option<Arc<CaError>>,
    backoff: Backoff,
    /// When somebody asked, or was last seen to hold it.
    /// As the clock's `elapsed`.
    used: Duration,
    released: bool,
}

/// What happens next to an entry.
enum Next {
    /// As soon as there is room.
    Fetch,
    /// Under way.
    Fetching,
    /// By the wall clock: the certificate's life is measured on it.
    Renew(SystemTime),
    /// After a failure, by the clock's `elapsed`.
    Retry(Duration),
}

// === impl Certificates ===

impl Certificates {
    /// A handle and its keeper.
    pub fn new<A: Authority>(authority: A, clock: Clock) -> (Self, Keeper<A>) {
        let (questions_in, questions) = mpsc::channel(QUESTIONS);
        let (list, list_out) = watch::channel(Arc::from([]));
        let keeper = Keeper {
            authority: Arc::new(authority),
            clock,
            questions,
            entries: HashMap::new(),
            fetches: FuturesUnordered::new(),
            list,
            revocations: watch::channel(None).1,
            metrics: Metrics::default(),
        };
        (
            Self {
                questions: questions_in,
                list: list_out,
            },
            keeper,
        )
    }

    /// The identity's credentials, which stay current for as long as they are held. Fetches them if need be.
    pub async fn get(&self, id: &SpiffeId) -> Result<Credentials, CertError> {
        let (answer, answered) = oneshot::channel();
        let question = Question::Get(id.clone(), answer);
        self.questions
            .send(question)
            .await
            .map_err(|_| CertError::Stopped)?;
        answered.await.map_err(|_| CertError::Stopped)?
    }

    /// The identity is not needed any more: it is forgotten as soon as nobody holds its credentials,
    /// and who still waits for them is told so.
    pub async fn release(&self, id: &SpiffeId) {
        // A keeper that is gone holds nothing.
        let _ = self.questions.send(Question::Release(id.clone())).await;
    }

    /// All there are, for people.
    pub fn list(&self) -> Arc<[Held]> {
        Arc::clone(&self.list.borrow())
    }
}

// === impl Keeper ===

impl<A: Authority> Keeper<A> {
    /// What it counts, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Has the holders of all certificates judge their peers by what is in force, now and after each change.
    #[must_use]
    pub fn judging_by(self, revocations: InForce) -> Self {
        Self {
            revocations,
            ..self
        }
    }

    /// Answers and renews for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut asked = true;
        loop {
            let wake = self.wake();
            tokio::select! {
                question = self.questions.recv(), if asked => match question {
                    Some(Question::Get(id, answer)) => self.get(id, answer),
                    Some(Question::Release(id)) => self.release(&id),
                    // Nobody can ask; what is held is still renewed.
                    None => asked = false,
                },
                Some((id, outcome)) = self.fetches.next() => self.fetched(&id, outcome),
                Ok(()) = self.revocations.changed() => self.inform(),
                () = self.clock.clone().reach(wake) => {}
            }
            self.sweep();
            self.start_due();
            self.publish();
        }
    }

    fn get(&mut self, id: SpiffeId, answer: oneshot::Sender<Result<Credentials, CertError>>) {
        let (wall, now) = (self.clock.wall(), self.clock.elapsed());
        let entry = self.entries.entry(id.clone()).or_insert_with(Entry::new);
        entry.used = now;
        entry.released = false;
        match (entry.valid(wall), &entry.next, &entry.failure) {
            (Some(credentials), ..) => drop(answer.send(Ok(credentials))),
            (None, Next::Retry(at), Some(failure)) if *at > now + NEAR_RETRY => {
                let source = Arc::clone(failure);
                drop(answer.send(Err(CertError::Failed { id, source })));
            }
            _ => entry.waiting.push(answer),
        }
    }

    /// Something else is revoked than before.
    fn inform(&mut self) {
        let revocations = self.revocations.borrow_and_update().clone();
        let held = self
            .entries
            .values()
            .filter_map(|entry| entry.current.as_ref());
        for writer in held {
            writer.replace(writer.current().informed(revocations.clone()));
        }
    }

    fn release(&mut self, id: &SpiffeId) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.released = true;
        for waiting in entry.waiting.drain(..) {
            let _ = waiting.send(Err(CertError::Released(id.clone())));
        }
    }

    fn fetched(&mut self, id: &SpiffeId, outcome: Result<Identity, CaError>) {
        let label = outcome.as_ref().map_or_else(CaError::code, |_| "ok");
        self.metrics
            .fetches
            .get_or_create(&Outcome { outcome: label })
            .inc();
        let now = self.clock.elapsed();
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        match outcome {
            Ok(identity) => {
                tracing::debug!(%id, serial = identity.serial(), "certificate fetched");
                let revocations: Option<Revocations> = self.revocations.borrow().clone();
                entry.put(identity.informed(revocations), self.clock.wall());
            }
            Err(error) => {
                let delay = entry.backoff.next();
                tracing::warn!(%id, ?delay, "no certificate, trying again: {error}");
                entry.fail(id, error, now + delay);
            }
        }
    }

    /// Forgets what nobody holds or waits for.
    fn sweep(&mut self) {
        let now = self.clock.elapsed();
        self.entries.retain(|id, entry| {
            entry.waiting.retain(|waiting| !waiting.is_closed());
            let held = entry
                .current
                .as_ref()
                .is_some_and(CredentialsWriter::is_held);
            if held || !entry.waiting.is_empty() {
                entry.used = now;
                return true;
            }
            let keep = !entry.released && now < entry.used + KEPT_UNUSED;
            if !keep {
                tracing::debug!(%id, "certificate forgotten: nobody holds it");
            }
            keep
        });
    }

    /// Starts what is due, those first that somebody waits for.
    fn start_due(&mut self) {
        let (wall, now) = (self.clock.wall(), self.clock.elapsed());
        let room = CONCURRENCY.saturating_sub(self.fetches.len());
        if room == 0 {
            return;
        }
        let mut due: Vec<(bool, &SpiffeId)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_due(wall, now))
            .map(|(id, entry)| (entry.waiting.is_empty(), id))
            .collect();
        due.sort_unstable();
        let due: Vec<SpiffeId> = due
            .into_iter()
            .take(room)
            .map(|(_, id)| id.clone())
            .collect();
        for id in due {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.next = Next::Fetching;
            }
            let (authority, clock) = (Arc::clone(&self.authority), self.clock.clone());
            self.fetches.push(Box::pin(async move {
                let outcome = obtain(&*authority, &id).await;
                let outcome = outcome.and_then(|identity| usable(identity, clock.wall()));
                (id, outcome)
            }));
        }
    }

    /// When something may be due, by the clock's `elapsed`.
    fn wake(&self) -> Duration {
        let (wall, now) = (self.clock.wall(), self.clock.elapsed());
        let full = self.fetches.len() >= CONCURRENCY;
        let due = |entry: &Entry| match entry.next {
            Next::Fetching => None,
            _ if full => None,
            Next::Fetch => Some(now),
            Next::Retry(at) => Some(at),
            Next::Renew(at) => Some(now + at.duration_since(wall).unwrap_or_default()),
        };
        self.entries
            .values()
            .filter_map(due)
            .fold(now + CLOCK_CHECK_INTERVAL, Duration::min)
    }

    fn publish(&self) {
        self.metrics
            .held
            .set(i64::try_from(self.entries.len()).unwrap_or(i64::MAX));
        let mut list: Vec<Held> = self
            .entries
            .iter()
            .map(|(id, entry)| entry.show(id))
            .collect();
        list.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        self.list.send_replace(list.into());
    }
}

// === impl Entry ===

impl Entry {
    fn new() -> Self {
        Self {
            current: None,
            next: Next::Fetch,
            waiting: Vec::new(),
            failure: None,
            backoff: Backoff::new(BACKOFF, MAX_BACKOFF),
            used: Duration::ZERO,
            released: false,
        }
    }

    fn valid(&self, wall: SystemTime) -> Option<Credentials> {
        let current = self.current.as_ref()?;
        (wall < current.current().not_after()).then(|| current.reader())
    }

    fn is_due(&self, wall: SystemTime, now: Duration) -> bool {
        match self.next {
            Next::Fetch => true,
            Next::Fetching => false,
            Next::Renew(at) => at <= wall,
            Next::Retry(at) => at <= now,
        }
    }

    fn put(&mut self, identity: Identity, wall: SystemTime) {
        self.failure = None;
        self.backoff.reset();
        self.next = Next::Renew(renewal(wall, identity.not_after()));
        let writer = match self.current.take() {
            Some(writer) => {
                writer.replace(identity);
                writer
            }
            None => credentials(identity).0,
        };
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Ok(writer.reader()));
        }
        self.current = Some(writer);
    }

    fn fail(&mut self, id: &SpiffeId, error: CaError, retry: Duration) {
        let source = Arc::new(error);
        for waiting in self.waiting.drain(..) {
            let failed = CertError::Failed {
                id: id.clone(),
                source: Arc::clone(&source),
            };
            let _ = waiting.send(Err(failed));
        }
        self.failure = Some(source);
        self.next = Next::Retry(retry);
    }

    fn show(&self, id: &SpiffeId) -> Held {
        let current = self.current.as_ref().map(CredentialsWriter::current);
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        };
        Held {
            id: id.to_string(),
            serial: current
                .as_ref()
                .map(|identity| identity.serial())
                .unwrap_or_default(),
            not_after: current
                .as_ref()
                .map_or(0, |identity| seconds(identity.not_after())),
            failure: self
                .failure
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// Adds them to the process's registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("ambit_certificates", "Certificates kept", self.held.clone());
        registry.register(
            "ambit_certificate_fetches",
            "Certificates asked for, by outcome",
            self.fetches.clone(),
        );
    }
}

// === free ===

/// Half of what is left, give or take a tenth: certificates that began together do not end together. Its beginning says
/// nothing: an authority dates it back for the sake of slow clocks, and one that ends soon itself signs short lives.
fn renewal(now: SystemTime, not_after: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left
        .mul_f64(0.45 + fastrand::f64() / 10.0)
        .max(SHORTEST_RENEWAL)
}
