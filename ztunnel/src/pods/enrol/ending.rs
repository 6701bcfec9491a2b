//! How a pod's task ends: torn down because the pod is no more, handed over to a successor, or given back for good.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{Task, quiet};
use crate::pods::desired::{DesiredState, Status};

/// What is left of a pod that is no more gets this long to send its last bytes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// How tearing down ended.
pub(super) enum TornDown {
    /// Nothing is left of the pod.
    Gone,
    /// Meanwhile something else came to be desired: the pod is wanted again.
    NotAnyMore,
}

impl Task {
    /// The pod is no more, or nobody cares for it any more; unless that changes before all is done. A pod has one task
    /// at a time: what a former one still tears down would be what the next one has just built.
    pub(super) async fn tear_down(
        &mut self,
        desired: &mut watch::Receiver<DesiredState>,
    ) -> TornDown {
        self.set(&Status::Out);
        if let Err(error) = self.stop_redirecting().await {
            tracing::debug!(pod = self.name, %error, "a pod that is gone could not be taken out");
        }
        self.retire();
        tokio::select! {
            _ = timeout(FLUSH_TIMEOUT, self.endings.wait()) => {}
            Ok(()) = desired.changed() => {
                desired.mark_changed();
                return TornDown::NotAnyMore;
            }
        }
        self.reset().await;
        if let Err(error) = self.remove_rules().await {
            tracing::debug!(pod = self.name, %error, "a pod that is gone could not be cleaned");
        }
        if desired.has_changed().unwrap_or(false) {
            return TornDown::NotAnyMore;
        }
        (self.node.forget)(self.uid.as_str());
        TornDown::Gone
    }

    /// Serves until another ztunnel does; redirection stays. Unless it turns out that none will follow.
    pub(super) async fn hand_over(
        mut self,
        until: Instant,
        mut desired: watch::Receiver<DesiredState>,
    ) {
        let succeeded = async {
            if let Some(up) = &self.up {
                let ours = self.node.workers.count();
                let ztunnels = &self.node.ztunnels;
                let successor = ztunnels.succeeded(&up.serving.netns, ours, &self.name);
                // Without a successor, late is better than never.
                let _ = timeout_at(until, successor).await;
            }
            self.retire();
            self.endings.wait().await;
        };
        let for_good = desired.wait_for(|desired| *desired == DesiredState::LeaveForGood);
        let for_good = tokio::select! {
            () = succeeded => false,
            Ok(_) = for_good => true,
        };
        if for_good {
            self.leave_for_good().await;
        }
    }

    /// Ends the mesh's part in the pod.
    pub(super) async fn leave_for_good(mut self) {
        if let Some(up) = &self.up {
            let serving = up.serving.clone();
            if let Err(error) = self.stop_redirecting().await {
                tracing::error!(pod = self.name, %error, "cannot stop redirection");
            }
            tokio::select! {
                () = quiet(&serving) => {}
                () = self.node.end.cancelled() => {}
            }
        }
        self.retire();
        self.endings.wait().await;
        if let Err(error) = self.remove_rules().await {
            tracing::error!(pod = self.name, %error, "cannot remove redirection");
        }
        self.say(&Status::Out);
    }
}
