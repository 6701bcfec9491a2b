//! An endpoint as a ready HTTP client: over a tunnel where it is in the mesh, plain where it is not.
//!
//! Connections are kept per endpoint, protocol and client (its proved identity and address), because the tunnel below carries
//! one client's address and words to the last hop. An HTTP/1.1 connection is taken by one request at a time; HTTP/2 ones
//! are shared.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hbone::{Credentials, Destination, Fault, Pool, PoolLimits, Request, SpiffeId, TcpDial};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use mesh::names::{ServiceName, Uid};
use mesh::verdict::lease::{Lease, Revoked};
use mesh::workload::Workload;
use mesh::world::World;
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::exec::LocalExec;
use crate::leases::{Behind, Held, Leases, unless_revoked};
use crate::request_body::RequestBody;
use idle::IdleConnections;
pub(crate) use idle::StreamPermit;
pub(crate) use wire::Wire;
use wire::{Counted, Moved};

mod idle;
mod wire;

/// TCP connect to an endpoint: in a cluster it takes milliseconds, and another endpoint is tried next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The HTTP/2 preface on a new connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often connections that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// HTTP/2 windows towards an endpoint: enough for 1 Gbit/s at 8 ms on one stream, bounded per connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Header list of a response.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// Buffer of an HTTP/1.1 connection, which bounds the head of a response.
const MAX_BUFFER: usize = 128 << 10;

/// One core's connections to endpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    tunnels: Pool<TcpDial>,
    world: World,
    leases: Leases,
    idle: Rc<RefCell<IdleConnections>>,
}

/// Where a request goes, and how.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    /// The application.
    pub(crate) target: SocketAddr,
    /// The endpoint's workload.
    pub(crate) uid: Uid,
    /// The same, as it was chosen.
    pub(crate) workload: Arc<Workload>,
    /// The Service that it was chosen for.
    pub(crate) service: Option<ServiceName>,
    /// Its tunnel and who must be there; `None`: it is outside the mesh.
    pub(crate) tunnel: Option<Destination>,
    /// Whether it is spoken to in HTTP/2.
    pub(crate) http2: bool,
}

/// An endpoint's bytes, and what they stand on.
pub(crate) struct Connected {
    pub(crate) wire: Wire,
    pub(crate) lease: Held,
}

/// Whose connections may be used together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    target: SocketAddr,
    uid: Uid,
    http2: bool,
    client: (IpAddr, SpiffeId),
}

/// A connection that can take a request now.
pub(crate) enum Ready {
    /// For one request.
    H1 {
        sender: http1::SendRequest<RequestBody>,
        /// Whether it has answered requests before, and so may have died unseen.
        reused: bool,
        return_to: ReturnHandle,
    },
    /// Shared.
    H2 { permit: StreamPermit, reused: bool },
}

/// Where a connection goes back to.
pub(crate) struct ReturnHandle {
    key: Key,
    idle: Rc<RefCell<IdleConnections>>,
}

/// Why an endpoint cannot be reached; nothing of a request was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    /// The tunnel.
    #[error(transparent)]
    Tunnel(#[from] hbone::Error),
    /// Plain TCP.
    #[error("cannot connect to {0}: {1}")]
    Dial(SocketAddr, Arc<std::io::Error>),
    /// It has gone just now, or is another.
    #[error(transparent)]
    Gone(#[from] Revoked),
    /// HTTP did not come about.
    #[error("no HTTP with {0}: {1}")]
    Handshake(SocketAddr, String),
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: hyper::Error,
    /// The request, where nothing of it was sent.
    pub(crate) unsent: Option<Box<hyper::Request<RequestBody>>>,
    /// Whether the connection had been used before.
    pub(crate) reused: bool,
}

// === impl Upstream ===

impl Upstream {
    /// Nothing connected yet. Must be called in a `LocalRuntime` or `LocalSet`.
    pub(crate) fn new(credentials: Credentials, world: World, leases: Leases) -> Self {
        let limits = PoolLimits {
            connect_timeout: CONNECT_TIMEOUT,
            ..PoolLimits::default()
        };
        let idle = Rc::new(RefCell::new(IdleConnections::default()));
        let swept = Rc::downgrade(&idle);
        tokio::task::spawn_local(async move {
            let mut ticks = interval(SWEEP);
            // Ends with the last clone.
            while let Some(idle) = swept.upgrade() {
                idle.borrow_mut().sweep();
                drop(idle);
                ticks.tick().await;
            }
        });
        Self {
            tunnels: Pool::new(credentials, TcpDial, limits),
            world,
            leases,
            idle,
        }
    }

    /// From here on something stands on the endpoint.
    pub(crate) fn hold(&self, hop: &Hop) -> Result<Held, Revoked> {
        let lease = Lease::of_endpoint(&hop.workload, hop.target.ip());
        let behind = hop.service.clone().map(|service| Behind {
            service,
            workload: Arc::clone(&hop.workload),
        });
        self.world
            .look(|world| self.leases.hold(lease, behind, world))
    }

    /// The endpoint's bytes: a tunnel, or TCP.
    pub(crate) async fn connect(
        &self,
        hop: &Hop,
        head: &Request,
    ) -> Result<Connected, Unreachable> {
        let wire = self.dial(hop, head).await?;
        let lease = self.hold(hop)?;
        Ok(Connected { wire, lease })
    }

    async fn dial(&self, hop: &Hop, head: &Request) -> Result<Wire, Unreachable> {
        if let Some(destination) = &hop.tunnel {
            let opened = self.tunnels.open(destination, head).await?;
            return Ok(Wire::Tunnel(opened.tunnel.into_io()));
        }
        let dialled = timeout(CONNECT_TIMEOUT, TcpStream::connect(hop.target)).await;
        let tcp = dialled
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| Unreachable::Dial(hop.target, Arc::new(error)))?;
        Ok(Wire::Plain(tcp))
    }

    /// A connection to the endpoint for one request of `client`: one that is there, or a new one.
    pub(crate) async fn ready(
        &self,
        hop: &Hop,
        client: (IpAddr, SpiffeId),
        head: impl FnOnce() -> Request,
    ) -> Result<Ready, Unreachable> {
        let key = Key {
            target: hop.target,
            uid: hop.uid.clone(),
            http2: hop.http2,
            client,
        };
        if hop.http2 {
            self.shared(hop, key, head).await
        } else {
            self.single(hop, key, head).await
        }
    }

    /// As [`ready`](Self::ready), after a kept HTTP/1.1 connection turned out dead: others of its age may be, too.
    pub(crate) async fn fresh(
        &self,
        hop: &Hop,
        client: (IpAddr, SpiffeId),
        head: impl FnOnce() -> Request,
    ) -> Result<Ready, Unreachable> {
        let key = Key {
            target: hop.target,
            uid: hop.uid.clone(),
            http2: hop.http2,
            client,
        };
        self.idle.borrow_mut().forget(&key);
        if hop.http2 {
            self.shared(hop, key, head).await
        } else {
            self.single(hop, key, head).await
        }
    }

    async fn single(
        &self,
        hop: &Hop,
        key: Key,
        head: impl FnOnce() -> Request,
    ) -> Result<Ready, Unreachable> {
        let found = self.idle.borrow_mut().take(&key);
        let (sender, reused) = match found {
            Some(sender) => (sender, true),
            None => {
                let Connected { wire, lease } = self.connect(hop, &head()).await?;
                let (wire, moved) = Counted::new(wire);
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(MAX_BUFFER)
                    .handshake(TokioIo::new(wire))
                    .await
                    .map_err(|error| Unreachable::Handshake(hop.target, error.to_string()))?;
                self.drive(connection.with_upgrades(), lease, moved, hop);
                (sender, false)
            }
        };
        Ok(Ready::H1 {
            sender,
            reused,
            return_to: ReturnHandle {
                key,
                idle: Rc::clone(&self.idle),
            },
        })
    }

    async fn shared(
        &self,
        hop: &Hop,
        key: Key,
        head: impl FnOnce() -> Request,
    ) -> Result<Ready, Unreachable> {
        let dialling = {
            let mut idle = self.idle.borrow_mut();
            if let Some(permit) = idle.permit(&key) {
                return Ok(Ready::H2 {
                    permit,
                    reused: true,
                });
            }
            idle.dialling(&key)
        };
        let came = Instant::now();
        // One dials, the others wait and share what comes of it.
        let _turn = dialling.acquire().await;
        let (permit, failure) = {
            let mut idle = self.idle.borrow_mut();
            (idle.permit(&key), idle.failure_since(&key, came))
        };
        match (permit, failure) {
            (Some(permit), _) => {
                return Ok(Ready::H2 {
                    permit,
                    reused: true,
                });
            }
            (None, Some(failure)) => return Err(failure),
            (None, None) => {}
        }
        let dialled = self.dial_shared(hop, &head()).await;
        let mut idle = self.idle.borrow_mut();
        match dialled {
            Ok(sender) => Ok(Ready::H2 {
                permit: idle.share(key, sender),
                reused: false,
            }),
            Err(error) => {
                idle.failed(&key, error.clone());
                Err(error)
            }
        }
    }

    async fn dial_shared(
        &self,
        hop: &Hop,
        head: &Request,
    ) -> Result<http2::SendRequest<RequestBody>, Unreachable> {
        let failed =
            |why: &dyn std::fmt::Display| Unreachable::Handshake(hop.target, why.to_string());
        let Connected { wire, lease } = self.connect(hop, head).await?;
        let (wire, moved) = Counted::new(wire);
        let handshake = http2::Builder::new(LocalExec)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .handshake(TokioIo::new(wire));
        let shaken = timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| failed(&"it timed out"))?;
        let (sender, connection) = shaken.map_err(|error| failed(&error))?;
        self.drive(connection, lease, moved, hop);
        Ok(sender)
    }

    /// Runs a connection until it ends, or its lease; its requests report what went wrong.
    fn drive(
        &self,
        connection: impl Future<Output = hyper::Result<()>> + 'static,
        mut lease: Held,
        moved: Moved,
        hop: &Hop,
    ) {
        let (idle, uid) = (Rc::downgrade(&self.idle), hop.uid.clone());
        tokio::task::spawn_local(async move {
            let told = || {
                // Nothing new begins on any connection to it.
                if let Some(idle) = idle.upgrade() {
                    idle.borrow_mut().forget_endpoint(&uid);
                }
            };
            match unless_revoked(connection, &mut lease, told, || moved.bytes()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "upstream connection ended"),
                Err(revoked) => {
                    tracing::info!(
                        reason = revoked.code(),
                        "upstream connection ended: {revoked}"
                    );
                }
            }
        });
    }
}

// === impl Ready ===

impl Ready {
    /// Whether the connection has answered requests before, and so may have died unseen.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Self::H1 { reused, .. } | Self::H2 { reused, .. } => *reused,
        }
    }

    /// Sends a request; the connection goes back when the response has been read.
    pub(crate) async fn send(
        self,
        request: hyper::Request<RequestBody>,
    ) -> Result<(hyper::Response<hyper::body::Incoming>, Option<StreamPermit>), Failed> {
        match self {
            Self::H1 {
                mut sender,
                reused,
                return_to,
            } => match sender.try_send_request(request).await {
                Ok(response) => {
                    if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
                        return_to.give_back(sender);
                    }
                    Ok((response, None))
                }
                Err(error) => Err(Failed::new(error, reused)),
            },
            Self::H2 { mut permit, reused } => {
                match permit.sender().try_send_request(request).await {
                    Ok(response) => Ok((response, Some(permit))),
                    Err(error) => Err(Failed::new(error, reused)),
                }
            }
        }
    }
}

impl Failed {
    fn new(
        mut failed: hyper::client::conn::TrySendError<hyper::Request<RequestBody>>,
        reused: bool,
    ) -> Self {
        Self {
            unsent: failed.take_message().map(Box::new),
            error: failed.into_error(),
            reused,
        }
    }
}

// === impl ReturnHandle ===

impl ReturnHandle {
    /// Waits for the end of the response, then keeps the connection.
    fn give_back(self, mut sender: http1::SendRequest<RequestBody>) {
        if sender.is_ready() {
            self.idle.borrow_mut().put(self.key, sender);
            return;
        }
        tokio::task::spawn_local(async move {
            // An error: it ended with the response.
            if sender.ready().await.is_ok() {
                self.idle.borrow_mut().put(self.key, sender);
            }
        });
    }
}

// === impl Unreachable ===

impl Unreachable {
    /// Whether anybody would fail to reach the endpoint: not that it does not let this client in, nor our own end.
    pub(crate) fn is_endpoints(&self) -> bool {
        match self {
            Self::Tunnel(hbone::Error::Refused(refusal)) => refusal.status.is_server_error(),
            Self::Tunnel(error) => error.fault() != Fault::Us,
            Self::Gone(_) | Self::Dial(..) | Self::Handshake(..) => true,
        }
    }

    /// A stable word for answers, logs and metrics.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Tunnel(error) => error.code(),
            Self::Gone(revoked) => revoked.code(),
            Self::Dial(..) => "dial_failed",
            Self::Handshake(..) => "http_handshake_failed",
        }
    }
}
