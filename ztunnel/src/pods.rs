//! The pods of this node: what each shall be, and one task per pod that makes it so.

mod desired;
pub mod enrol;
pub mod find;
pub mod handover;
mod listeners;
pub mod newcomer;
pub mod node;
mod sandbox;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use mesh::enrolment::{Enrolment, PodUid};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;

pub use self::desired::Leaving;
use self::{
    desired::{DesiredState, Status, UNMENTIONED_GRACE},
    node::{Node, Sandbox},
};
use crate::cni::{enrolled::Enrolled, protocol};

/// Every pod of this node that the control plane has told us of.
pub struct Pods {
    node: Rc<Node>,
    /// Each until its task has ended, so that no pod has two.
    known: RefCell<HashMap<PodUid, Handle>>,
    tasks: TaskTracker,
    enrolled_file: PathBuf,
    written: RefCell<Option<Enrolled>>,
}

struct Handle {
    task: JoinHandle<()>,
    desired: watch::Sender<DesiredState>,
    status: watch::Receiver<Status>,
    /// Where the CNI plugin says that the pod is.
    sandbox: Option<Sandbox>,
    /// The container runtime has taken the sandbox down; nothing can be done for the pod until it has another.
    sandbox_gone: bool,
    /// Since when the control plane has not mentioned the pod.
    unmentioned: Option<Instant>,
}

/// What a connection still gets that is accepted last by a ztunnel without a successor.
pub(crate) const LATE_CONNECTIONS: Duration = Duration::from_secs(5);

/// How often pods that are not mentioned any more are looked at: whether they have processes.
const UNMENTIONED_CHECK: Duration = Duration::from_secs(2);

// === impl Pods ===

impl Pods {
    /// Nothing is done before [`Pods::run`].
    pub fn new(node: Node, enrolled_file: PathBuf) -> Rc<Self> {
        Rc::new(Self {
            node: Rc::new(node),
            known: RefCell::default(),
            tasks: TaskTracker::new(),
            enrolled_file,
            written: RefCell::default(),
        })
    }

    /// Follows the control plane for ever.
    pub async fn run(&self) {
        let Some(mut changes) = self.node.shared.world.changes() else {
            return;
        };
        let mut check = None;
        loop {
            let unmentioned = self.reconcile();
            check =
                unmentioned.then(|| check.unwrap_or_else(|| Instant::now() + UNMENTIONED_CHECK));
            let due = async {
                match check {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                news = changes.enrolments() => if !news {
                    return;
                },
                () = due => {
                    self.remove_dead().await;
                    check = None;
                }
            }
        }
    }

    /// Makes what each pod shall be what the control plane says now; true while it is silent about some.
    pub fn reconcile(&self) -> bool {
        let world = self.node.shared.world.snapshot();
        let wanted: BTreeMap<PodUid, Arc<Enrolment>> = world
            .enrolments()
            .map(|e| (e.uid.clone(), e.clone()))
            .collect();
        let mut known = self.known.borrow_mut();
        for (uid, handle) in &mut *known {
            if !wanted.contains_key(uid) {
                handle.unmention(uid);
            }
        }
        known.retain(|_, handle| !handle.task.is_finished());
        let unmentioned = known.keys().any(|uid| !wanted.contains_key(uid));
        for enrolment in wanted.values() {
            self.handle(&mut known, enrolment).order(enrolment);
        }
        drop(known);
        self.write_namespaces(
            world
                .enrolled_namespaces()
                .map(|ns| ns.to_string())
                .collect(),
        );
        unmentioned
    }

    /// A pod without a process that nobody mentions is no more: not every container runtime tells us of its end.
    async fn remove_dead(&self) {
        if !self
            .known
            .borrow()
            .values()
            .any(Handle::is_kept_unmentioned)
        {
            return;
        }
        let running = match self.node.processes().await {
            Ok(running) => running,
            Err(error) => {
                tracing::warn!(%error, "cannot look for the processes of pods that are not mentioned any more");
                return;
            }
        };
        for (uid, handle) in &*self.known.borrow() {
            if handle.is_kept_unmentioned() && !running.runs(uid.as_str()) {
                handle.remove();
            }
        }
    }

    /// Why a pod is not as it should be, if it is not.
    pub(crate) fn failure(&self, uid: &PodUid) -> Option<String> {
        match &*self.known.borrow().get(uid)?.status.borrow() {
            Status::Failed(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// The sandbox of a pod is captured; or why not.
    pub(crate) async fn capture(
        &self,
        enrolment: &Enrolment,
        sandbox: &protocol::Sandbox,
    ) -> Result<(), String> {
        let sandbox = self.open(sandbox).await?;
        let mut status = {
            let mut known = self.known.borrow_mut();
            let handle = self.handle(&mut known, enrolment);
            handle.sandbox_gone = false;
            handle.sandbox = Some(sandbox.clone());
            handle.order(enrolment);
            handle.status.clone()
        };
        let here = |status: &Status| match status {
            Status::Captured(netns) => *netns == sandbox.netns.id(),
            Status::Failed(_) => true,
            Status::Pending | Status::Out => false,
        };
        // A failure may be an earlier sandbox's: only what is said from now on counts.
        if matches!(*status.borrow(), Status::Failed(_)) {
            status.mark_unchanged();
            status
                .changed()
                .await
                .map_err(|_| "the pod is gone".to_owned())?;
        }
        match status.wait_for(here).await {
            Ok(status) => match &*status {
                Status::Failed(reason) => Err(reason.clone()),
                _ => Ok(()),
            },
            Err(_) => Err("the pod is gone".to_owned()),
        }
    }

    /// This ztunnel goes within `time`. For good: takes every pod out of the mesh first. Otherwise each is served
    /// until a successor serves it; if this future is dropped and it is called again for good, that counts.
    pub async fn leave(&self, leaving: Leaving, time: Duration) {
        let hand_over = Instant::now() + time.saturating_sub(LATE_CONNECTIONS);
        for handle in self.known.borrow().values() {
            handle.leave(match leaving {
                Leaving::ForGood => DesiredState::LeaveForGood,
                Leaving::Restart => DesiredState::HandOver { until: hand_over },
            });
        }
        self.tasks.close();
        if timeout(time, self.tasks.wait()).await.is_err() {
            self.node.end.cancel();
            self.tasks.wait().await;
        }
    }

    /// Whether the control plane can be reached now.
    pub(crate) fn connected(&self) -> watch::Receiver<bool> {
        self.node.connected.clone()
    }

    /// The node that the pods are on.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The pod's handle, of a task that takes orders.
    fn handle<'a>(
        &self,
        known: &'a mut HashMap<PodUid, Handle>,
        enrolment: &Enrolment,
    ) -> &'a mut Handle {
        let uid = &enrolment.uid;
        if known.get(uid).is_some_and(|of| of.task.is_finished()) {
            known.remove(uid);
        }
        known
            .entry(uid.clone())
            .or_insert_with(|| self.start(enrolment))
    }

    fn start(&self, enrolment: &Enrolment) -> Handle {
        let (desired_tx, desired) = watch::channel(DesiredState::Undecided);
        let (status_tx, status) = watch::channel(Status::Pending);
        let name = format!("{}/{}", enrolment.namespace, enrolment.name);
        let task = enrol::Task::new(self.node.clone(), enrolment.uid.clone(), name, status_tx);
        Handle {
            task: self.tasks.spawn_local(task.run(desired)),
            desired: desired_tx,
            status,
            sandbox: None,
            sandbox_gone: false,
            unmentioned: None,
        }
    }

    /// Keeps the list for the CNI plugin, which reads it when no ztunnel answers.
    fn write_namespaces(&self, namespaces: Vec<String>) {
        if !*self.node.synced.borrow() {
            return;
        }
        let now = Enrolled::from_iter(namespaces);
        if self.written.borrow().as_ref() == Some(&now) {
            return;
        }
        match now.write(&self.enrolled_file) {
            Ok(()) => *self.written.borrow_mut() = Some(now),
            Err(error) => {
                tracing::error!(%error, path = %self.enrolled_file.display(), "cannot write the list of enrolled namespaces");
            }
        }
    }
}

// === impl Handle ===

impl Handle {
    /// Passes on what the control plane says, if it is news.
    fn order(&mut self, enrolment: &Enrolment) {
        if self.unmentioned.take().is_some() {
            tracing::info!(uid = %enrolment.uid, "the controller mentions a pod again");
        }
        let now = if self.sandbox_gone {
            DesiredState::SandboxGone
        } else if enrolment.capture {
            DesiredState::In {
                enrolment: enrolment.clone(),
                sandbox: self.sandbox.clone(),
            }
        } else {
            DesiredState::Out {
                enrolment: enrolment.clone(),
            }
        };
        self.desired.send_if_modified(|desired| {
            let new = *desired != now;
            if new {
                *desired = now;
            }
            new
        });
    }

    /// The control plane does not mention the pod: it stays as it is for a while, or is removed.
    fn unmention(&mut self, uid: &PodUid) {
        let news = self.unmentioned.is_none();
        let since = *self.unmentioned.get_or_insert_with(Instant::now);
        if !self.desired.borrow().outlasts_silence(since.elapsed()) {
            self.remove();
        } else if news {
            tracing::warn!(%uid, grace = ?UNMENTIONED_GRACE, "the controller does not mention a running pod any more; it stays in the mesh until it ends, or that time has passed");
        }
    }

    /// Whether only the control plane's silence speaks against the pod.
    fn is_kept_unmentioned(&self) -> bool {
        self.unmentioned.is_some() && *self.desired.borrow() != DesiredState::Removed
    }

    /// The pod is no more.
    fn remove(&self) {
        self.desired.send_if_modified(|desired| {
            std::mem::replace(desired, DesiredState::Removed) != DesiredState::Removed
        });
    }

    /// This ztunnel goes. A pod that is being removed has no part in that.
    fn leave(&self, how: DesiredState) {
        self.desired.send_if_modified(|desired| {
            let stays = *desired != DesiredState::Removed;
            if stays {
                *desired = how;
            }
            stays
        });
    }
}
