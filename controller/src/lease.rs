//! Who of the replicas writes: the holder of a Lease, judged by each replica's own monotonic clock.
//!
//! Guarantees
//! * Two replicas never write at once: a holder stops [`MARGIN`] before [`LEASE`] has passed since it *sent* its last
//!   renewal, and others begin no sooner than [`LEASE`] after they *saw* it. Nobody reads anybody's wall clock.
//! * A holder that was stopped (`SIGSTOP`, a paused machine) writes nothing when it goes on: every write passes a
//!   [`fenced`] client, which looks at the clock as it is then.
//! * A holder that dies or is cut off is replaced within [`LEASE`] + [`POLL`] and a call.
//!
//! Assumptions: monotonic clocks of two machines run equally fast to within [`MARGIN`] in [`LEASE`].
//!
//! Caveats: a write that the API server took in before the lease ended may be carried out by it afterwards. Whoever
//! deletes the Lease by hand may have two writers for a few seconds. While the mesh is uninstalled no Lease can be kept:
//! then each replica writes; all of them take back the same.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::BoxError;

use crate::hub::IndexState;
use crate::metrics::Metrics;

/// The Lease, in the controller's namespace.
pub const NAME: &str = "ambit-controller";
/// How long a renewal holds.
pub const LEASE: Duration = Duration::from_secs(12);
/// How often it is renewed: three may fail.
pub const RENEW: Duration = Duration::from_secs(3);
/// How often the others look.
pub const POLL: Duration = Duration::from_secs(1);
/// A holder stops so long before others may begin: for clocks that run unequally, and calls that are on their way.
pub const MARGIN: Duration = Duration::from_secs(2);
/// A call for the Lease that takes longer is given up, so that there is time for another.
const CALL: Duration = Duration::from_secs(3);

/// Somebody else was faster: what there is now is looked at this soon.
const LOST: Duration = Duration::from_millis(100);

/// This replica may not write (any more).
#[derive(Debug, thiserror::Error)]
#[error("this replica does not hold the lease")]
pub struct NotTheLeader;

/// Whether this replica writes, for those who ask.
#[derive(Debug, Clone)]
pub struct Term(watch::Receiver<Standing>);

/// Until when this replica may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Following,
    Leading { until: Instant },
}

/// The Lease as it was last seen to change.
#[derive(Debug, Clone, PartialEq)]
struct Observed {
    lease: Lease,
    /// When this replica saw it first, by its own clock.
    since: Instant,
}

/// What is to be done about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours, or free to be taken.
    Hold,
    /// It is somebody else's, at least until then.
    WaitUntil(Instant),
}

/// What came of a call for the Lease.
enum Answer {
    /// It is ours now, and this is what it is.
    Ours(Box<Lease>),
    /// Somebody else was faster.
    Lost,
    /// It was deleted since it was seen.
    Gone,
    /// None can be kept: the namespace, or the right to it, is gone with the mesh.
    Impossible,
    Failed(String),
}

/// Seeks the Lease and keeps it.
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
    /// Says whether the mesh is being uninstalled.
    index: watch::Receiver<IndexState>,
    observed: Option<Observed>,
    /// There is none any more: who held it may write until then.
    barred_until: Option<Instant>,
    standing: watch::Sender<Standing>,
    released: watch::Sender<bool>,
    metrics: Metrics,
}

/// What this replica knows, decided: pure.
fn decide(
    identity: &str,
    observed: Option<&Observed>,
    barred_until: Option<Instant>,
    now: Instant,
) -> Step {
    let Some(observed) = observed else {
        return match barred_until {
            Some(until) if now < until => Step::WaitUntil(until),
            _ => Step::Create,
        };
    };
    let spec = observed.lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    match holder {
        None | Some("") => Step::Hold,
        Some(holder) if holder == identity => Step::Hold,
        Some(_) => {
            let until = observed.since + LEASE;
            if now >= until {
                Step::Hold
            } else {
                Step::WaitUntil(until)
            }
        }
    }
}

// === impl Candidate ===

impl Candidate {
    /// `identity` must be one that nobody else has, nor this replica had before it was started again.
    pub fn new(
        client: Client,
        namespace: &str,
        identity: String,
        index: watch::Receiver<IndexState>,
        metrics: Metrics,
    ) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity,
            index,
            observed: None,
            barred_until: None,
            standing: watch::Sender::new(Standing::Following),
            released: watch::Sender::new(false),
            metrics,
        }
    }

    /// For those who write.
    pub fn term(&self) -> Term {
        Term(self.standing.subscribe())
    }

    /// Says when the Lease has been given back, or will be taken by others when it ends.
    pub fn released(&self) -> watch::Receiver<bool> {
        self.released.subscribe()
    }

    /// Seeks and keeps the Lease until `stop` says that this replica ends; then gives it back.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let pause = self.round().await;
            let ends = async {
                if stop.wait_for(|stop| *stop).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = ends => {
                    self.release().await;
                    self.released.send_replace(true);
                    break;
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
        std::future::pending::<()>().await;
    }

    /// One look at the Lease, and what follows; how long until the next.
    async fn round(&mut self) -> Duration {
        self.expire();
        if !self.leads() {
            self.look().await;
        }
        let now = Instant::now();
        let barred_until = self.barred_until.filter(|_| !self.leads());
        match decide(&self.identity, self.observed.as_ref(), barred_until, now) {
            Step::WaitUntil(until) => POLL.min(until.saturating_duration_since(now)),
            Step::Create | Step::Hold => {
                let answer = self.hold().await;
                if matches!(answer, Answer::Lost) && self.leads() {
                    self.look().await;
                }
                self.settle(answer, now)
            }
        }
    }

    /// `sent` is when the call was made: from then on the lease is counted.
    fn settle(&mut self, answer: Answer, sent: Instant) -> Duration {
        match answer {
            Answer::Ours(lease) => {
                self.barred_until = None;
                self.observed = Some(Observed {
                    lease: *lease,
                    since: Instant::now(),
                });
                self.stand(Standing::Leading {
                    until: sent + LEASE - MARGIN,
                });
                RENEW
            }
            // A renewal that was carried out and not answered in time comes before the next one: no loss, and no renewal
            // whose time is known either.
            Answer::Lost if self.leads() && self.holds() => LOST,
            Answer::Lost => {
                self.stand(Standing::Following);
                LOST
            }
            Answer::Gone => {
                self.observed = None;
                LOST
            }
            Answer::Impossible => {
                self.stand(Standing::Leading {
                    until: sent + LEASE - MARGIN,
                });
                RENEW
            }
            Answer::Failed(error) => {
                tracing::warn!(%error, leads = self.leads(), "the lease cannot be written; trying again");
                POLL
            }
        }
    }

    /// Reads the Lease; a change of it is remembered with the time at which it was seen.
    async fn look(&mut self) {
        match tokio::time::timeout(CALL, self.leases.get_opt(NAME)).await {
            Ok(Ok(Some(lease))) => {
                let same = |seen: &Observed| seen.lease == lease;
                if !self.observed.as_ref().is_some_and(same) {
                    let since = Instant::now();
                    self.observed = Some(Observed { lease, since });
                }
            }
            Ok(Ok(None)) => {
                if self.observed.take().is_some() {
                    self.barred_until = Some(Instant::now() + LEASE);
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "the lease cannot be read; trying again"),
            Err(_) => tracing::warn!("the lease cannot be read in time; trying again"),
        }
    }

    async fn hold(&self) -> Answer {
        let lease = self.wanted();
        let params = PostParams::default();
        let call = async {
            if lease.metadata.resource_version.is_some() {
                self.leases.replace(NAME, &params, &lease).await
            } else {
                self.leases.create(&params, &lease).await
            }
        };
        match tokio::time::timeout(CALL, call).await {
            Err(_) => Answer::Failed("no answer in time".to_owned()),
            Ok(Ok(lease)) => Answer::Ours(Box::new(lease)),
            Ok(Err(kube::Error::Api(status))) => match status.code {
                409 => Answer::Lost,
                404 if lease.metadata.resource_version.is_some() => Answer::Gone,
                401 | 403 | 404 if self.index.borrow().uninstalling => Answer::Impossible,
                _ => Answer::Failed(status.to_string()),
            },
            Ok(Err(error)) => Answer::Failed(error.to_string()),
        }
    }

    /// Whether this replica is the holder in the Lease as it was last seen.
    fn holds(&self) -> bool {
        let observed = self.observed.as_ref();
        let spec = observed.and_then(|observed| observed.lease.spec.as_ref());
        spec.is_some_and(|spec| spec.holder_identity.as_deref() == Some(&self.identity))
    }

    /// The Lease with us as its holder: over what was seen, and over nothing newer.
    fn wanted(&self) -> Lease {
        let before = self.observed.as_ref().map(|observed| &observed.lease);
        let ours = self.holds();
        let spec = before.and_then(|lease| lease.spec.clone());
        let spec = spec.unwrap_or_default();
        let now = Some(MicroTime(jiff::Timestamp::now()));
        Lease {
            metadata: before.map_or_else(
                || ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
                renew_time: now.clone(),
                acquire_time: if ours { spec.acquire_time } else { now },
                lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!ours)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Gives the Lease back, so that the next need not wait.
    async fn release(&mut self) {
        if !self.leads() {
            return;
        }
        self.stand(Standing::Following);
        let mut lease = self.wanted();
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let params = PostParams::default();
        let call = self.leases.replace(NAME, &params, &lease);
        if !matches!(tokio::time::timeout(CALL, call).await, Ok(Ok(_))) {
            tracing::warn!("the lease cannot be given back: the next leader waits for its end");
        }
    }

    fn leads(&self) -> bool {
        self.standing.borrow().leads()
    }

    /// Time may have passed without us.
    fn expire(&self) {
        let standing = *self.standing.borrow();
        if standing != Standing::Following && !standing.leads() {
            self.stand(Standing::Following);
        }
    }

    fn stand(&self, standing: Standing) {
        let before = self.standing.send_replace(standing);
        let leads = standing != Standing::Following;
        if leads == (before != Standing::Following) {
            return;
        }
        self.metrics.leads(leads);
        let identity = &self.identity;
        if leads {
            tracing::info!(identity, "this replica leads: it writes to the cluster");
        } else {
            tracing::info!(identity, "this replica does not lead any more");
        }
    }
}

// === impl Standing ===

impl Standing {
    fn leads(self) -> bool {
        matches!(self, Self::Leading { until } if Instant::now() < until)
    }
}

// === impl Term ===

impl Term {
    /// Of a replica that is alone, and always leads.
    pub fn always() -> Self {
        let until = Instant::now() + Duration::from_secs(10 * 365 * 24 * 3600);
        Self(watch::channel(Standing::Leading { until }).1)
    }

    /// Of a replica that never leads.
    pub fn never() -> Self {
        Self(watch::channel(Standing::Following).1)
    }

    /// Whether this replica may write now.
    pub fn leads(&self) -> bool {
        self.0.borrow().leads()
    }

    /// Waits until this replica begins or ceases to lead. Renewals are no change.
    pub async fn changed(&mut self) {
        let led = self.leads();
        loop {
            let until = match *self.0.borrow_and_update() {
                Standing::Leading { until } if led => until,
                _ => Instant::now() + LEASE,
            };
            tokio::select! {
                changed = self.0.changed() => if changed.is_err() {
                    // Nobody renews: it ends when it ends.
                    tokio::time::sleep_until(until).await;
                },
                () = tokio::time::sleep_until(until) => {}
            }
            if self.leads() != led {
                return;
            }
        }
    }

    /// Waits until this replica may not write any more.
    async fn ended(mut self) {
        while self.leads() {
            self.changed().await;
        }
    }
}

/// A client whose writes are made only while `term` lasts: one that has not been answered when it ends is given up.
pub fn fenced(client: Client, term: Term) -> Client {
    let namespace = client.default_namespace().to_owned();
    let client = Arc::new(client);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, term) = (client.clone(), term.clone());
        async move {
            if matches!(*request.method(), Method::GET | Method::HEAD) {
                return client.send(request).await.map_err(BoxError::from);
            }
            if !term.leads() {
                return Err(NotTheLeader.into());
            }
            tokio::select! {
                answer = client.send(request) => answer.map_err(BoxError::from),
                () = term.ended() => Err(NotTheLeader.into()),
            }
        }
    });
    Client::new(service, namespace)
}

/// Whether a call was not made, or given up, because this replica does not lead.
pub fn is_fenced(error: &kube::Error) -> bool {
    let mut cause = Some(error as &dyn std::error::Error);
    while let Some(error) = cause {
        if error.is::<NotTheLeader>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
