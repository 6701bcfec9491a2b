//! A tunnel: bytes both ways over one HTTP/2 stream; END_STREAM is end of file, a reset an error.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::engine::Handle;
use crate::engine::pipe::Pipe;
use crate::{Ended, Meter};

/// An open tunnel. Dropped unfinished, it resets the far side.
#[must_use = "a dropped tunnel resets the far side"]
#[derive(Debug)]
pub struct Tunnel {
    handle: Handle,
}

/// Bytes that are moved between a tunnel and an application's socket, to their end.
#[must_use = "a dropped relay resets both sides"]
#[derive(Debug)]
pub struct Relay {
    handle: Handle,
}

/// A tunnel as a byte stream, for HTTP inside it.
///
/// `shutdown` ends our direction. Dropped without it, or by a client before the far side has ended
/// too, the tunnel is reset; a server's answer that was shut down still arrives whole.
pub struct TunnelIo {
    pipe: Arc<Pipe>,
}

// === impl Tunnel ===

impl Tunnel {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// Moves bytes between the tunnel and an application's socket until both directions have ended,
    /// or either side fails, which resets the other.
    ///
    /// The engine reads and writes the socket itself, from this call on: the future only says how it
    /// ended. Dropping the future resets both sides.
    pub fn relay(self, app: TcpStream, meter: &Meter) -> Relay {
        let mut handle = self.handle;
        handle.attach(app, meter);
        Relay { handle }
    }

    /// The same for who has many relays and waits for none of them: an idle tunnel holds the application's
    /// socket and some 200 bytes, and no task. `ended` is called when it is over: by the task that drives
    /// the connection, after whatever else was to be done at that moment, or from here if the tunnel is
    /// gone already. It may use the connection, and should be short.
    pub fn relay_then(self, app: TcpStream, meter: &Meter, ended: impl FnOnce(Ended) + 'static) {
        self.handle.relay_then(app, meter, Box::new(ended));
    }

    /// The tunnel as a byte stream.
    pub fn into_io(self) -> TunnelIo {
        TunnelIo {
            pipe: self.handle.into_pipe(),
        }
    }
}

// === impl Relay ===

impl Relay {
    /// Whether something of the peer waits for the application: its end, said in order, or bytes that the application has
    /// not taken yet.
    pub fn waits_for_app(&self) -> bool {
        self.handle.waits_for_app()
    }
}

impl Future for Relay {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        self.handle.poll_ended(cx)
    }
}

// === impl TunnelIo ===

impl AsyncRead for TunnelIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pipe.poll_read(cx, out)
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pipe.poll_write(cx, bytes)
    }

    /// The engine sends what it holds by itself.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.pipe.shutdown())
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        self.pipe.abandon();
    }
}

impl std::fmt::Debug for TunnelIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelIo").finish_non_exhaustive()
    }
}
