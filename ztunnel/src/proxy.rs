//! One pod's proxy on one core: its listeners, accept loops and what its connections share.

use std::{
    cell::RefCell,
    collections::HashSet,
    future::Future,
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hbone::{Acceptor, Credentials, Dial, Pool, PoolLimits, ServerLimits, TrustDomain};
use mesh::{
    names::Uid,
    workload::{Tunnel, Workload},
    world::World,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    failure::Failure,
    inbound,
    metrics::Metrics,
    outbound,
    party::Party,
    plaintext,
    pods::{Pod, netns::PodNetns},
    sessions::{SessionInfo, Sessions},
    socket,
};

/// Connections of one pod at once, over all cores: two sockets each, so that one pod cannot take the
/// node's last file descriptor (the limit is raised to the kernel's million) nor its memory.
const MOST_CONNECTIONS: usize = 20_000;

/// Tunnel connections to one pod at once, over all cores: each carries many tunnels, so this is thousands of
/// clients; the bound is for those that never prove who they are.
const MOST_TUNNELS: usize = 4_096;

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

/// A pod's listeners for one core.
#[derive(Debug)]
pub struct Listeners {
    /// Captured connections that leave.
    pub outbound: StdListener,
    /// Captured plaintext that arrives.
    pub plaintext: StdListener,
    /// Tunnels that arrive.
    pub tunnel: StdListener,
}

/// One pod's proxy on one core.
pub(crate) struct Proxy {
    pub(crate) serving: Arc<Serving>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sessions: Sessions,
    pub(crate) pool: Pool<PodDial>,
    pub(crate) acceptor: Acceptor,
    /// Room for tunnel connections, whose peers are not proven when they take it.
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

/// Dials from the pod's own namespace, so that the node's network sees the pod.
#[derive(Clone)]
pub(crate) struct PodDial(PodNetns);

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

    fn accepted(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_accept.store(now, Ordering::Relaxed);
    }
}

// === impl Proxy ===

impl Proxy {
    /// Starts to serve on this core; `cores` is how many share the pod.
    pub(crate) fn start(
        serving: Arc<Serving>,
        shared: Arc<Shared>,
        listeners: Listeners,
        cores: usize,
    ) -> io::Result<Rc<Self>> {
        let most = MOST_CONNECTIONS.div_ceil(cores);
        let dial = PodDial(serving.netns.clone());
        let credentials = serving.credentials.clone();
        let outbound = TcpListener::from_std(listeners.outbound)?;
        let plaintext = TcpListener::from_std(listeners.plaintext)?;
        let tunnel = TcpListener::from_std(listeners.tunnel)?;
        let proxy = Rc::new(Self {
            sessions: Sessions::new(shared.metrics.clone(), most),
            pool: Pool::new(credentials.clone(), dial, PoolLimits::default()),
            acceptor: Acceptor::new(
                credentials,
                [shared.trust_domain.clone()],
                ServerLimits::default(),
            ),
            serving,
            shared,
            tunnels: Arc::new(Semaphore::new(MOST_TUNNELS.div_ceil(cores))),
            dialled: RefCell::default(),
            stages: Stages::default(),
        });
        proxy.accept(outbound, outbound::serve);
        proxy.accept(plaintext, plaintext::serve);
        proxy.accept(tunnel, inbound::serve);
        proxy.watch_world();
        Ok(proxy)
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

    /// Ends when no more streams shall be accepted.
    pub(crate) async fn draining(&self) {
        self.stages.draining.cancelled().await;
    }

    /// The live connections.
    pub(crate) fn list(&self) -> Vec<SessionInfo> {
        self.sessions.list()
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

    /// The accept loop of one listener.
    fn accept<F>(
        self: &Rc<Self>,
        listener: TcpListener,
        serve: fn(Rc<Self>, TcpStream, SocketAddr) -> F,
    ) where
        F: Future<Output = ()> + 'static,
    {
        let proxy = self.clone();
        self.stages.loops.spawn_local(async move {
            let start = |stream: TcpStream, peer| {
                proxy.serving.accepted();
                // Not worth refusing a connection for. Small messages do not wait: `hbone` sees to that.
                let _ = socket::keepalive(&stream);
                proxy.spawn(serve(proxy.clone(), stream, socket::canonical(peer)));
            };
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, peer)) => start(stream, peer),
                        Err(error) => back_off(&error).await,
                    },
                    () = proxy.stages.closing.cancelled() => break,
                }
            }
            // Whoever was led here before redirection ended is still served.
            if let Ok(listener) = listener.into_std() {
                while let Ok((stream, peer)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        start(stream, peer);
                    }
                }
            }
        });
    }

    /// Forgets pooled tunnels to workloads that left the mesh, so that an address that comes back with
    /// another owner is dialled anew.
    fn watch_world(self: &Rc<Self>) {
        let proxy = self.clone();
        let mut changed = self.shared.world.changed();
        self.stages.loops.spawn_local(async move {
            loop {
                tokio::select! {
                    news = changed.changed() => if news.is_err() { return },
                    () = proxy.stages.closing.cancelled() => return,
                }
                let gone: Vec<Uid> = proxy.shared.world.look(|world| {
                    let still = |uid: &Uid| {
                        world
                            .workload(uid)
                            .is_some_and(|w| w.protocol == Tunnel::Hbone)
                    };
                    proxy
                        .dialled
                        .borrow()
                        .iter()
                        .filter(|uid| !still(uid))
                        .cloned()
                        .collect()
                });
                for uid in gone {
                    proxy.pool.evict(uid.as_str());
                    proxy.dialled.borrow_mut().remove(&uid);
                }
            }
        });
    }
}

// === impl PodNetns ===

impl PodNetns {
    /// Connects from inside the namespace, marked so that the connection is not captured again.
    async fn connect(&self, to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
        let stream = self
            .call(move || match from {
                Some(from) => socket::dial_as(from, to),
                None => socket::dial(to),
            })
            .await??;
        socket::connected(stream).await
    }
}

impl Dial for PodDial {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect(to, None).await
    }
}

/// A connection that failed in the queue is nothing to wait for; running out of something is.
async fn back_off(error: &io::Error) {
    use nix::errno::Errno;
    let exhausted = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    if error
        .raw_os_error()
        .is_some_and(|e| exhausted.contains(&Errno::from_raw(e)))
    {
        tracing::warn!(%error, "cannot accept connections for now");
        sleep(ACCEPT_BACKOFF).await;
    }
}

/// The same as the tunnel's: what works in plaintext shall not fail in the mesh.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Long enough not to spin, short enough for the clients in the queue.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: fn(Rc<Proxy>, TcpStream, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }

    /// What an idle connection costs, besides its sockets.
    #[test]
    fn a_connection_is_small() {
        let sizes = [
            size(outbound::serve),
            size(plaintext::serve),
            size(inbound::serve),
        ];
        let most = [1 << 10, 2304, 1 << 10];
        assert!(
            sizes.iter().zip(most).all(|(size, most)| *size <= most),
            "{sizes:?}"
        );
    }
}
