//! A tunnel: bytes both ways over one HTTP/2 stream; END_STREAM is end of file, a reset an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::keepalive::InUse;
use crate::limits::{LINGER_BYTES, LINGER_TIME};
use crate::{Ended, Error, Meter, relay};

/// The most one write hands to the engine.
const WRITE: usize = 64 << 10;

/// An open tunnel. Dropped unfinished, it resets the far side.
#[must_use = "a dropped tunnel resets the far side"]
pub struct Tunnel {
    halves: Halves,
}

/// A tunnel as a byte stream, for HTTP inside it.
///
/// `shutdown` ends our direction. Dropped without it, or by a client before the far side has ended
/// too, the tunnel is reset; a server's answer that was shut down still arrives whole.
pub struct TunnelIo {
    halves: Halves,
    chunk: Bytes,
}

/// Both directions of a stream, and whether each has ended in order.
pub(crate) struct Halves {
    pub(crate) send: SendStream<Bytes>,
    /// Nothing only while being dropped.
    pub(crate) recv: Option<RecvStream>,
    pub(crate) sent_end: bool,
    pub(crate) received_end: bool,
    in_use: Option<InUse>,
    /// Where a server's half that has not heard the client's end goes.
    lingers: Option<mpsc::UnboundedSender<Unheard>>,
}

/// The rest of what a client sends to a tunnel whose server has said all and gone.
pub(crate) struct Unheard {
    recv: RecvStream,
    _in_use: InUse,
    room: usize,
    until: Instant,
}

// === impl Tunnel ===

impl Tunnel {
    pub(crate) fn new(halves: Halves) -> Self {
        Self { halves }
    }

    /// Moves bytes between the tunnel and an application's socket until both directions have ended,
    /// or either side fails, which resets the other.
    ///
    /// The engine reads and writes the socket itself. Dropping the future resets both sides.
    pub async fn relay(self, app: TcpStream, meter: &Meter) -> Ended {
        relay::run(self.halves, app, meter).await
    }

    /// The tunnel as a byte stream.
    pub fn into_io(self) -> TunnelIo {
        TunnelIo {
            halves: self.halves,
            chunk: Bytes::new(),
        }
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

// === impl TunnelIo ===

impl AsyncRead for TunnelIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match ready!(this.halves.poll_chunk(cx))? {
                Some(chunk) => this.chunk = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = out.remaining().min(this.chunk.len());
        out.put_slice(&this.chunk[..n]);
        this.chunk.advance(n);
        this.halves.taken(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(poll_room(&mut this.halves.send, cx, bytes.len().min(WRITE)))?;
        let sent = this
            .halves
            .send
            .send_data(Bytes::copy_from_slice(&bytes[..n]), false);
        sent.map_err(|e| Error::from_h2(&e))?;
        Poll::Ready(Ok(n))
    }

    /// The engine sends what it holds by itself.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().halves.end().map_err(io::Error::from))
    }
}

impl std::fmt::Debug for TunnelIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelIo").finish_non_exhaustive()
    }
}

// === impl Halves ===

impl Halves {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, in_use: InUse) -> Self {
        Self {
            send,
            recv: Some(recv),
            sent_end: false,
            received_end: false,
            in_use: Some(in_use),
            lingers: None,
        }
    }

    /// The server's, whose end does not cut off the client's.
    pub(crate) fn lingering(mut self, at: mpsc::UnboundedSender<Unheard>) -> Self {
        self.lingers = Some(at);
        self
    }

    /// The next bytes from the far side; nothing after END_STREAM.
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        let Some(recv) = self.recv.as_mut().filter(|_| !self.received_end) else {
            return Poll::Ready(Ok(None));
        };
        let chunk = ready!(poll_chunk(recv, cx));
        self.received_end |= matches!(chunk, Ok(None));
        Poll::Ready(chunk)
    }

    /// Lets the far side send `n` more, because the application has taken as many.
    fn taken(&mut self, n: usize) {
        if let Some(recv) = &mut self.recv {
            taken(recv, n);
        }
    }

    /// Ends our direction.
    fn end(&mut self) -> Result<(), Error> {
        if self.sent_end {
            return Ok(());
        }
        self.send
            .send_data(Bytes::new(), true)
            .map_err(|e| Error::from_h2(&e))?;
        self.sent_end = true;
        Ok(())
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        // After END_STREAM a server's engine first sends what it still holds and only then stops the
        // client; a reset from here would cut off the end of an answer.
        if !self.sent_end {
            self.send.send_reset(Reason::CANCEL);
            return;
        }
        // And the engine's own reset may overtake the end of the answer at the client. As a kernel does with
        // a closed socket, the client's end is awaited, though nobody reads what it still says.
        if let Some(at) = self.lingers.take()
            && !self.received_end
            && let (Some(recv), Some(in_use)) = (self.recv.take(), self.in_use.take())
        {
            // Fails where the connection is gone, and the stream with it.
            let _ = at.send(Unheard {
                recv,
                _in_use: in_use,
                room: LINGER_BYTES,
                until: Instant::now() + LINGER_TIME,
            });
        }
    }
}

// === impl Unheard ===

impl Unheard {
    /// Discards what comes; ready when the client has ended too, or has had its chance.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A reset is an end, too.
        while let Some(chunk) = ready!(poll_chunk(&mut self.recv, cx)).unwrap_or_default() {
            taken(&mut self.recv, chunk.len());
            let Some(room) = self.room.checked_sub(chunk.len()) else {
                return Poll::Ready(());
            };
            self.room = room;
        }
        Poll::Ready(())
    }

    /// Whether its time is over.
    pub(crate) fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// The next bytes of a stream; nothing after END_STREAM.
pub(crate) fn poll_chunk(
    recv: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, Error>> {
    let chunk = ready!(recv.poll_data(cx)).transpose();
    Poll::Ready(chunk.map_err(|e| Error::from_h2(&e)))
}

/// Returns window to the far side.
pub(crate) fn taken(recv: &mut RecvStream, n: usize) {
    // Fails only for more than was received, which is never asked.
    let _ = recv.flow_control().release_capacity(n);
}

/// How many bytes may be sent now, up to `want`; waits until it is at least one.
pub(crate) fn poll_room(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    want: usize,
) -> Poll<Result<usize, Error>> {
    send.reserve_capacity(want);
    loop {
        // Room that was granted earlier is not announced again.
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(want)));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(Error::from_h2(&error))),
            None => {
                let reset = ready!(poll_reset(send, cx));
                return Poll::Ready(Err(reset));
            }
        }
    }
}

/// Waits for the far side's reset, or the loss of the connection.
pub(crate) fn poll_reset(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Error> {
    Poll::Ready(match ready!(send.poll_reset(cx)) {
        Ok(reason) => Error::Reset {
            reason: format!("{reason:?}").into(),
            processed: true,
        },
        Err(error) => Error::from_h2(&error),
    })
}
