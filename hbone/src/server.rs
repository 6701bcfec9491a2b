//! Serves accepted connections: a stream of CONNECT requests, each accepted or rejected by the owner.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::client::prepare;
use crate::engine::{self, Core, Handle, Terms};
use crate::session::Role;
use crate::stream::Tunnel;
use crate::tls::{self, handshake};
use crate::{
    Credentials, Error, Identity, Peer, Refusal, Request, Response, ServerLimits, TrustDomain,
};

/// Turns accepted sockets into connections whose client has been proved. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(Arc<Shared>);

struct Shared {
    credentials: Credentials,
    trust: Arc<[TrustDomain]>,
    limits: ServerLimits,
    /// The configuration of the identity it was built for.
    config: ArcSwapOption<Built>,
}

/// A configuration, and the identity it is of.
type Built = (Arc<Identity>, Arc<rustls::ServerConfig>);

/// A connection whose client has been proved. Dropping it resets its tunnels.
///
/// Its bytes are moved by a task of its own, which ends with it.
pub struct Connection {
    core: Rc<RefCell<Core>>,
    peer: Peer,
    over: bool,
}

/// A CONNECT that waits for its answer. Dropped without one, it is reset.
#[must_use = "a request is accepted or rejected"]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub peer: Peer,
    handle: Handle,
}

// === impl Acceptor ===

impl Acceptor {
    /// Accepts in the name of `credentials` clients whose identity is in one of the `trust` domains.
    pub fn new(
        credentials: Credentials,
        trust: impl IntoIterator<Item = TrustDomain>,
        limits: ServerLimits,
    ) -> Self {
        let trust = trust.into_iter().collect();
        Self(Arc::new(Shared {
            credentials,
            trust,
            limits,
            config: ArcSwapOption::empty(),
        }))
    }

    /// TLS and the HTTP/2 preface, within the handshake timeout. Must run in a `LocalRuntime` or `LocalSet`.
    pub async fn accept(&self, tcp: TcpStream) -> Result<Connection, Error> {
        let addr = tcp
            .peer_addr()
            .map_err(|e| Error::lost(&e.to_string(), false))?;
        // A dual-stack listener shows IPv4 clients as IPv6.
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        // In memory of its own, which a connection that stays for hours does not keep.
        let handshake = Box::pin(self.handshake(tcp, addr));
        let shaken = timeout(self.0.limits.handshake_timeout, handshake).await;
        shaken.unwrap_or(Err(Error::HandshakeTimeout(addr)))
    }

    async fn handshake(&self, tcp: TcpStream, addr: SocketAddr) -> Result<Connection, Error> {
        prepare(&tcp).map_err(|e| Error::lost(&e.to_string(), false))?;
        let (identity, config) = self.config(addr)?;
        let proved = handshake::serve(tcp, addr, config).await?;
        let limits = &self.0.limits;
        let terms = Terms {
            role: Role::Server,
            max_streams: limits.max_streams as usize,
            ping_interval: limits.ping_interval,
            ping_timeout: limits.ping_timeout,
            idle_timeout: limits.idle_timeout,
            max_age: limits.max_age,
        };
        let peer = proved.peer.clone();
        let (engine, core) = engine::start(proved, &terms, &self.0.credentials, identity)?;
        // A turn is bounded by itself. It ends when the connection does, and at the latest a moment after its owner let go of it.
        spawn_local(unconstrained(engine));
        let connection = Connection {
            core,
            peer,
            over: false,
        };
        connection.greeted().await?;
        Ok(connection)
    }

    /// The current identity's configuration, built once after each swap (or twice, by two at once).
    fn config(&self, addr: SocketAddr) -> Result<Built, Error> {
        let identity = self.0.credentials.current();
        identity.check()?;
        if let Some(built) = &*self.0.config.load()
            && Arc::ptr_eq(&built.0, &identity)
        {
            return Ok((identity, built.1.clone()));
        }
        let config = tls::server_config(&identity, &self.0.trust)
            .map_err(|e| tls::tls_error(addr, std::io::Error::other(e)))?;
        let config = Arc::new(config);
        let built = (identity, config);
        self.0.config.store(Some(Arc::new(built.clone())));
        Ok(built)
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Acceptor")
            .field(&self.0.credentials)
            .finish()
    }
}

// === impl Connection ===

impl Connection {
    /// Who the client is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The next request; nothing when the connection has ended in order.
    ///
    /// Requests that are malformed are answered without being seen here.
    pub async fn next(&mut self) -> Option<Result<Incoming, Error>> {
        if self.over {
            return None;
        }
        let asked = poll_fn(|cx| self.core.borrow_mut().poll_asked(cx)).await;
        match asked {
            Ok((key, request)) => Some(Ok(Incoming {
                request: *request,
                peer: self.peer.clone(),
                handle: Handle::new(self.core.clone(), key),
            })),
            Err(end) => {
                self.over = true;
                end.map(Err)
            }
        }
    }

    /// Takes no new streams (GOAWAY); running ones finish, then [`next`](Self::next) ends.
    pub fn drain(&mut self) {
        self.core.borrow_mut().drain();
    }

    /// Waits for the client's preface and SETTINGS.
    async fn greeted(&self) -> Result<(), Error> {
        poll_fn(|cx| self.core.borrow_mut().poll_greeted(cx)).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.core.borrow_mut().leave();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

// === impl Incoming ===

impl Incoming {
    /// Opens the tunnel.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "an answer is given once, like its request"
    )]
    pub fn accept(mut self, response: Response) -> Result<Tunnel, Error> {
        self.handle.accept(&response)?;
        Ok(Tunnel::new(self.handle))
    }

    /// Refuses it, with the reason for the client's log.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "an answer is given once, like its request"
    )]
    pub fn reject(mut self, refusal: Refusal) {
        self.handle.refuse(&refusal);
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("request", &self.request)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
