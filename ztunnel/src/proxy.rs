//! One pod's proxy on one core: what its connections share, and how far its end has come.

use std::{
    cell::RefCell,
    collections::HashSet,
    future::Future,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hbone::{Acceptor, Credentials, Pool, PoolLimits, ServerLimits, TrustDomain};
use mesh::{
    names::Uid,
    party::Party,
    pod::Pod,
    unproven::Unproven,
    workload::{Tunnel, Workload},
    world::{Changed, World},
};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    dial::PodDial,
    failure::Failure,
    metrics::Metrics,
    netns::PodNetns,
    sessions::{SessionInfo, Sessions},
};

/// Connections of one pod at once, over all cores, in each of the three directions: two sockets each, so that one pod
/// cannot take the node's last file descriptor (the limit is raised to the kernel's million) nor its memory.
const MOST_CONNECTIONS: usize = 20_000;

/// Tunnel connections of proven peers to one pod at once, over all cores: a client has one for each of its node's cores,
/// and each costs 12 KiB while it rests.
const MOST_TUNNELS: usize = 16_384;

/// Tunnel connections to one pod whose peers have not proven who they are, over all cores. A handshake takes
/// milliseconds; those that say nothing make room for the next, the oldest first, once they had half a second.
const MOST_UNPROVEN: usize = 4_096;

/// What every proxy of this process shares.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The mesh as it is known now.
    pub world: World,
    /// The process's counters.
    pub metrics: Metrics,
    /// Whose identities are proven by our roots.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The Kubernetes node's name.
    pub node: Arc<str>,
}

/// What one pod's proxies on all cores share.
#[derive(Debug)]
pub struct Serving {
    /// The pod.
    pub pod: Pod,
    /// Its network namespace.
    pub netns: PodNetns,
    /// Its certificate, kept current by somebody else.
    pub credentials: Credentials,
    began: Instant,
    last_accept: AtomicU64,
}

/// One pod's proxy on one core.
pub(crate) struct Proxy {
    pub(crate) serving: Arc<Serving>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sessions: Sessions,
    pub(crate) pool: Pool<PodDial>,
    pub(crate) acceptor: Acceptor,
    /// Room for tunnel connections whose peers are not proven.
    pub(crate) unproven: Unproven,
    /// Room for those whose peers are.
    tunnels: Arc<Semaphore>,
    /// Workloads that a tunnel was opened to, to be forgotten when the mesh forgets them.
    dialled: RefCell<HashSet<Uid>>,
    stages: Stages,
}

/// How far a proxy's end has come. Each stage implies the ones before.
#[derive(Default)]
struct Stages {
    /// No more connections are accepted.
    closing: CancellationToken,
    /// No more streams are accepted either.
    draining: CancellationToken,
    /// What still runs is reset.
    ended: CancellationToken,
    loops: TaskTracker,
    connections: TaskTracker,
}

// === impl Serving ===

impl Serving {
    /// A pod ready to be served.
    pub fn new(pod: Pod, netns: PodNetns, credentials: Credentials) -> Self {
        let (began, last_accept) = (Instant::now(), AtomicU64::new(0));
        Self {
            pod,
            netns,
            credentials,
            began,
            last_accept,
        }
    }

    /// How long no connection has been accepted.
    pub fn quiet_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_accept.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }

    /// A connection was accepted just now.
    pub(crate) fn accepted(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_accept.store(now, Ordering::Relaxed);
    }
}

// === impl Proxy ===

impl Proxy {
    /// A pod's proxy without listeners; `cores` is how many share the pod.
    pub(crate) fn new(serving: Arc<Serving>, shared: Arc<Shared>, cores: usize) -> Rc<Self> {
        let most = MOST_CONNECTIONS.div_ceil(cores);
        let dial = PodDial(serving.netns.clone());
        let credentials = serving.credentials.clone();
        Rc::new(Self {
            sessions: Sessions::new(shared.metrics.clone(), most),
            pool: Pool::new(credentials.clone(), dial, PoolLimits::default()),
            acceptor: Acceptor::new(
                credentials,
                [shared.trust_domain.clone()],
                ServerLimits::default(),
            ),
            serving,
            shared,
            unproven: Unproven::new(MOST_UNPROVEN.div_ceil(cores)),
            tunnels: Arc::new(Semaphore::new(MOST_TUNNELS.div_ceil(cores))),
            dialled: RefCell::default(),
            stages: Stages::default(),
        })
    }

    /// The pod.
    pub(crate) fn pod(&self) -> &Pod {
        &self.serving.pod
    }

    /// The pod as logs and metrics name it: what the control plane says, else what the enrolment says.
    pub(crate) fn own_party(&self, record: Option<&Workload>) -> Party {
        let pod = self.pod();
        let party = match record {
            Some(record) => Party::of(record),
            None => Party {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                cluster: Some(self.shared.cluster.clone()),
                ..Party::default()
            },
        };
        party.proven(pod.identity.clone())
    }

    /// The control plane's record of this pod, if it has one by now.
    pub(crate) fn own_record(&self) -> Option<Arc<Workload>> {
        self.shared
            .world
            .look(|w| w.workload(&self.pod().workload).cloned())
    }

    /// Opens a plain connection from the pod, seen as coming from `from` where that is given.
    pub(crate) async fn dial(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<TcpStream, Failure> {
        let dial = self.serving.netns.connect(to, from);
        match timeout(CONNECT_TIMEOUT, dial).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(Failure::Dial { to, source }),
            Err(_) => Err(Failure::DialTimeout(to)),
        }
    }

    /// Room for one more tunnel connection, held until it ends.
    pub(crate) fn tunnel_room(&self) -> Option<OwnedSemaphorePermit> {
        self.tunnels.clone().try_acquire_owned().ok()
    }

    /// Remembers that tunnels to this workload may be pooled.
    pub(crate) fn dialled(&self, workload: &Uid) {
        if !self.dialled.borrow().contains(workload) {
            self.dialled.borrow_mut().insert(workload.clone());
        }
    }

    /// Runs a connection's task, which ends early when the proxy does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let ended = self.stages.ended.clone();
        self.stages.connections.spawn_local(async move {
            tokio::select! {
                () = task => {}
                () = ended.cancelled() => {}
            }
        });
    }

    /// Runs what accepts connections, and must end once no more are accepted.
    pub(crate) fn spawn_loop(&self, task: impl Future<Output = ()> + 'static) {
        self.stages.loops.spawn_local(task);
    }

    /// Ends when no more connections shall be accepted.
    pub(crate) async fn closing(&self) {
        self.stages.closing.cancelled().await;
    }

    /// Ends when no more streams shall be accepted.
    pub(crate) async fn draining(&self) {
        self.stages.draining.cancelled().await;
    }

    /// The live connections: at most so many.
    pub(crate) fn list(&self, most: usize) -> Vec<SessionInfo> {
        self.sessions.list(most)
    }

    /// Accepts what already waits, then closes the listeners.
    pub(crate) async fn close(&self) {
        self.stages.closing.cancel();
        self.stages.loops.close();
        self.stages.loops.wait().await;
    }

    /// Lets running connections end, but resets those that are still there when `end` is cancelled.
    pub(crate) async fn finish(&self, end: CancellationToken) {
        self.close().await;
        self.stages.draining.cancel();
        self.stages.connections.close();
        tokio::select! {
            () = self.stages.connections.wait() => {}
            () = end.cancelled() => {
                self.stages.ended.cancel();
                self.stages.connections.wait().await;
            }
        }
        // Not before: a connection that was just accepted may not have its tunnel yet.
        self.pool.drain();
        self.stages.ended.cancel();
    }

    /// Takes note of a change of the mesh: connections that stand on what changed are judged again, and pooled tunnels to
    /// workloads that left the mesh are forgotten, so that an address that comes back with another owner is dialled anew.
    pub(crate) fn changed(&self, changed: &Changed) {
        self.shared.world.look(|world| {
            self.sessions.rejudge(changed, world);
            let still = |uid: &Uid| {
                let workload = world.workload(uid);
                workload.is_some_and(|workload| workload.protocol == Tunnel::Hbone)
            };
            let mut dialled = self.dialled.borrow_mut();
            let gone: Vec<Uid> = if changed.is_everything() {
                dialled.iter().filter(|uid| !still(uid)).cloned().collect()
            } else {
                let known = changed.workloads().filter(|uid| dialled.contains(*uid));
                known.filter(|uid| !still(uid)).cloned().collect()
            };
            for uid in gone {
                self.pool.evict(uid.as_str());
                dialled.remove(&uid);
            }
        });
    }
}

/// The same as the tunnel's: what works in plaintext shall not fail in the mesh.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
