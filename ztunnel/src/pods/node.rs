//! What the tasks of all pods share: the data plane, certificates, the way to the controller, the process table.

use std::{
    cell::RefCell,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh::{certs::Certificates, enrolment::PodUid, proto::node::EnrolmentReport};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    find::{FindError, Running},
    handover::Ztunnels,
};
use crate::{
    netns::PodNetns,
    proxy::Shared,
    workers::{Run, Workers},
};

/// What all pods of the node share.
pub struct Node {
    /// What every proxy shares.
    pub shared: Arc<Shared>,
    /// The data plane.
    pub workers: Arc<Workers>,
    /// Where certificates come from.
    pub certificates: Certificates,
    /// Tells the control plane what became of a pod.
    pub report: Box<dyn Fn(EnrolmentReport)>,
    /// There is nothing to tell of a pod any more.
    pub forget: Box<dyn Fn(&str)>,
    /// The node's process table.
    pub proc: PathBuf,
    /// Whether the control plane can be reached now.
    pub connected: watch::Receiver<bool>,
    /// Whether the control plane has told us everything once.
    pub synced: watch::Receiver<bool>,
    /// Ends what has not ended by itself when the process must go.
    pub end: CancellationToken,
    /// The last run.
    pub runs: RefCell<Run>,
    /// Who may follow this process.
    pub ztunnels: Ztunnels,
    /// The processes as of a moment ago.
    pub running: RefCell<Option<(Instant, Arc<Running>)>>,
}

/// A sandbox that the CNI plugin told us of.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its network namespace.
    pub netns: PodNetns,
    /// The addresses it was given.
    pub ips: Vec<IpAddr>,
    /// Its container ID.
    pub container: String,
}

/// A process table this old still answers for the pods that are enrolled together.
const PROCESS_TABLE_AGE: Duration = Duration::from_secs(1);

// === impl Node ===

impl Node {
    /// The processes that run now.
    pub(super) async fn processes(&self) -> Result<Arc<Running>, FindError> {
        let proc = self.proc.clone();
        let running = spawn_blocking(move || Running::scan(proc)).await;
        let running = running.map_err(|error| FindError::Processes {
            path: self.proc.clone(),
            source: io::Error::other(error),
        })?;
        let running = Arc::new(running?);
        *self.running.borrow_mut() = Some((Instant::now(), running.clone()));
        Ok(running)
    }

    /// The processes as of a moment ago: one look serves the pods that ask together.
    pub(super) async fn recent_processes(&self) -> Result<Arc<Running>, FindError> {
        match self.recent() {
            Some(running) => Ok(running),
            None => self.processes().await,
        }
    }

    fn recent(&self) -> Option<Arc<Running>> {
        let running = self.running.borrow();
        let (at, running) = running.as_ref()?;
        (at.elapsed() < PROCESS_TABLE_AGE).then(|| running.clone())
    }

    /// Finds a running pod's namespace. One look at the process table serves the pods that ask together.
    pub(super) async fn find(&self, uid: &PodUid, ips: &[IpAddr]) -> Result<PodNetns, FindError> {
        let fresh = self.recent();
        let (proc, uid, ips) = (self.proc.clone(), uid.to_string(), ips.to_vec());
        let look = move || -> Result<(PodNetns, Arc<Running>), FindError> {
            if let Some(running) = fresh
                && let Ok(netns) = running.netns(&uid, &ips)
            {
                return Ok((netns, running));
            }
            let running = Arc::new(Running::scan(proc)?);
            Ok((running.netns(&uid, &ips)?, running))
        };
        let unreachable = |source| FindError::Unreachable {
            uid: String::new(),
            source,
        };
        let (netns, running) = spawn_blocking(look)
            .await
            .map_err(|e| unreachable(io::Error::other(e)))??;
        *self.running.borrow_mut() = Some((Instant::now(), running));
        Ok(netns)
    }
}

// === impl Sandbox ===

impl PartialEq for Sandbox {
    fn eq(&self, other: &Self) -> bool {
        self.netns.id() == other.netns.id() && self.ips == other.ips
    }
}
