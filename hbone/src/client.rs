//! One connection to one peer: TCP, TLS that proves who it is, HTTP/2, and tunnels on it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::keepalive::{IdleEnd, InUse, Keepalive, Usage};
use crate::stream::{Halves, Tunnel};
use crate::{
    Credentials, Destination, Dial, Error, Identity, PoolLimits, Request, Response, SpiffeId,
};
use crate::{limits, tls};

/// A living connection that takes tunnels.
pub(crate) struct Client {
    sender: SendRequest<Bytes>,
    usage: Arc<Usage>,
    /// As whom we are known to the peer.
    identity: Arc<Identity>,
    addr: SocketAddr,
    peer: SpiffeId,
    peer_not_after: SystemTime,
}

/// What moves the connection's bytes. It runs until the peer ends it, or nobody holds a [`Client`]
/// or tunnel of it.
pub(crate) struct Driver {
    connection: Connection<TlsStream<TcpStream>, Bytes>,
    keepalive: Keepalive,
    idle: IdleEnd,
}

/// Dials and proves one peer.
pub(crate) async fn connect(
    dial: &impl Dial,
    credentials: &Credentials,
    to: &Destination,
    limits: &PoolLimits,
) -> Result<(Client, Driver), Error> {
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
        handshake(tcp, identity, to, limits),
    )
    .await;
    shaken.unwrap_or_else(|_| Err(Error::HandshakeTimeout(to.addr)))
}

async fn handshake(
    tcp: TcpStream,
    identity: Arc<Identity>,
    to: &Destination,
    limits: &PoolLimits,
) -> Result<(Client, Driver), Error> {
    let proved = tls::connect(tcp, to.addr, &identity, &to.expect).await?;
    let (sender, mut connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_frame_size(limits::MAX_FRAME)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_send_buffer_size(limits::SEND_BUFFER)
        .initial_max_send_streams(limits.max_streams)
        .handshake(proved.stream)
        .await
        .map_err(|e| Error::from_h2(&e))?;
    let pings = connection
        .ping_pong()
        .ok_or_else(|| Error::protocol("no pings"))?;
    let usage = Usage::new();
    let driver = Driver {
        connection,
        keepalive: Keepalive::new(pings, limits.ping_interval, limits.ping_timeout),
        idle: IdleEnd::new(usage.clone(), limits.idle_timeout),
    };
    let client = Client {
        sender,
        usage,
        identity,
        addr: to.addr,
        peer: proved.peer.id,
        peer_not_after: proved.not_after,
    };
    Ok((client, driver))
}

/// What every socket of a tunnel gets.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    let (time, probes) = limits::TCP_KEEPALIVE;
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(time)
            .with_interval(time)
            .with_retries(probes),
    )
}

// === impl Client ===

impl Client {
    /// Whether new tunnels may use it: it was made with our current identity, and the peer's
    /// certificate has not run out since.
    pub(crate) fn is_current(&self, identity: &Arc<Identity>) -> bool {
        Arc::ptr_eq(&self.identity, identity) && SystemTime::now() < self.peer_not_after
    }

    /// Takes a place for one more tunnel, where there is one.
    pub(crate) fn take(&self, max_streams: usize) -> Option<InUse> {
        let most = max_streams.min(self.sender.current_max_send_streams());
        (self.usage.streams() < most).then(|| self.usage.take())
    }

    pub(crate) fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Asks for one tunnel.
    pub(crate) async fn open(
        &self,
        request: &Request,
        in_use: InUse,
    ) -> Result<(Tunnel, Response), Error> {
        let head = request.encode().map_err(Error::protocol)?;
        let unsent = |error: h2::Error| match self.explain(&error) {
            Error::ConnectionLost { reason, .. } => Error::ConnectionLost {
                reason,
                sent: false,
            },
            other => other,
        };
        let mut sender = self.sender.clone().ready().await.map_err(unsent)?;
        let (response, send) = sender.send_request(head, false).map_err(unsent)?;
        let answer = response.await.map_err(|error| self.explain(&error))?;
        let (head, recv) = answer.into_parts();
        let response = Response::decode(&head)?;
        Ok((Tunnel::new(Halves::new(send, recv, in_use)), response))
    }

    /// A server that rejects our certificate says so after the client's handshake is over, so its
    /// alert comes as the end of the connection.
    fn explain(&self, error: &h2::Error) -> Error {
        match Error::from_h2(error) {
            Error::ConnectionLost { reason, .. } if reason.contains("received fatal alert") => {
                tls::tls_error(self.addr, io::Error::other(reason.to_string()))
            }
            other => other,
        }
    }
}

// === impl Driver ===

impl Driver {
    /// Runs the connection to its end; calls `on_idle` when nobody has used it for a while.
    pub(crate) async fn run(mut self, mut on_idle: impl FnMut()) {
        let dead = poll_fn(|cx| {
            if Pin::new(&mut self.connection).poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            if self.keepalive.poll_dead(cx).is_ready() {
                return Poll::Ready(true);
            }
            while self.idle.poll_idle(cx).is_ready() {
                on_idle();
            }
            Poll::Pending
        })
        .await;
        if dead {
            tracing::debug!("the peer does not answer pings: connection ended");
        }
    }
}
