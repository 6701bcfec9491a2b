//! A request's head that has begun and does not end: the engine's own clock cannot tell it from a connection that rests.
//!
//! Watched are, of HTTP/1.1, the bytes that come in while no request is running, and of HTTP/2 the preface and header blocks.
//! Not seen is a part of an HTTP/1.1 head that came in one read with the request before it; it is bounded like a resting
//! connection, until its next byte comes.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hbone::Refusal;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::budget::{Account, Exhausted, Resource};
use frames::Frames;

mod frames;

/// What an HTTP/2 client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a head has begun on a connection. Atomic only because the engine may send a connection's bytes to another
/// thread; here it never does.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// The number of the head that has begun and is not whole; 0: none.
    current: AtomicU64,
    begun: AtomicU64,
    /// Requests that are not over.
    running: AtomicUsize,
    /// What is said to an HTTP/1.1 client before the end.
    parting: OnceLock<String>,
}

/// A client's bytes, watched.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    io: T,
    heads: Arc<Heads>,
    speaks: Speaks,
    /// So many bytes of the parting words are written.
    parted: usize,
    /// An answer before them is not written yet.
    blocked: bool,
}

/// What is spoken, as far as it is known.
#[derive(Clone, Copy, Debug)]
enum Speaks {
    /// So many bytes of the preface came.
    Preface(usize),
    Http1,
    Http2(Frames),
}

/// A request, or a part of it, that is not over.
#[derive(Debug)]
pub(crate) struct Running(Arc<Heads>);

/// Why a connection does not go on.
#[derive(Debug)]
pub(crate) enum Stalled {
    /// The head was not whole in time.
    TimedOut,
    /// The client has too many such heads.
    NoRoom(Exhausted),
}

// === impl Heads ===

impl Heads {
    /// A request runs: in HTTP/1.1 that says that its head is whole. In HTTP/2 another may have begun meanwhile.
    pub(crate) fn request(self: &Arc<Self>, is_http2: bool) -> Running {
        if !is_http2 {
            self.ends();
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    /// Bytes came that are not HTTP/2's.
    fn bytes(&self) {
        if self.running.load(Ordering::Relaxed) == 0 && self.current() == 0 {
            self.begins();
        }
    }

    fn begins(&self) {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        self.current.store(number, Ordering::Relaxed);
    }

    fn ends(&self) {
        self.current.store(0, Ordering::Relaxed);
    }

    /// Ends the connection at its next turn; an HTTP/1.1 client is told why.
    pub(crate) fn part(&self, refusal: &Refusal) {
        let Refusal { status, reason, .. } = refusal;
        let length = reason.len() + 1;
        let words = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{reason}\n"
        );
        // Said once at most: the connection ends with it.
        let _ = self.parting.set(words);
    }

    fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// Ends when a head is not whole in time, or may not begin. To be polled after the connection, whenever that is:
    /// nobody wakes it when bytes come.
    pub(crate) async fn stalled(&self, account: &Rc<Account>, within: Duration) -> Stalled {
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
    pub(crate) fn new(io: T, heads: Arc<Heads>) -> Self {
        Self {
            io,
            heads,
            speaks: Speaks::Preface(0),
            parted: 0,
            blocked: false,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let rest = match &mut self.speaks {
            // Empty lines before a request are none of it (RFC 9112, section 2.2).
            Speaks::Http1 if bytes.iter().all(|byte| b"\r\n".contains(byte)) => return,
            Speaks::Http1 => return self.heads.bytes(),
            Speaks::Http2(frames) => return Self::blocks(&self.heads, frames, bytes),
            Speaks::Preface(came) => &PREFACE[*came..],
        };
        self.heads.bytes();
        let (begins, more) = bytes.split_at(rest.len().min(bytes.len()));
        if begins == rest {
            let mut frames = Frames::default();
            self.heads.ends();
            Self::blocks(&self.heads, &mut frames, more);
            self.speaks = Speaks::Http2(frames);
        } else if rest.starts_with(begins) {
            self.speaks = Speaks::Preface(PREFACE.len() - rest.len() + begins.len());
        } else {
            self.speaks = Speaks::Http1;
        }
    }

    fn blocks(heads: &Heads, frames: &mut Frames, bytes: &[u8]) {
        frames.read(bytes, |begun| match begun {
            true => heads.begins(),
            false => heads.ends(),
        });
    }

    /// Writes the parting words, where the client understands them, and then no more.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        T: AsyncWrite + Unpin,
    {
        let io = &mut self.io;
        let words = self
            .heads
            .parting
            .get()
            .map_or("", String::as_str)
            .as_bytes();
        if !matches!(self.speaks, Speaks::Http2(_)) && !self.blocked {
            while let Some(rest @ [_, ..]) = words.get(self.parted..) {
                match ready!(Pin::new(&mut *io).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.parted += n,
                }
            }
        }
        Pin::new(io).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.heads.parting.get().is_some() {
            ready!(this.poll_part(cx))?;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
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
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.blocked = written.is_pending();
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.blocked = written.is_pending();
        written
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
    /// For the client, the log and the counter.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::NoRoom(exhausted) => exhausted.refusal(),
            Self::TimedOut => Refusal {
                status: StatusCode::REQUEST_TIMEOUT,
                code: "head_timed_out".into(),
                reason: "the head of a request began and was not whole in time".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> (Watched<()>, Arc<Heads>) {
        let heads = Arc::new(Heads::default());
        (Watched::new((), Arc::clone(&heads)), heads)
    }

    #[test]
    fn of_http_1_a_head_is_what_comes_while_nothing_runs() {
        let (mut watched, heads) = watched();
        watched.read(b"PR");
        assert_eq!(heads.current(), 1);
        // No preface after all.
        watched.read(b"OPFIND / HTTP/1.1\r\n\r\n");
        assert_eq!(heads.current(), 1);
        let request = heads.request(false);
        let body = request.clone();
        drop(request);
        watched.read(b"a body");
        assert_eq!(heads.current(), 0);
        drop(body);
        watched.read(b"G");
        assert_eq!(heads.current(), 2);
    }

    #[test]
    fn of_http_2_a_head_is_a_block_whatever_runs() {
        let (mut watched, heads) = watched();
        watched.read(&PREFACE[..5]);
        assert_eq!(heads.current(), 1);
        watched.read(&PREFACE[5..]);
        assert_eq!(heads.current(), 0);
        let whole = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82];
        let part = [0, 0, 2, 1, 4, 0, 0, 0, 3, 0x82];
        watched.read(&[whole, part].concat());
        let begun = heads.current();
        assert_ne!(begun, 0);
        let _first = heads.request(true);
        assert_eq!(heads.current(), begun);
        watched.read(&[0x84]);
        assert_eq!(heads.current(), 0);
    }
}
