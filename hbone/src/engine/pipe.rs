//! A stream as bytes for [`TunnelIo`](crate::TunnelIo): two bounded buffers between it and the engine.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::ReadBuf;

use super::held::{Account, Held, Holder};
use super::ready::Ready;
use crate::Error;
use crate::limits::{INITIAL_WINDOW, PIPE};
use crate::session::Key;

/// Bytes taken by the reader before the engine is told: what it gives window back in.
const TELL: usize = INITIAL_WINDOW as usize / 4;

/// Both ends of one stream. The lock is only ever taken on the one thread, but hyper wants `Send`.
pub(crate) struct Pipe {
    state: Mutex<State>,
    account: Arc<Account>,
    ready: Arc<Ready>,
    key: Key,
}

#[derive(Default)]
struct State {
    inbound: Held,
    inbound_end: bool,
    /// Taken by the reader, and not told to the engine yet.
    taken: usize,
    reader: Option<Waker>,
    outbound: BytesMut,
    outbound_end: bool,
    writer: Option<Waker>,
    error: Option<Error>,
    dropped: bool,
}

/// What the user of the pipe did since the engine last looked.
pub(crate) struct Did {
    pub(crate) taken: usize,
    pub(crate) has_bytes: bool,
    pub(crate) ended: bool,
    pub(crate) dropped: bool,
}

// === impl Pipe ===

impl Pipe {
    pub(crate) fn new(account: Arc<Account>, ready: Arc<Ready>, key: Key) -> Self {
        Self {
            state: Mutex::default(),
            account,
            ready,
            key,
        }
    }

    // --- the user's side

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state.lock();
        if !state.inbound.is_empty() {
            let bytes = state.inbound.bytes();
            let n = out.remaining().min(bytes.len());
            out.put_slice(&bytes[..n]);
            state.inbound.consume(n);
            state.taken += n;
            if state.taken >= TELL {
                self.ready.push(self.key);
            }
            return Poll::Ready(Ok(()));
        }
        if state.inbound_end {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state.lock();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        if state.outbound_end {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = PIPE.saturating_sub(state.outbound.len());
        if room == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(bytes.len());
        state.outbound.extend_from_slice(&bytes[..n]);
        self.ready.push(self.key);
        Poll::Ready(Ok(n))
    }

    /// Ends the user's direction.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(error) = state.error.as_ref().filter(|_| !state.outbound_end) {
            return Err(error.clone().into());
        }
        state.outbound_end = true;
        self.ready.push(self.key);
        Ok(())
    }

    /// The user is gone.
    pub(crate) fn abandon(&self) {
        self.state.lock().dropped = true;
        self.ready.push(self.key);
    }

    // --- the engine's side

    /// What happened, and what the engine has not counted yet.
    pub(crate) fn look(&self) -> Did {
        let mut state = self.state.lock();
        Did {
            taken: std::mem::take(&mut state.taken),
            has_bytes: !state.outbound.is_empty(),
            ended: state.outbound_end,
            dropped: state.dropped,
        }
    }

    /// Whether the user is gone.
    pub(crate) fn look_dropped(&self) -> bool {
        self.state.lock().dropped
    }

    /// Bytes from the far side. Bounded by the stream's window.
    pub(crate) fn deliver(&self, slices: &[IoSlice<'_>]) {
        let mut state = self.state.lock();
        let holder = Holder {
            account: &self.account,
            ready: &self.ready,
            key: self.key,
        };
        state.inbound.push(&holder, slices, 0);
        wake(&mut state.reader);
    }

    /// The far side's end.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.inbound_end = true;
        wake(&mut state.reader);
    }

    /// Whether the bytes that wait for the user take room that others need.
    pub(crate) fn is_given_up(&self) -> bool {
        self.state.lock().inbound.is_given_up()
    }

    /// What waits for the user is not to be had any more.
    pub(crate) fn forget(&self) {
        self.state.lock().inbound = Held::default();
    }

    /// The stream is gone; what has arrived can still be read.
    pub(crate) fn fail(&self, error: Error) {
        let mut state = self.state.lock();
        state.error = Some(error);
        state.outbound = BytesMut::new();
        wake(&mut state.reader);
        wake(&mut state.writer);
    }

    /// Moves the user's bytes into `gaps`; how many.
    pub(crate) fn read(&self, gaps: &mut [io::IoSliceMut<'_>]) -> usize {
        let mut state = self.state.lock();
        let mut moved = 0;
        for gap in gaps {
            let n = gap.len().min(state.outbound.len());
            gap[..n].copy_from_slice(&state.outbound[..n]);
            state.outbound.advance(n);
            moved += n;
        }
        if state.outbound.is_empty() {
            state.outbound = BytesMut::new(); // an idle stream holds no buffer
        }
        wake(&mut state.writer);
        moved
    }

    /// How many records the user's bytes fill.
    pub(crate) fn records(&self) -> usize {
        self.state.lock().outbound.len().div_ceil(super::out::FULL) + 1
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
