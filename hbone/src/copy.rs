//! Moving bytes: how it ends, how many they were, how large the buffers, and TCP to TCP without a tunnel.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::Error;

/// How a relay ended.
#[derive(Debug)]
pub enum Ended {
    /// Both directions ended in order.
    Finished,
    /// Our application's socket failed or was reset; the far side was reset in turn.
    App(io::Error),
    /// The far side reset, or the way to it was lost; our application was reset in turn.
    Peer(Error),
}

/// Counts the bytes of one relay, readable from any thread while it runs; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

/// A buffer size that grows with what one direction has moved: most connections move little, and
/// the few that move much need few system calls.
pub(crate) struct Chunk {
    moved: u64,
}

/// An application's socket that is reset when dropped, unless its relay finished in order.
pub(crate) struct Socket {
    tcp: TcpStream,
    clean: bool,
}

/// A relay between two sockets that can be asked how far it is, as one of a tunnel can.
#[must_use = "a dropped relay resets both sides"]
pub struct PlainRelay {
    relay: Pin<Box<dyn Future<Output = Ended>>>,
    waits: Rc<Cell<bool>>,
}

/// Relays between an application's socket `a` and the far side's socket `b`, with the same ends as
/// a tunnel: a half-close is passed on, and a reset is passed on as a reset.
pub async fn relay_plain(a: TcpStream, b: TcpStream, meter: &Meter) -> Ended {
    relay(a, b, meter, &Cell::new(false)).await
}

/// Says in `waits` whether the far side's end has come, or bytes of it that the application has not taken.
async fn relay(a: TcpStream, b: TcpStream, meter: &Meter, waits: &Cell<bool>) -> Ended {
    let (mut a, mut b) = (Socket::new(a), Socket::new(b));
    let ended = {
        let (mut a_read, mut a_write) = a.split();
        let (mut b_read, mut b_write) = b.split();
        let (sent_end, received_end) = (Cell::new(false), Cell::new(false));
        let sent = |n| meter.add_sent(n);
        let received = |n| meter.add_received(n);
        let unasked = Cell::new(false);
        let mut out = pin!(one_way(
            &mut a_read,
            &mut b_write,
            &sent_end,
            &unasked,
            sent
        ));
        let mut back = pin!(one_way(
            &mut b_read,
            &mut a_write,
            &received_end,
            waits,
            received
        ));
        poll_fn(|cx| {
            if let Poll::Ready(failed) = back.as_mut().poll(cx) {
                return Poll::Ready(match failed {
                    OneWay::Reading(e) => Ended::Peer(lost(&e)),
                    OneWay::Writing(e) => Ended::App(e),
                });
            }
            if let Poll::Ready(failed) = out.as_mut().poll(cx) {
                return Poll::Ready(match failed {
                    OneWay::Reading(e) => Ended::App(e),
                    OneWay::Writing(e) => Ended::Peer(lost(&e)),
                });
            }
            match sent_end.get() && received_end.get() {
                true => Poll::Ready(Ended::Finished),
                false => Poll::Pending,
            }
        })
        .await
    };
    if matches!(ended, Ended::Finished) {
        a.finish();
        b.finish();
    }
    ended
}

// === impl PlainRelay ===

impl PlainRelay {
    /// Relays as [`relay_plain`] does, for as long as it is polled.
    pub fn new(a: TcpStream, b: TcpStream, meter: &Meter) -> Self {
        let waits = Rc::new(Cell::new(false));
        let (told, meter) = (waits.clone(), meter.clone());
        Self {
            relay: Box::pin(async move { relay(a, b, &meter, &told).await }),
            waits,
        }
    }

    /// Whether something of the far side waits for the application: its end, said in order, or bytes that the
    /// application has not taken yet.
    pub fn waits_for_app(&self) -> bool {
        self.waits.get()
    }
}

impl Future for PlainRelay {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        self.relay.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for PlainRelay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waits = self.waits.get();
        f.debug_struct("PlainRelay")
            .field("waits_for_app", &waits)
            .finish_non_exhaustive()
    }
}

/// Why one direction failed; one that ends in order waits for the reset of its source instead.
enum OneWay {
    Reading(io::Error),
    Writing(io::Error),
}

async fn one_way(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    ended: &Cell<bool>,
    waits: &Cell<bool>,
    count: impl Fn(usize),
) -> OneWay {
    let mut chunk = Chunk::new();
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            biased;
            ready = from.readable() => match ready {
                Ok(()) => {}
                Err(error) => return OneWay::Reading(error),
            },
            error = failed(from) => return OneWay::Reading(error),
        }
        buffer.resize(chunk.size(), 0);
        let n = match poll_fn(|cx| poll_once(from, cx, &mut buffer)).await {
            Ok(Some(0)) => break,
            Ok(Some(n)) => n,
            Ok(None) => continue,
            Err(error) => return OneWay::Reading(error),
        };
        waits.set(true);
        let written = tokio::select! {
            biased;
            written = to.write_all(&buffer[..n]) => written,
            error = failed(from) => return OneWay::Reading(error),
        };
        if let Err(error) = written {
            return OneWay::Writing(error);
        }
        waits.set(false);
        count(n);
        chunk.grow(n);
        if n < buffer.len() {
            buffer = Vec::new(); // an idle connection holds no buffer
        }
    }
    drop(buffer);
    waits.set(true);
    if let Err(error) = to.shutdown().await {
        return OneWay::Writing(error);
    }
    ended.set(true);
    OneWay::Reading(failed(from).await)
}

/// Reads what is there now; nothing where that turns out to be nothing.
pub(crate) fn poll_once(
    from: &mut ReadHalf<'_>,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<Option<usize>>> {
    let mut buffer = ReadBuf::new(buffer);
    match Pin::new(from).poll_read(cx, &mut buffer) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(Some(buffer.filled().len()))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Ready(Ok(None)),
    }
}

/// Waits until a socket fails that nobody reads from at the moment.
pub(crate) async fn failed(socket: &ReadHalf<'_>) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Err(error) => error,
        Ok(_) => match socket.as_ref().take_error() {
            Ok(Some(error)) | Err(error) => error,
            // Whoever reads or writes next has been told already.
            Ok(None) => pending().await,
        },
    }
}

fn lost(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Error::Reset {
            reason: "TCP reset".into(),
            processed: true,
        },
        _ => Error::lost(&error.to_string(), true),
    }
}

// === impl Meter ===

impl Meter {
    /// Starts at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes from our application to the far side.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the far side to our application.
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// Counts bytes that a caller moved itself, in the same sense as [`sent`](Self::sent).
    pub fn add_sent(&self, n: usize) {
        self.0.sent.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Counts bytes that a caller moved itself, in the same sense as [`received`](Self::received).
    pub fn add_received(&self, n: usize) {
        self.0.received.fetch_add(n as u64, Ordering::Relaxed);
    }
}

// === impl Chunk ===

impl Chunk {
    pub(crate) fn new() -> Self {
        Self { moved: 0 }
    }

    pub(crate) fn size(&self) -> usize {
        match self.moved {
            0..0x2_0000 => 4 << 10,
            0x2_0000..0x80_0000 => 16 << 10,
            _ => 128 << 10,
        }
    }

    pub(crate) fn grow(&mut self, n: usize) {
        self.moved += n as u64;
    }
}

// === impl Socket ===

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        // Only a hint; without it small messages may wait.
        let _ = tcp.set_nodelay(true);
        Self { tcp, clean: false }
    }

    pub(crate) fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.tcp.split()
    }

    /// Both directions have ended in order: closing needs no reset.
    pub(crate) fn finish(&mut self) {
        self.clean = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.clean {
            // Fails only for a socket that is gone already.
            let _ = self.tcp.set_zero_linger();
        }
    }
}
