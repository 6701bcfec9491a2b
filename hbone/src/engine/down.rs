//! From the tunnel to the application: requests, answers, bytes, ends.

use std::io::{self, IoSlice};

use tokio::time::Instant;

use super::Core;
use super::held::{Held, Holder};
use super::side::App;
use crate::frame::Code;
use crate::limits::{LINGER_BYTES, LINGER_TIME};
use crate::session::Key;
use crate::{Ended, Error, Refusal, Request, Response};

/// Pieces of one stream that are handed to its application in one go.
const RUN: usize = 32;

/// Why a stream is given up.
const STALLS: &str = "its application takes nothing, and too much is held for such";

/// Consecutive bytes of one stream.
pub(crate) struct Run<'a> {
    key: Option<Key>,
    slices: [IoSlice<'a>; RUN],
    len: usize,
}

// === impl Run ===

impl<'a> Run<'a> {
    pub(crate) fn new() -> Self {
        Self {
            key: None,
            slices: [IoSlice::new(&[]); RUN],
            len: 0,
        }
    }

    /// Adds a piece, if it belongs to this run and has a place.
    pub(crate) fn add(&mut self, key: Key, bytes: &'a [u8]) -> bool {
        if self.key.is_some_and(|k| k != key) || self.len == RUN {
            return false;
        }
        self.key = Some(key);
        self.slices[self.len] = IoSlice::new(bytes);
        self.len += 1;
        true
    }
}

// === impl Core ===

impl Core {
    pub(crate) fn asked(&mut self, key: Key, request: Result<Box<Request>, Refusal>) {
        self.clock.used(Instant::now());
        let request = match request {
            Ok(_) if !self.account.has_room() => return self.turn_away(key),
            Ok(request) => request,
            Err(refusal) => {
                tracing::debug!(peer = %self.addr, %refusal, "CONNECT not understood");
                self.refuse(key, &refusal);
                return;
            }
        };
        self.asked.push_back((key, request));
        self.yielding.opened();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
    }

    /// As much is held in these credentials' name as may be.
    fn turn_away(&mut self, key: Key) {
        self.session.reset(key, Code::REFUSED_STREAM);
        self.session.streams.free(key);
    }

    pub(crate) fn answered(&mut self, key: Key, answer: Result<Response, Error>) {
        if let Some(stream) = self.session.streams.get_mut(key) {
            stream.app.owner.tell_answer(answer);
        }
    }

    /// Hands a run of bytes to its application.
    pub(crate) fn deliver(&mut self, run: &mut Run<'_>) {
        let Some(key) = run.key.take() else { return };
        let slices = &run.slices[..std::mem::take(&mut run.len)];
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        let side = &mut stream.app;
        let taken = match &mut side.app {
            App::Socket(socket) if side.held.is_empty() && socket.writable => {
                match socket.write(slices) {
                    Ok(n) => n,
                    Err(error) => return self.app_failed(key, error),
                }
            }
            App::Socket(_) | App::Unclaimed => 0,
            App::Pipe(pipe) => {
                // It counts what its reader takes.
                return pipe.deliver(slices);
            }
            App::Discarding(room) => {
                *room = room.saturating_sub(all);
                all
            }
            App::Gone => all,
        };
        if taken < all {
            let holder = Holder {
                account: &self.account,
                ready: &self.ready,
                key,
            };
            side.held.push(&holder, slices, taken);
        }
        let sated = matches!(side.app, App::Discarding(0));
        if taken > 0 {
            self.session.taken(key, taken);
        }
        if sated {
            self.session.reset(key, Code::NO_ERROR);
            self.session.streams.free(key);
        }
    }

    /// The peer's direction has ended: so does ours towards the application, once it has everything.
    pub(crate) fn ended(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        match &stream.app.app {
            App::Socket(_) => self.serve_held(key),
            App::Pipe(pipe) => {
                pipe.end();
                self.release(key);
            }
            App::Discarding(_) => self.session.streams.free(key),
            App::Unclaimed | App::Gone => {}
        }
    }

    /// Gives the application what is held for it, and the end.
    pub(crate) fn serve_held(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        let side = &mut stream.app;
        let App::Socket(socket) = &mut side.app else {
            return;
        };
        let mut taken = 0;
        if !side.held.is_empty() {
            if !socket.writable {
                return;
            }
            taken = match socket.write(&[IoSlice::new(side.held.bytes())]) {
                Ok(n) => n,
                Err(error) => return self.app_failed(key, error),
            };
            side.held.consume(taken);
        }
        let over = stream.received_end && side.held.is_empty();
        if over && stream.sent_end {
            side.finish(Ended::Finished, &mut self.calls);
            return self.release(key);
        }
        let shut = match over && !socket.shut {
            true => socket.shut(),
            false => Ok(()),
        };
        if taken > 0 {
            self.session.taken(key, taken);
        }
        if let Err(error) = shut {
            self.app_failed(key, error);
        }
    }

    /// A stream is gone: the peer reset it, or the connection was lost.
    pub(crate) fn lost(&mut self, key: Key, error: Error) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        let side = &mut stream.app;
        match &side.app {
            App::Socket(_) if stream.received_end && error.is_no_error_reset() => {
                // All was said; what we still have to say is not wanted.
                stream.sent_end = true;
                return self.serve_held(key);
            }
            App::Socket(_) => side.finish(Ended::Peer(error), &mut self.calls),
            App::Pipe(pipe) => pipe.fail(error),
            App::Unclaimed => {
                if !stream.answered {
                    side.owner.tell_answer(Err(error.clone()));
                }
                side.owner.tell_end(Ended::Peer(error), &mut self.calls);
            }
            App::Discarding(_) | App::Gone => {}
        }
        self.release(key);
    }

    /// The room that a stream's bytes take is needed, and its application has taken nothing for longest.
    pub(crate) fn give_up(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        stream.app.held = Held::default();
        if let App::Pipe(pipe) = &stream.app.app {
            pipe.forget();
        }
        tracing::debug!(peer = %self.addr, reason = STALLS, "stream reset");
        self.session.reset(key, Code::ENHANCE_YOUR_CALM);
        self.lost(key, Error::lost(STALLS, true));
    }

    /// The application's socket failed: the far side is reset in turn.
    pub(crate) fn app_failed(&mut self, key: Key, error: io::Error) {
        self.session.reset(key, Code::CANCEL);
        if let Some(stream) = self.session.streams.get_mut(key) {
            stream.app.finish(Ended::App(error), &mut self.calls);
        }
        self.release(key);
    }

    /// Forgets a stream that nobody refers to any more.
    pub(crate) fn release(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get(key) else {
            return;
        };
        let used = match &stream.app.app {
            App::Pipe(pipe) => !pipe.look_dropped(),
            App::Socket(_) => true,
            App::Unclaimed | App::Discarding(_) | App::Gone => false,
        };
        if stream.closed && !stream.app.owned && !used {
            self.session.streams.free(key);
            self.clock.used(Instant::now());
            if self.session.streams.len() == 0 {
                self.ready.wake();
            }
        }
    }

    /// A stream that nobody listens to any more, whose client is heard out: as a kernel does with a
    /// closed socket, and because a reset could overtake the end of our answer at the client.
    pub(crate) fn discard_rest(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        let held = stream.app.held.bytes().len();
        (stream.app.app, stream.app.held) = (App::Discarding(LINGER_BYTES), Held::default());
        stream.app.owned = false;
        if stream.closed {
            return self.release(key);
        }
        self.session.taken(key, held);
        let until = Instant::now() + LINGER_TIME;
        if self.discarding.len() >= self.session.streams.len() {
            // A client may keep the first of them waiting and end all that follow.
            let streams = &self.session.streams;
            self.discarding
                .retain(|(_, key)| streams.get(*key).is_some());
        }
        self.discarding.push_back((until, key));
        self.clock.linger(until);
        self.ready.wake();
    }
}
