//! The pods of this node: what the mesh wishes of each, and one task per pod that makes it so.

pub mod capture;
pub mod enrol;
pub mod find;
mod handover;
pub mod netns;
pub mod newcomer;
pub mod node;
mod wish;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hbone::{InvalidSpiffeId, SpiffeId, TrustDomain};
use mesh::{
    enrolment::{Enrolment, PodUid},
    names::Uid,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use self::{
    netns::PodNetns,
    node::{Node, Place},
    wish::{Status, Wish},
};
use crate::{
    cni::{enrolled::Enrolled, protocol::Sandbox},
    leaving::Leaving,
};

/// One pod that is in the mesh, as its node knows it; the control plane's record may come later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its Kubernetes UID.
    pub uid: PodUid,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who it is in the mesh.
    pub identity: SpiffeId,
    /// The uid under which the mesh announces it.
    pub workload: Uid,
}

/// Every pod of this node that the control plane has told us of.
pub struct Pods {
    node: Rc<Node>,
    known: RefCell<HashMap<PodUid, Handle>>,
    tasks: TaskTracker,
    enrolled_file: PathBuf,
    written: RefCell<Option<Enrolled>>,
}

struct Handle {
    wish: watch::Sender<Wish>,
    status: watch::Receiver<Status>,
    /// Where the CNI plugin says that the pod is.
    place: Option<Place>,
    /// The container runtime has taken the sandbox down; nothing can be done for the pod until it has another.
    sandbox_gone: bool,
}

/// What a connection still gets that is accepted last by a ztunnel without a successor.
const LATE_CONNECTIONS: Duration = Duration::from_secs(5);

// === impl Pod ===

impl Pod {
    /// The pod of an enrolment, with the addresses that its network plugin gave it, where they are known.
    pub fn new(
        enrolment: &Enrolment,
        given: &[IpAddr],
        trust_domain: &TrustDomain,
        cluster: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        let mut addresses: Vec<IpAddr> = enrolment.addresses.clone();
        addresses.extend(given);
        // Two who tell of the same addresses in another order tell of the same pod.
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Self {
            uid: enrolment.uid.clone(),
            name: enrolment.name.clone(),
            namespace: enrolment.namespace.clone(),
            addresses,
            identity: SpiffeId::for_service_account(
                trust_domain,
                &enrolment.namespace,
                &enrolment.service_account,
            )?,
            workload: Uid::pod(cluster, &enrolment.namespace, &enrolment.name),
        })
    }

    /// Whether an address is this pod's.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}

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

    /// Follows the mesh's wishes for ever.
    pub async fn run(&self) {
        let mut changed = self.node.shared.world.changed();
        loop {
            self.reconcile();
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes every pod's wish what the mesh says now.
    pub fn reconcile(&self) {
        let world = self.node.shared.world.snapshot();
        let wanted: BTreeMap<PodUid, Arc<Enrolment>> = world
            .enrolments()
            .map(|e| (e.uid.clone(), e.clone()))
            .collect();
        let mut known = self.known.borrow_mut();
        known.retain(|uid, handle| {
            let keep = wanted.contains_key(uid);
            if !keep {
                handle.wish.send_replace(Wish::Gone);
            }
            keep
        });
        for (uid, enrolment) in wanted {
            let handle = known.entry(uid).or_insert_with(|| self.start(&enrolment));
            handle.order(&enrolment);
        }
        drop(known);
        self.write_namespaces(
            world
                .enrolled_namespaces()
                .map(|ns| ns.to_string())
                .collect(),
        );
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
        sandbox: &Sandbox,
    ) -> Result<(), String> {
        let place = self.place(sandbox)?;
        let mut status = {
            let mut known = self.known.borrow_mut();
            let handle = known
                .entry(enrolment.uid.clone())
                .or_insert_with(|| self.start(enrolment));
            handle.sandbox_gone = false;
            handle.place = Some(place.clone());
            handle.order(enrolment);
            handle.status.clone()
        };
        let here = |status: &Status| match status {
            Status::Captured(netns) => *netns == place.netns.id(),
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

    /// The container runtime takes a sandbox down.
    pub(crate) fn sandbox_gone(&self, sandbox: &Sandbox) {
        let mut known = self.known.borrow_mut();
        let Some(uid) = sandbox.uid.as_deref().map(PodUid::from) else {
            return;
        };
        let Some(handle) = known.get_mut(&uid) else {
            return;
        };
        let same = match (&handle.place, PodNetns::open(&sandbox.netns)) {
            // An earlier sandbox of a pod that has a new one already.
            (Some(place), Ok(netns)) => place.netns.id() == netns.id(),
            (Some(place), Err(_)) => place.container == sandbox.container_id,
            (None, _) => true,
        };
        if same {
            handle.place = None;
            handle.sandbox_gone = true;
            handle.wish.send_replace(Wish::SandboxGone);
        }
    }

    /// This ztunnel goes within `time`. For good: takes every pod out of the mesh first. Otherwise each is served
    /// until a successor serves it.
    pub async fn leave(&self, leaving: Leaving, time: Duration) {
        let hand_over = Instant::now() + time.saturating_sub(LATE_CONNECTIONS);
        for handle in self.known.borrow().values() {
            handle.wish.send_replace(match leaving {
                Leaving::ForGood => Wish::LeaveForGood,
                Leaving::Restart => Wish::HandOver { until: hand_over },
            });
        }
        self.tasks.close();
        if timeout(time, self.tasks.wait()).await.is_err() {
            self.node.end.cancel();
            self.tasks.wait().await;
        }
    }

    /// The node that the pods are on.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    fn start(&self, enrolment: &Enrolment) -> Handle {
        let (wish, wishes) = watch::channel(Wish::Undecided);
        let (say, status) = watch::channel(Status::Pending);
        let name = format!("{}/{}", enrolment.namespace, enrolment.name);
        let task = enrol::Task::new(self.node.clone(), enrolment.uid.clone(), name, say);
        self.tasks.spawn_local(task.run(wishes));
        Handle {
            wish,
            status,
            place: None,
            sandbox_gone: false,
        }
    }

    fn place(&self, sandbox: &Sandbox) -> Result<Place, String> {
        // Seen from the node's first process the path is as the container runtime means it.
        let relative = sandbox.netns.strip_prefix("/").unwrap_or(&sandbox.netns);
        let on_node = self.node.proc.join("1/root").join(relative);
        let netns = PodNetns::open(&on_node)
            .or_else(|_| PodNetns::open(&sandbox.netns))
            .map_err(|e| {
                format!(
                    "cannot open network namespace {}: {e}",
                    sandbox.netns.display()
                )
            })?;
        Ok(Place {
            netns,
            ips: sandbox.ips.clone(),
            container: sandbox.container_id.clone(),
        })
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
    /// Passes the mesh's wish on, if it is a new one.
    fn order(&self, enrolment: &Enrolment) {
        let wish = if self.sandbox_gone {
            Wish::SandboxGone
        } else if enrolment.capture {
            Wish::In {
                enrolment: enrolment.clone(),
                place: self.place.clone(),
            }
        } else {
            Wish::Out {
                enrolment: enrolment.clone(),
            }
        };
        self.wish.send_if_modified(|current| {
            let new = *current != wish;
            if new {
                *current = wish;
            }
            new
        });
    }
}
