//! The story of one pod: brought into the mesh, kept there, taken out again.
//!
//! In: certificate, then listeners that accept, then redirection, in this order, so that no connection is ever
//! led where nobody answers. Out: redirection first, then the listeners once nobody is led there any more,
//! then what is left of the rules when the last connection has ended.

mod ending;
mod error;
mod ports;

use std::{collections::HashSet, rc::Rc, sync::Arc, time::Duration};

use mesh::{
    enrolment::{Enrolment, PodUid},
    pod::Pod,
    proto::node::{EnrolmentReport, enrolment_report::State},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{ending::TornDown, error::EnrolError};
use super::{
    desired::{DesiredState, Status},
    listeners::SocketId,
    node::{Node, Sandbox},
};
use crate::{
    capture::{self, CaptureError, Families, Own, Spec},
    netns::PodNetns,
    proxy::Serving,
    workers::Run,
};

/// One pod's task.
pub(crate) struct Task {
    node: Rc<Node>,
    uid: PodUid,
    name: String,
    say: watch::Sender<Status>,
    up: Option<Up>,
    /// Where rules of ours are, or may be.
    ruled: Option<PodNetns>,
    /// Former runs whose last connections are ending. Rules must stay until then.
    endings: TaskTracker,
    /// Resets what these and the present run still have open.
    end: CancellationToken,
    failures: u32,
    /// The pod's own process that listens beside us, as it was last said.
    intruder: Option<String>,
}

/// A pod that is served.
struct Up {
    serving: Arc<Serving>,
    run: Run,
    families: Families,
    /// Its listeners.
    sockets: HashSet<SocketId>,
    /// What is redirected; nothing while that is not (or no longer) so.
    redirected: Option<Spec>,
    /// Hears of changes to rules and routes; without it nothing is known of them.
    changes: Option<capture::Watch>,
    /// When redirection was last found to be as it should be.
    verified: Option<Instant>,
}

/// How often it is asked whether anything was changed that redirection stands on. If it was, redirection is compared with
/// what it should be.
const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// How often it is compared although nothing is known to have changed: reading the rules of a pod takes a hundred times as
/// long as asking for news, and a node has a hundred pods.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Listeners stay after redirection ended until this long nobody came: a handshake that was under way has
/// sent its second SYN by then, and peers have heard that the pod is no longer in the mesh.
const UNUSED_LISTENERS: Duration = Duration::from_secs(2);

/// A peer that has not heard by then has lost its controller, and may lose this connection too.
const MOST_QUIET: Duration = Duration::from_secs(30);

/// First and last wait after a failure; doubled in between.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// A failure that passes by itself has passed after so many attempts (3.5 s).
const PASSING: u32 = 3;

// === impl Task ===

impl Task {
    pub(crate) fn new(
        node: Rc<Node>,
        uid: PodUid,
        name: String,
        say: watch::Sender<Status>,
    ) -> Self {
        let (endings, end) = (TaskTracker::new(), node.end.child_token());
        // Closed trackers still take tasks, and say when there are none.
        endings.close();
        Self {
            node,
            uid,
            name,
            say,
            up: None,
            ruled: None,
            endings,
            end,
            failures: 0,
            intruder: None,
        }
    }

    /// Follows what is desired until the pod, or this process, is no more.
    pub(crate) async fn run(mut self, mut desired: watch::Receiver<DesiredState>) {
        loop {
            let state = desired.borrow_and_update().clone();
            let again = match state {
                DesiredState::Undecided => None,
                DesiredState::In { enrolment, sandbox } => {
                    let other = |state: &DesiredState| !matches!(state, DesiredState::In { .. });
                    let mut others = desired.clone();
                    tokio::select! {
                        result = self.bring_in(&enrolment, sandbox.as_ref()) => self.judge(result),
                        _ = others.wait_for(other) => continue,
                    }
                }
                DesiredState::Out { enrolment } => {
                    let result = self.take_out(&enrolment, &mut desired).await;
                    self.judge(result)
                }
                DesiredState::SandboxGone => {
                    self.reset().await;
                    self.ruled = None;
                    self.say(&Status::Out);
                    None
                }
                DesiredState::Removed => match self.tear_down(&mut desired).await {
                    TornDown::Gone => return,
                    TornDown::NotAnyMore => continue,
                },
                DesiredState::HandOver { until } => return self.hand_over(until, desired).await,
                DesiredState::LeaveForGood => return self.leave_for_good().await,
            };
            let pause = async {
                match again {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = desired.changed() => if changed.is_err() {
                    return self.reset().await;
                },
                () = pause => {}
            }
        }
    }

    /// Makes the pod captured, or finds that it still is.
    async fn bring_in(
        &mut self,
        enrolment: &Enrolment,
        sandbox: Option<&Sandbox>,
    ) -> Result<Status, EnrolError> {
        // Serving from half a world would let connections pass that belong in a tunnel.
        let _ = self.node.synced.clone().wait_for(|synced| *synced).await;
        if sandbox.is_none() && enrolment.addresses.is_empty() && self.up.is_none() {
            return Ok(Status::Pending);
        }
        let netns = self.netns(enrolment, sandbox).await?;
        let given = sandbox.map_or(&[][..], |sandbox| &sandbox.ips);
        let shared = &self.node.shared;
        let pod = Pod::new(enrolment, given, &shared.trust_domain, &shared.cluster)?;
        if let Some(up) = &self.up {
            if up.serving.netns.id() != netns.id() {
                self.reset().await;
            } else if up.serving.pod != pod {
                self.retire();
            }
        }
        if self.up.is_none() {
            self.serve(pod, netns).await?;
        } else {
            self.watch_for_intruder().await;
        }
        self.redirect(enrolment.bypass_inbound).await
    }

    async fn netns(
        &self,
        enrolment: &Enrolment,
        sandbox: Option<&Sandbox>,
    ) -> Result<PodNetns, EnrolError> {
        match (sandbox, &self.up) {
            (Some(sandbox), _) => Ok(sandbox.netns.clone()),
            (None, Some(up)) => Ok(up.serving.netns.clone()),
            (None, None) => Ok(self.node.find(&self.uid, &enrolment.addresses).await?),
        }
    }

    /// Certificate and listeners: from here on whoever comes is served.
    async fn serve(&mut self, pod: Pod, netns: PodNetns) -> Result<(), EnrolError> {
        let credentials = self.node.certificates.get(&pod.identity).await?;
        let bound = self.listen(&netns).await?;
        let serving = Arc::new(Serving::new(pod, netns, credentials));
        let run = self.node.runs.borrow_mut().advance();
        // Known before it is begun, so that it is ended even if this future is.
        self.up = Some(Up {
            serving: serving.clone(),
            run,
            families: bound.families,
            sockets: bound.sockets,
            redirected: None,
            changes: bound.changes,
            verified: None,
        });
        Ok(self
            .node
            .workers
            .serve(run, &serving, bound.listeners)
            .await?)
    }

    /// Redirection, or its repair.
    async fn redirect(&mut self, bypass_inbound: bool) -> Result<Status, EnrolError> {
        let Some(up) = &mut self.up else {
            return Ok(Status::Pending);
        };
        let netns = up.serving.netns.clone();
        let own = Own::of(&up.serving.pod.addresses);
        let spec = Spec::for_families(up.families, own, bypass_inbound);
        if up.redirected == Some(spec) {
            // Asked before the rules are read: what is changed meanwhile is news for the next time.
            let has_news = up.changes.as_ref().is_none_or(capture::Watch::has_news);
            if !is_due(has_news, up.verified.map(|at| at.elapsed())) {
                return Ok(Status::Captured(netns.id()));
            }
            let found = inside(&netns, move || capture::verify(&spec)).await?;
            if found.is_empty() {
                up.verified = Some(Instant::now());
                return Ok(Status::Captured(netns.id()));
            }
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            tracing::warn!(
                pod = self.name,
                damage = found.join(", "),
                "repairing redirection"
            );
            self.node.shared.metrics.repairs.inc();
        }
        (up.redirected, up.verified) = (Some(spec), None);
        self.ruled = Some(netns.clone());
        inside(&netns, move || capture::install(&spec)).await?;
        Ok(Status::Captured(netns.id()))
    }

    /// Lets the pod alone: new connections at once, old ones until they end.
    ///
    /// Returns early, and leaves the pod as it is then, if something else is desired.
    async fn take_out(
        &mut self,
        enrolment: &Enrolment,
        desired: &mut watch::Receiver<DesiredState>,
    ) -> Result<Status, EnrolError> {
        if self.up.is_none() && self.ruled.is_none() {
            return self.clean_up_after_predecessor(enrolment).await;
        }
        if let Some(up) = &self.up {
            let (serving, run) = (up.serving.clone(), up.run);
            self.stop_redirecting().await?;
            tokio::select! {
                () = quiet(&serving) => {}
                _ = desired.changed() => {
                    desired.mark_changed();
                    return Ok(Status::Pending);
                }
            }
            self.node.workers.close(run).await;
            self.say(&Status::Out);
            self.retire();
        }
        tokio::select! {
            () = self.endings.wait() => self.remove_rules().await?,
            _ = desired.changed() => desired.mark_changed(),
        }
        Ok(Status::Out)
    }

    /// From now on nobody is led to the listeners.
    async fn stop_redirecting(&mut self) -> Result<(), EnrolError> {
        if let Some(up) = &mut self.up {
            let spec = Spec::for_families(up.families, Own::default(), false);
            inside(&up.serving.netns, move || capture::stop_redirecting(&spec)).await?;
            up.redirected = None;
        }
        Ok(())
    }

    /// A ztunnel before this one may have captured the pod and not heard that it should be left alone.
    async fn clean_up_after_predecessor(
        &self,
        enrolment: &Enrolment,
    ) -> Result<Status, EnrolError> {
        // A pod whose namespace cannot be found has none that could need cleaning.
        if !enrolment.addresses.is_empty()
            && let Ok(netns) = self.node.find(&self.uid, &enrolment.addresses).await
        {
            inside(&netns, || match capture::is_installed()? {
                true => capture::remove(),
                false => Ok(()),
            })
            .await?;
        }
        Ok(Status::Out)
    }

    /// The last captured connection has ended.
    async fn remove_rules(&mut self) -> Result<(), EnrolError> {
        if let Some(netns) = &self.ruled {
            inside(netns, capture::remove).await?;
            self.ruled = None;
        }
        Ok(())
    }

    /// Ends every run at once.
    async fn reset(&mut self) {
        self.retire();
        self.end.cancel();
        self.endings.wait().await;
        self.end = self.node.end.child_token();
    }

    /// Begins to end the run: its connections go on behind the pod's back.
    fn retire(&mut self) {
        let Some(up) = self.up.take() else { return };
        let (node, end) = (self.node.clone(), self.end.clone());
        node.shared.metrics.proxies_stopped.inc();
        self.endings
            .spawn_local(async move { node.workers.finish(up.run, &end).await });
    }

    /// Says what became of the pod; returns when to look again.
    fn judge(&mut self, result: Result<Status, EnrolError>) -> Option<Duration> {
        match result {
            Ok(status) => {
                self.failures = 0;
                let again = matches!(status, Status::Captured(_)).then_some(VERIFY_EVERY);
                self.say(&status);
                again
            }
            Err(error) => {
                let (first, last) = RETRY;
                let pause = first.saturating_mul(1 << self.failures.min(10)).min(last);
                self.failures += 1;
                // A pod whose enrolment outlives its processes for a moment is only about to go.
                if error.is_passing() && self.failures <= PASSING {
                    return Some(pause);
                }
                tracing::warn!(pod = self.name, %error, retry_in = ?pause, "a pod is not as it should be");
                self.report(State::Failed, error.reason(), &error.to_string());
                self.set(&Status::Failed(error.to_string()));
                Some(pause)
            }
        }
    }

    /// Passes news on, once.
    fn say(&self, status: &Status) {
        if *self.say.borrow() == *status {
            return;
        }
        match status {
            Status::Captured(netns) => {
                tracing::info!(pod = self.name, %netns, "in the mesh");
                self.node.shared.metrics.proxies_started.inc();
                self.report(State::Enrolled, "", "");
            }
            Status::Out => {
                tracing::info!(pod = self.name, "not in the mesh");
                self.report(State::Removed, "", "");
            }
            Status::Pending | Status::Failed(_) => {}
        }
        self.set(status);
    }

    fn set(&self, status: &Status) {
        let metrics = &self.node.shared.metrics;
        let before = self.say.send_replace(status.clone());
        match before {
            Status::Captured(_) => drop(metrics.active_proxies.dec()),
            Status::Failed(_) => drop(metrics.pending_proxies.dec()),
            Status::Pending | Status::Out => {}
        }
        match status {
            Status::Captured(_) => drop(metrics.active_proxies.inc()),
            Status::Failed(_) => drop(metrics.pending_proxies.inc()),
            Status::Pending | Status::Out => {}
        }
    }

    fn report(&self, state: State, reason: &str, message: &str) {
        (self.node.report)(EnrolmentReport {
            uid: self.uid.to_string(),
            state: state.into(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// Whether redirection is to be compared with what it should be: what was just installed, what may have been changed, and
/// what was not looked at for long.
fn is_due(has_news: bool, verified: Option<Duration>) -> bool {
    has_news || verified.is_none_or(|ago| ago >= SWEEP_EVERY)
}

async fn inside<T: Send + 'static>(
    netns: &PodNetns,
    f: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, EnrolError> {
    Ok(netns.call(f).await.map_err(EnrolError::Namespace)??)
}

/// Ends when nobody is led to the listeners any more.
async fn quiet(serving: &Serving) {
    let since = Instant::now();
    loop {
        let quiet_for = serving.quiet_for().min(since.elapsed());
        if quiet_for >= UNUSED_LISTENERS || since.elapsed() >= MOST_QUIET {
            return;
        }
        sleep(UNUSED_LISTENERS - quiet_for).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirection_is_looked_at_when_it_is_new_or_changed_or_was_not_for_long() {
        let second = Duration::from_secs(1);
        for (has_news, verified, due) in [
            (false, None, true),
            (false, Some(Duration::ZERO), false),
            (true, Some(Duration::ZERO), true),
            (false, Some(SWEEP_EVERY - second), false),
            (false, Some(SWEEP_EVERY), true),
            (true, None, true),
        ] {
            assert_eq!(is_due(has_news, verified), due, "{has_news}, {verified:?}");
        }
    }
}
