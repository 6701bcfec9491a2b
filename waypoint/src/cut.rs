//! Why a client's connection was ended by us: for the lines of the requests and tunnels that it takes with it.

use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use mesh::verdict::lease::Revoked;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Why a connection was ended, once it was; shared by all that runs on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut(Arc<Shared>);

/// Atomic only because the engine may send a connection's bytes to another thread; here it never does.
#[derive(Debug, Default)]
struct Shared {
    reason: OnceLock<String>,
    told: Notify,
}

/// A client's bytes. That its certificate does not count any more is noted before whoever reads them goes.
#[derive(Debug)]
pub(crate) struct Noted<T> {
    io: T,
    cut: Cut,
}

// === impl Cut ===

impl Cut {
    /// The reason: a stable word, and a sentence.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    /// Waits until the connection is ended.
    pub(crate) async fn happened(&self) {
        let told = self.0.told.notified();
        if self.reason().is_none() {
            told.await;
        }
    }

    /// The lease of the connection has ended.
    pub(crate) fn revoked(&self, revoked: &Revoked) {
        self.set(revoked.code(), revoked);
    }

    /// The tunnel failed; nothing is noted of other failures than of the peer's certificate.
    pub(crate) fn failed(&self, error: &hbone::Error) {
        if let hbone::Error::Revoked { .. } | hbone::Error::Expired { .. } = error {
            self.set(error.code(), error);
        }
    }

    /// The same, of a tunnel that is used as a stream.
    pub(crate) fn broken(&self, error: &io::Error) {
        let source = error.get_ref().and_then(|error| error.downcast_ref());
        if let Some(error) = source {
            self.failed(error);
        }
    }

    fn set(&self, code: &str, reason: impl Display) {
        // The first reason is the one.
        let _ = self.0.reason.set(format!("{code}: {reason}"));
        self.0.told.notify_waiters();
    }
}

// === impl Noted ===

impl<T> Noted<T> {
    pub(crate) fn new(io: T, cut: Cut) -> Self {
        Self { io, cut }
    }

    fn note<U>(&self, result: io::Result<U>) -> Poll<io::Result<U>> {
        Poll::Ready(result.inspect_err(|error| self.cut.broken(error)))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Noted<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, out));
        this.note(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Noted<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, bytes));
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, slices));
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.io).poll_flush(cx));
        this.note(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = ready!(Pin::new(&mut this.io).poll_shutdown(cx));
        this.note(shut)
    }
}
