//! One connection to one peer: TCP, TLS that proves who it is, HTTP/2, and tunnels on it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::engine::{self, Core, Engine, Handle, Terms};
use crate::session::Role;
use crate::stream::Tunnel;
use crate::tls::handshake;
use crate::{
    Credentials, Destination, Dial, Error, Identity, PoolLimits, Request, Response, SpiffeId,
};

/// A living connection that takes tunnels. Dropped, the connection ends with its last tunnel.
pub(crate) struct Client {
    core: Rc<RefCell<Core>>,
    /// As whom we are known to the peer.
    identity: Arc<Identity>,
    peer: SpiffeId,
    peer_not_after: SystemTime,
}

/// Dials and proves one peer.
pub(crate) async fn connect(
    dial: &impl Dial,
    credentials: &Credentials,
    to: &Destination,
    limits: &PoolLimits,
) -> Result<(Client, Engine), Error> {
    let identity = credentials.current();
    identity.check()?;
    let tcp = match timeout(limits.connect_timeout, dial.dial(to.addr)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(source)) => {
            return Err(Error::Dial {
                addr: to.addr,
                source: Arc::new(source),
            });
        }
        Err(_) => return Err(Error::DialTimeout(to.addr)),
    };
    prepare(&tcp).map_err(|source| Error::Dial {
        addr: to.addr,
        source: Arc::new(source),
    })?;
    let shaken = timeout(
        limits.handshake_timeout,
        handshake(tcp, credentials, identity, to, limits),
    )
    .await;
    shaken.unwrap_or_else(|_| Err(Error::HandshakeTimeout(to.addr)))
}

async fn handshake(
    tcp: TcpStream,
    credentials: &Credentials,
    identity: Arc<Identity>,
    to: &Destination,
    limits: &PoolLimits,
) -> Result<(Client, Engine), Error> {
    let proved = handshake::dial(tcp, to.addr, &identity, &to.expect).await?;
    let (peer, peer_not_after) = (proved.peer.id.clone(), proved.not_after);
    let terms = Terms {
        role: Role::Client,
        max_streams: limits.max_streams,
        ping_interval: limits.ping_interval,
        ping_timeout: limits.ping_timeout,
        idle_timeout: limits.idle_timeout,
        max_age: limits.max_age,
    };
    let (engine, core) = engine::start(proved, &terms, credentials, identity.clone())?;
    let client = Client {
        core,
        identity,
        peer,
        peer_not_after,
    };
    Ok((client, engine))
}

/// What every socket of a tunnel gets.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    // No keepalive: the handshake has its timeout, and then there are pings.
    tcp.set_nodelay(true)
}

// === impl Client ===

impl Client {
    /// Whether new tunnels may use it: it lives, was made with our current identity, and the peer's
    /// certificate has not run out since.
    pub(crate) fn is_current(&self, identity: &Arc<Identity>) -> bool {
        self.core.borrow().is_open()
            && Arc::ptr_eq(&self.identity, identity)
            && SystemTime::now() < self.peer_not_after
    }

    /// Whether there is a place for one more tunnel.
    pub(crate) fn has_room(&self, max_streams: usize) -> bool {
        self.core.borrow().has_room(max_streams)
    }

    /// Whether it has no tunnel.
    pub(crate) fn is_idle(&self) -> bool {
        self.core.borrow().session.streams.len() == 0
    }

    /// Whether the connection is at its limit.
    pub(crate) fn is_hot(&self) -> bool {
        self.core.borrow().is_hot()
    }

    pub(crate) fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Asks for one tunnel, where [`Self::has_room`].
    pub(crate) async fn open(&self, request: &Request) -> Result<(Tunnel, Response), Error> {
        let mut handle = Handle::open(&self.core, request);
        let response = poll_fn(|cx| handle.poll_answer(cx)).await?;
        Ok((Tunnel::new(handle), response))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.core.borrow_mut().retire();
    }
}
