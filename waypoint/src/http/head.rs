//! A request's head that has begun and does not end: the engine's own clock cannot tell it from a connection that rests.
//!
//! Watched are the bytes that come in while no request is running. In HTTP/2 only the preface is: what follows are frames,
//! most of which begin no request. Not seen is a part of a head that came in one read with the request before it; it is
//! bounded like a resting connection, until its next byte comes.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::budget::{Account, Exhausted, Resource};

/// What an HTTP/2 client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a head has begun on a connection. Atomic only because the engine may send a connection's bytes to another
/// thread; here it never does.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The number of the head that has begun and is not whole; 0: none.
    current: AtomicU64,
    begun: AtomicU64,
    /// Requests that are not over.
    running: AtomicUsize,
}

/// A client's bytes, watched.
#[derive(Debug)]
pub(super) struct Watched<T> {
    io: T,
    heads: Arc<Heads>,
    speaks: Speaks,
}

/// What is spoken, as far as it is known.
#[derive(Clone, Copy, Debug)]
enum Speaks {
    /// So many bytes of the preface came.
    Preface(usize),
    Http1,
    Http2,
}

/// A request, or a part of it, that is not over.
#[derive(Debug)]
pub(crate) struct Running(Arc<Heads>);

/// Why a connection does not go on.
#[derive(Debug)]
pub(super) enum Stalled {
    /// The head was not whole in time.
    TimedOut,
    /// The client has too many such heads.
    NoRoom(Exhausted),
}

// === impl Heads ===

impl Heads {
    /// A head is whole, and its request runs.
    pub(super) fn whole(self: &Arc<Self>) -> Running {
        self.current.store(0, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    /// Bytes came.
    fn bytes(&self) {
        if self.running.load(Ordering::Relaxed) == 0 && self.current() == 0 {
            let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
            self.current.store(number, Ordering::Relaxed);
        }
    }

    fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// Ends when a head is not whole in time, or may not begin. To be polled after the connection, whenever that is:
    /// nobody wakes it when bytes come.
    pub(super) async fn stalled(&self, account: &Rc<Account>, within: Duration) -> Stalled {
        loop {
            let head = poll_fn(|_| match self.current() {
                0 => Poll::Pending,
                head => Poll::Ready(head),
            })
            .await;
            let _place = match account.take(Resource::Heads) {
                Ok(place) => place,
                Err(exhausted) => return Stalled::NoRoom(exhausted),
            };
            let whole = poll_fn(|_| match self.current() == head {
                true => Poll::Pending,
                false => Poll::Ready(()),
            });
            if timeout(within, whole).await.is_err() {
                return Stalled::TimedOut;
            }
        }
    }
}

// === impl Running ===

impl Clone for Running {
    fn clone(&self) -> Self {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Watched ===

impl<T> Watched<T> {
    pub(super) fn new(io: T, heads: Arc<Heads>) -> Self {
        Self {
            io,
            heads,
            speaks: Speaks::Preface(0),
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        if matches!(self.speaks, Speaks::Http2) {
            return;
        }
        self.heads.bytes();
        if let Speaks::Preface(came) = self.speaks {
            let rest = &PREFACE[came..];
            let n = rest.len().min(bytes.len());
            self.speaks = match rest.split_at(n) {
                (expected, _) if *expected != bytes[..n] => Speaks::Http1,
                (_, []) => {
                    self.heads.current.store(0, Ordering::Relaxed);
                    Speaks::Http2
                }
                _ => Speaks::Preface(came + n),
            };
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, out))?;
        let bytes = &out.filled()[before..];
        if !bytes.is_empty() {
            this.read(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

// === impl Stalled ===

impl Stalled {
    /// For the log and the counter.
    pub(super) fn refusal(&self) -> hbone::Refusal {
        match self {
            Self::NoRoom(exhausted) => exhausted.refusal(),
            Self::TimedOut => hbone::Refusal {
                status: http::StatusCode::REQUEST_TIMEOUT,
                code: "head_timed_out".into(),
                reason: "the head of a request began and was not whole in time".to_owned(),
            },
        }
    }
}
