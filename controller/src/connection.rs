//! Connections to the controller's port: who holds one, for how long, and when it has to go.

pub mod admission;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use self::admission::{Activity, Admission, Bounds, ConnectionId, Holder, Proven, Stage};
use crate::metrics::Metrics;
use crate::rate::{Buckets, Rate};

/// A client of TLS speaks first, as soon as it is connected; one that does not is no proxy.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// From the first byte to the end of the handshake, lost packets included.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the handshake to the first call that is authorised. A proxy calls at once; the review of its token may take
/// [`crate::discovery::authenticate::REVIEW_DEADLINE`], and be tried again.
const FIRST_CALL: Duration = Duration::from_secs(30);
/// From the end of the last authorised call to the next. A proxy asks for certificates together or hours apart, and a
/// new connection for the next ones costs little.
const IDLE: Duration = Duration::from_secs(60);

/// New connections of one source. A handshake costs us some 0.3 ms of a core, so one source gets at most a seventh of one; a
/// thousand proxies behind one address are all back within a second.
const ARRIVALS: Rate = Rate {
    burst: 1000,
    per_second: 500,
};
/// Sources whose rate is kept: more than there are pods whose connections end within the two seconds that a bucket takes to fill.
const SOURCES: usize = 65_536;

/// Lets connections in and, when there are too many, asks some of them to go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    table: Arc<Mutex<Table>>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Table {
    admission: Admission,
    arrivals: Buckets<IpAddr>,
    ends: HashMap<ConnectionId, oneshot::Sender<()>>,
}

/// A place in the table, given back when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    gate: Gate,
    id: ConnectionId,
    peer: SocketAddr,
    /// Resolves when the connection has to go.
    ended: oneshot::Receiver<()>,
}

/// Why a connection was closed that nobody is served on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// No byte within [`FIRST_BYTE`], or none at all.
    Silent,
    /// No handshake within [`HANDSHAKE`], or a failed one.
    Handshake,
    /// No authorised call within [`FIRST_CALL`].
    NoCall,
    /// No authorised call for [`IDLE`].
    Idle,
    /// It gave way to a newer one.
    NoRoom,
    /// Its source opens them too fast.
    TooFast,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Secured {
    tls: TlsStream<TcpStream>,
    ticket: Ticket,
    /// When it is looked at whether it still serves anybody.
    due: Pin<Box<Sleep>>,
    gone: bool,
}

/// The connection on which a call arrived: part of the call's extensions.
#[derive(Debug, Clone)]
pub struct CallerConnection {
    gate: Gate,
    id: ConnectionId,
    peer: SocketAddr,
}

/// An authorised call, until it is dropped.
#[derive(Debug)]
pub struct OpenCall {
    gate: Gate,
    id: ConnectionId,
}

// === impl Gate ===

impl Gate {
    /// Nobody is connected.
    pub fn new(bounds: Bounds, metrics: Metrics) -> Self {
        let table = Table {
            admission: Admission::new(bounds),
            arrivals: Buckets::new(ARRIVALS, SOURCES),
            ends: HashMap::new(),
        };
        Self {
            table: Arc::new(Mutex::new(table)),
            metrics,
        }
    }

    /// A place for a new connection. Another one may have to go for it.
    pub fn arrive(&self, peer: SocketAddr) -> Result<Ticket, Shed> {
        let (end, ended) = oneshot::channel();
        let mut table = self.table.lock();
        let source = peer.ip().to_canonical();
        if !table.arrivals.take(&source, Instant::now()) {
            return Err(Shed::TooFast);
        }
        let (id, evicted) = table.admission.arrive(source);
        table.ends.insert(id, end);
        table.end(evicted);
        drop(table);
        Ok(Ticket {
            gate: self.clone(),
            id,
            peer,
            ended,
        })
    }

    /// How many connections there are: unproven, proven.
    pub fn held(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.admission.unproven(), table.admission.proven())
    }

    /// Counts a connection that was closed.
    pub fn shed(&self, why: Shed) {
        self.metrics.shed(why.reason());
    }

    fn activity(&self, id: ConnectionId) -> Activity {
        self.table.lock().admission.activity(id)
    }
}

// === impl Table ===

impl Table {
    /// Asks this one to go.
    fn end(&mut self, evicted: Option<ConnectionId>) {
        if let Some(end) = evicted.and_then(|evicted| self.ends.remove(&evicted)) {
            // One that ends by itself just now does not listen.
            let _ = end.send(());
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// The handshake, for as long as the connection may stay.
    pub async fn secure(mut self, acceptor: TlsAcceptor, tcp: TcpStream) -> Result<Secured, Shed> {
        let (gate, id) = (self.gate.clone(), self.id);
        let handshake = async {
            match timeout(FIRST_BYTE, tcp.peek(&mut [0])).await {
                Ok(Ok(1..)) => {}
                _ => return Err(Shed::Silent),
            }
            gate.table.lock().admission.advance(id, Stage::Handshake);
            match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                Ok(Ok(tls)) => Ok(tls),
                Ok(Err(_)) | Err(_) => Err(Shed::Handshake),
            }
        };
        let tls = tokio::select! {
            done = handshake => done?,
            _ = &mut self.ended => return Err(Shed::NoRoom),
        };
        gate.table.lock().admission.advance(id, Stage::Idle);
        Ok(Secured {
            tls,
            ticket: self,
            due: Box::pin(tokio::time::sleep(FIRST_CALL)),
            gone: false,
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.gate.table.lock();
        table.admission.leave(self.id);
        table.ends.remove(&self.id);
    }
}

// === impl Shed ===

impl Shed {
    /// A stable name, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Handshake => "handshake",
            Self::NoCall => "no_call",
            Self::Idle => "idle",
            Self::NoRoom => "no_room",
            Self::TooFast => "too_fast",
        }
    }
}

// === impl Secured ===

impl Secured {
    /// An error once the connection has to go.
    fn poll_may_stay(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // What has resolved must not be polled again.
        if self.gone || Pin::new(&mut self.ticket.ended).poll(cx).is_ready() {
            return Err(self.shed(Shed::NoRoom));
        }
        while self.due.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = match self.ticket.gate.activity(self.ticket.id) {
                Activity::Unproven => return Err(self.shed(Shed::NoCall)),
                Activity::Busy => now + IDLE,
                Activity::IdleSince(then) if then + IDLE <= now => {
                    return Err(self.shed(Shed::Idle));
                }
                Activity::IdleSince(then) => then + IDLE,
            };
            self.due.as_mut().reset(due);
        }
        Ok(())
    }

    /// It can be asked more than once after its end: from then on it says the same, and is counted once.
    fn shed(&mut self, why: Shed) -> io::Error {
        if !std::mem::replace(&mut self.gone, true) {
            self.ticket.gate.shed(why);
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, why.reason())
    }
}

impl Connected for Secured {
    type ConnectInfo = CallerConnection;

    fn connect_info(&self) -> CallerConnection {
        CallerConnection {
            gate: self.ticket.gate.clone(),
            id: self.ticket.id,
            peer: self.ticket.peer,
        }
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_may_stay(cx)?;
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_may_stay(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_may_stay(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever has to go takes nobody's time for a goodbye.
        if self.poll_may_stay(cx).is_err() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

// === impl CallerConnection ===

impl CallerConnection {
    /// The connection of a call; none for a call that was made in process.
    pub fn of<T>(request: &Request<T>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// The other side.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The other side's address.
    pub fn source(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    /// A call on it was authorised: it may stay, at least as long as that call.
    pub fn prove(&self, holder: Holder) -> Result<OpenCall, Status> {
        let mut table = self.gate.table.lock();
        let (proven, evicted) = table.admission.prove(self.id, holder, Instant::now());
        table.end(evicted);
        match proven {
            Proven::Held => Ok(OpenCall {
                gate: self.gate.clone(),
                id: self.id,
            }),
            Proven::Full => Err(Status::resource_exhausted(
                "too many connections from this address, or in all",
            )),
            Proven::Gone => Err(Status::unavailable("the connection has ended")),
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut table = self.gate.table.lock();
        table.admission.call_ended(self.id, Instant::now());
    }
}

#[cfg(test)]
mod tests;
