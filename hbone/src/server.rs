//! Serves accepted connections: a stream of CONNECT requests, each accepted or rejected by the owner.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;

use crate::client::prepare;
use crate::keepalive::{IdleEnd, InUse, Keepalive, Usage};
use crate::stream::{Halves, Tunnel, Unheard};
use crate::tls::{self, Proved};
use crate::{
    Credentials, Error, Identity, Peer, Refusal, Request, Response, ServerLimits, TrustDomain,
    limits,
};

/// Turns accepted sockets into connections whose client has been proved. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(Arc<Shared>);

struct Shared {
    credentials: Credentials,
    trust: Arc<[TrustDomain]>,
    limits: ServerLimits,
    /// The configuration of the identity it was built for.
    config: ArcSwapOption<(Arc<Identity>, Arc<rustls::ServerConfig>)>,
}

/// A connection whose client has been proved. Dropping it resets its tunnels.
pub struct Connection {
    h2: h2::server::Connection<TlsStream<TcpStream>, Bytes>,
    peer: Peer,
    usage: Arc<Usage>,
    keepalive: Keepalive,
    idle: IdleEnd,
    /// The end of the client's certificate: no new streams afterwards.
    expiry: Pin<Box<Sleep>>,
    /// Tunnels whose server is gone and whose clients have not ended yet: no more than there are streams.
    unheard: Vec<Unheard>,
    left: mpsc::UnboundedReceiver<Unheard>,
    leave: mpsc::UnboundedSender<Unheard>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    /// GOAWAY is sent: running streams finish.
    Draining,
    Over,
}

/// A CONNECT that waits for its answer. Dropped without one, it is reset.
#[must_use = "a request is accepted or rejected"]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub peer: Peer,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    in_use: InUse,
    leave: mpsc::UnboundedSender<Unheard>,
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

    /// TLS and the HTTP/2 preface, within the handshake timeout.
    pub async fn accept(&self, tcp: TcpStream) -> Result<Connection, Error> {
        let addr = tcp
            .peer_addr()
            .map_err(|e| Error::lost(&e.to_string(), false))?;
        // A dual-stack listener shows IPv4 clients as IPv6.
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let shaken = timeout(self.0.limits.handshake_timeout, self.handshake(tcp, addr)).await;
        shaken.unwrap_or(Err(Error::HandshakeTimeout(addr)))
    }

    async fn handshake(&self, tcp: TcpStream, addr: SocketAddr) -> Result<Connection, Error> {
        prepare(&tcp).map_err(|e| Error::lost(&e.to_string(), false))?;
        let proved = tls::accept(tcp, addr, self.config(addr)?).await?;
        Connection::start(proved, &self.0.limits).await
    }

    /// The current identity's configuration, built once after each swap (or twice, by two at once).
    fn config(&self, addr: SocketAddr) -> Result<Arc<rustls::ServerConfig>, Error> {
        let identity = self.0.credentials.current();
        identity.check()?;
        if let Some(built) = &*self.0.config.load()
            && Arc::ptr_eq(&built.0, &identity)
        {
            return Ok(built.1.clone());
        }
        let config = tls::server_config(&identity, &self.0.trust)
            .map_err(|e| tls::tls_error(addr, std::io::Error::other(e)))?;
        let config = Arc::new(config);
        self.0
            .config
            .store(Some(Arc::new((identity, config.clone()))));
        Ok(config)
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
    async fn start(
        proved: Proved<TlsStream<TcpStream>>,
        limits: &ServerLimits,
    ) -> Result<Self, Error> {
        let mut h2 = Builder::new()
            .initial_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_frame_size(limits::MAX_FRAME)
            .max_header_list_size(limits::MAX_HEADER_LIST)
            .max_send_buffer_size(limits::SEND_BUFFER)
            .max_concurrent_streams(limits.max_streams)
            // A client that gives up on all its open requests at once is no attacker yet.
            .max_pending_accept_reset_streams(limits.max_streams as usize)
            .handshake(proved.stream)
            .await
            .map_err(|e| Error::from_h2(&e))?;
        let pings = h2.ping_pong().ok_or_else(|| Error::protocol("no pings"))?;
        let usage = Usage::new();
        let left = proved
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or(Duration::ZERO);
        let (leave, arrive) = mpsc::unbounded_channel();
        Ok(Self {
            h2,
            unheard: Vec::new(),
            left: arrive,
            leave,
            peer: proved.peer,
            keepalive: Keepalive::new(pings, limits.ping_interval, limits.ping_timeout),
            idle: IdleEnd::new(usage.clone(), limits.idle_timeout),
            usage,
            expiry: Box::pin(sleep(left)),
            state: State::Serving,
        })
    }

    /// Who the client is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The next request; nothing when the connection has ended in order.
    ///
    /// This also moves the bytes of all tunnels of the connection: it must be polled until it says
    /// that the connection is over. Requests that are malformed are answered here.
    pub async fn next(&mut self) -> Option<Result<Incoming, Error>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Takes no new streams (GOAWAY); running ones finish, then [`next`](Self::next) ends.
    pub fn drain(&mut self) {
        if self.state == State::Serving {
            self.state = State::Draining;
            self.h2.graceful_shutdown();
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, Error>>> {
        if self.state == State::Over {
            return Poll::Ready(None);
        }
        if self.idle.poll_idle(cx).is_ready()
            || (self.state == State::Serving && self.expiry.as_mut().poll(cx).is_ready())
        {
            self.drain();
        }
        loop {
            if self.keepalive.poll_dead(cx).is_ready() {
                return self.over(Some(Err(Error::lost(
                    "the peer does not answer pings",
                    true,
                ))));
            }
            self.hear_out(cx);
            match ready!(self.h2.poll_accept(cx)) {
                None => return self.over(None),
                Some(Err(error)) => return self.over(Some(Err(Error::from_h2(&error)))),
                Some(Ok((request, respond))) => {
                    if let Some(incoming) = self.admit(request, respond) {
                        return Poll::Ready(Some(Ok(incoming)));
                    }
                }
            }
        }
    }

    /// Lets clients end whose servers are gone.
    fn hear_out(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(unheard)) = self.left.poll_recv(cx) {
            self.unheard.push(unheard);
        }
        self.unheard
            .retain_mut(|u| !u.is_late() && u.poll_end(cx).is_pending());
    }

    fn over(
        &mut self,
        last: Option<Result<Incoming, Error>>,
    ) -> Poll<Option<Result<Incoming, Error>>> {
        self.state = State::Over;
        if matches!(last, Some(Err(_))) {
            self.h2.abrupt_shutdown(h2::Reason::NO_ERROR);
        }
        Poll::Ready(last)
    }

    /// A request that can be read; others are answered with the reason.
    fn admit(
        &self,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Incoming> {
        let (head, recv) = request.into_parts();
        match Request::decode(&head) {
            Ok(request) => Some(Incoming {
                request,
                peer: self.peer.clone(),
                respond,
                recv,
                in_use: self.usage.take(),
                leave: self.leave.clone(),
            }),
            Err(invalid) => {
                tracing::debug!(peer = %self.peer.id, reason = %invalid, "CONNECT not understood");
                // Fails only where the client has gone, which then needs no answer.
                let _ = respond.send_response(Refusal::from(&invalid).encode(), true);
                None
            }
        }
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
        let send = self
            .respond
            .send_response(response.encode(), false)
            .map_err(|e| Error::from_h2(&e))?;
        let halves = Halves::new(send, self.recv, self.in_use);
        Ok(Tunnel::new(halves.lingering(self.leave)))
    }

    /// Refuses it, with the reason for the client's log.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "an answer is given once, like its request"
    )]
    pub fn reject(mut self, refusal: Refusal) {
        // Fails only where the client has gone, which then needs no answer.
        let _ = self.respond.send_response(refusal.encode(), true);
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
