//! The application's side of a stream: a socket, a pipe, or nobody yet, and what moves between them.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::Core;
use super::held::{self, Held};
use super::out::Out;
use super::pipe::Pipe;
use super::socket::Socket;
use crate::frame::Code;
use crate::limits::{LINGER_BYTES, LINGER_TIME};
use crate::record::RecordError;
use crate::session::{Key, Role};
use crate::{Ended, Error, Refusal, Request, Response};

/// Pieces of one stream that are handed to its application in one go.
const RUN: usize = 32;

/// What the engine keeps beside a stream's protocol state.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) app: App,
    /// Bytes for the application that it has not taken.
    pub(crate) held: Held,
    /// A handle refers to the stream: its place is kept.
    pub(crate) owned: bool,
    /// It stands in the queue.
    pub(crate) queued: bool,
    /// A client's answer, until it is asked for.
    pub(crate) answer: Option<Box<Result<Response, Error>>>,
    /// How it ended, until it is asked for.
    pub(crate) outcome: Option<Box<Ended>>,
    /// Who waits for one of these.
    pub(crate) waker: Option<Waker>,
}

/// Where a stream's bytes go.
#[derive(Default)]
pub(crate) enum App {
    /// Nobody has said.
    #[default]
    Unclaimed,
    Socket(Socket),
    Pipe(Arc<Pipe>),
    /// Nobody listens any more; a server's stream waits for its client's end, for so many bytes.
    Deaf(usize),
    /// It is over.
    Gone,
}

/// Consecutive bytes of one stream.
#[derive(Default)]
pub(crate) struct Run<'a> {
    key: Option<Key>,
    slices: Vec<IoSlice<'a>>,
}

// === impl Side ===

impl Side {
    pub(crate) fn is_deaf(&self) -> bool {
        matches!(self.app, App::Deaf(_))
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The end of a stream whose application is a socket.
    fn finish(&mut self, ended: Ended) {
        let app = std::mem::replace(&mut self.app, App::Gone);
        if let App::Socket(socket) = app
            && !matches!(ended, Ended::Finished)
        {
            socket.reset();
        }
        self.held = Held::default();
        self.outcome = Some(Box::new(ended));
        self.wake();
    }
}

// === impl Run ===

impl<'a> Run<'a> {
    /// Adds a piece, if it belongs to this run and has a place.
    pub(crate) fn add(&mut self, key: Key, bytes: &'a [u8]) -> bool {
        if self.key.is_some_and(|k| k != key) || self.slices.len() == RUN {
            return false;
        }
        self.key = Some(key);
        self.slices.push(IoSlice::new(bytes));
        true
    }
}

// === impl Core ===

/// From the tunnel to the application.
impl Core {
    pub(crate) fn asked(&mut self, key: Key, request: Result<Box<Request>, Refusal>) {
        self.clock.used(Instant::now());
        let request = match request {
            Ok(_) if !held::has_room() => return self.turn_away(key),
            Ok(request) => request,
            Err(refusal) => {
                tracing::debug!(peer = %self.addr, %refusal, "CONNECT not understood");
                return self.refuse(key, &refusal);
            }
        };
        self.asked.push_back((key, request));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
    }

    /// This thread holds as much as it may.
    fn turn_away(&mut self, key: Key) {
        self.session.reset(key, Code::REFUSED_STREAM);
        self.session.streams.free(key);
    }

    pub(crate) fn answered(&mut self, key: Key, answer: Result<Response, Error>) {
        if let Some(stream) = self.session.streams.get_mut(key) {
            stream.app.answer = Some(Box::new(answer));
            stream.app.wake();
        }
    }

    /// Hands a run of bytes to its application.
    pub(crate) fn deliver(&mut self, run: &mut Run<'_>) {
        let Some(key) = run.key.take() else { return };
        let slices = std::mem::take(&mut run.slices);
        let slices = &slices[..];
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
            App::Deaf(room) => {
                *room = room.saturating_sub(all);
                all
            }
            App::Gone => all,
        };
        if taken < all {
            side.held.push(slices, taken);
        }
        let sated = matches!(side.app, App::Deaf(0));
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
            App::Deaf(_) => self.session.streams.free(key),
            App::Unclaimed | App::Gone => {}
        }
    }

    /// Gives the application what is held for it, and the end.
    fn serve_held(&mut self, key: Key) {
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
            side.finish(Ended::Finished);
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
            App::Socket(_) if stream.received_end && error.is_farewell() => {
                // All was said; what we still have to say is not wanted.
                stream.sent_end = true;
                return self.serve_held(key);
            }
            App::Socket(_) => side.finish(Ended::Peer(error)),
            App::Pipe(pipe) => pipe.fail(error),
            App::Unclaimed if !stream.answered => {
                side.answer = Some(Box::new(Err(error.clone())));
                side.outcome = Some(Box::new(Ended::Peer(error)));
                side.wake();
            }
            App::Unclaimed => {
                side.outcome = Some(Box::new(Ended::Peer(error)));
                side.wake();
            }
            App::Deaf(_) | App::Gone => {}
        }
        self.release(key);
    }

    /// The application's socket failed: the far side is reset in turn.
    pub(crate) fn app_failed(&mut self, key: Key, error: io::Error) {
        self.session.reset(key, Code::CANCEL);
        if let Some(stream) = self.session.streams.get_mut(key) {
            stream.app.finish(Ended::App(error));
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
            App::Socket(_) | App::Unclaimed | App::Deaf(_) | App::Gone => false,
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
    pub(crate) fn deafen(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        let held = stream.app.held.bytes().len();
        (stream.app.app, stream.app.held) = (App::Deaf(LINGER_BYTES), Held::default());
        stream.app.owned = false;
        if stream.closed {
            return self.release(key);
        }
        self.session.taken(key, held);
        let until = Instant::now() + LINGER_TIME;
        if self.deaf.len() >= self.session.streams.len() {
            // A client may keep the first of them waiting and end all that follow.
            let streams = &self.session.streams;
            self.deaf.retain(|(_, key)| streams.get(*key).is_some());
        }
        self.deaf.push_back((until, key));
        self.clock.linger(until);
        self.ready.wake();
    }
}

/// From the application to the tunnel.
impl Core {
    /// A stream's socket or pipe has news.
    pub(crate) fn woken(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        match &mut stream.app.app {
            App::Socket(socket) => {
                if let Some(error) = socket.failed() {
                    return self.app_failed(key, error);
                }
                socket.woken();
                self.enqueue(key);
            }
            App::Pipe(pipe) => {
                let did = pipe.look();
                if did.taken > 0 {
                    self.session.taken(key, did.taken);
                }
                if did.dropped {
                    return self.pipe_dropped(key, did.ended);
                }
                if did.has_bytes || did.ended {
                    self.enqueue(key);
                }
            }
            App::Unclaimed => self.enqueue(key),
            App::Deaf(_) | App::Gone => {}
        }
    }

    /// The user of a pipe is gone. What it had ended in order is still sent whole.
    fn pipe_dropped(&mut self, key: Key, ended: bool) {
        let role = self.role;
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        if ended && !stream.sent_end && !stream.closed {
            return self.enqueue(key);
        }
        if stream.closed {
            return self.release(key);
        }
        if stream.sent_end && role == Role::Server {
            return self.deafen(key);
        }
        stream.app.app = App::Gone;
        self.session.reset(key, Code::CANCEL);
        self.release(key);
    }

    /// One turn of one stream: what is held for its application, then what the application says.
    pub(crate) fn serve(&mut self, key: Key, out: &mut Out<'_>) -> Result<(), RecordError> {
        if let Some(stream) = self.session.streams.get_mut(key) {
            stream.app.queued = false;
            self.serve_held(key);
            self.pull(key, out)?;
        }
        Ok(())
    }

    /// The tunnel takes nothing for now; applications still get what is held for them.
    pub(crate) fn serve_down(&mut self) {
        for at in 0..self.queue.len() {
            if let Some(key) = self.queue.get(at).copied() {
                self.serve_held(key);
            }
        }
        if self.phase != super::Phase::Running {
            for key in std::mem::take(&mut self.queue) {
                if let Some(stream) = self.session.streams.get_mut(key) {
                    stream.app.queued = false;
                }
            }
        }
    }

    fn pull(&mut self, key: Key, out: &mut Out<'_>) -> Result<(), RecordError> {
        let Some(stream) = self.session.streams.get(key) else {
            return Ok(());
        };
        if stream.sent_end || stream.closed || !stream.answered {
            return Ok(());
        }
        let room = self.session.room(key).min(self.quantum());
        let stream = &mut self.session.streams[key];
        match &mut stream.app.app {
            App::Socket(socket) if socket.readable => {
                if room == 0 {
                    if socket.has_ended() {
                        // Which needs no window.
                        self.pulled(key, Ok(0));
                    } else if !socket.starved {
                        socket.starve();
                        self.starve(key);
                    }
                    return Ok(());
                }
                let (id, records) = (stream.id, usize::from(socket.records));
                let read = out.fill(id, room, records, |gaps| socket.read(gaps))?;
                self.pulled(key, read);
            }
            App::Pipe(pipe) => {
                let did = pipe.look();
                if did.taken > 0 {
                    self.session.taken(key, did.taken);
                }
                self.pull_pipe(key, room, &did, out)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What a read of an application's socket means.
    fn pulled(&mut self, key: Key, read: io::Result<usize>) {
        match read {
            Ok(0) => {
                self.session.end(key);
                self.serve_held(key);
            }
            Ok(n) => {
                self.session.sent(key, n);
                if let App::Socket(socket) = &self.session.streams[key].app.app {
                    socket.meter.add_sent(n);
                    if socket.readable {
                        self.enqueue(key);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.app_failed(key, error),
        }
    }

    fn pull_pipe(
        &mut self,
        key: Key,
        room: usize,
        did: &super::pipe::Did,
        out: &mut Out<'_>,
    ) -> Result<(), RecordError> {
        let stream = &mut self.session.streams[key];
        let App::Pipe(pipe) = &stream.app.app else {
            return Ok(());
        };
        if did.has_bytes {
            if room == 0 {
                self.starve(key);
                return Ok(());
            }
            let (pipe, id) = (pipe.clone(), stream.id);
            let read = out.fill(id, room, pipe.records(), |gaps| Ok(pipe.read(gaps)))?;
            self.session.sent(key, read.unwrap_or(0));
            self.enqueue(key);
            return Ok(());
        }
        if did.ended {
            self.session.end(key);
        }
        if did.dropped {
            self.pipe_dropped(key, did.ended);
        } else {
            self.release(key);
        }
        Ok(())
    }

    /// A stream waits for window. It is on the list once, and streams that are gone are not, however
    /// often a peer grants a byte of window or resets what waits.
    fn starve(&mut self, key: Key) {
        if self.starved.len() >= self.session.streams.len() {
            let streams = &self.session.streams;
            self.starved.retain(|key| streams.get(*key).is_some());
        }
        if !self.starved.contains(&key) {
            self.starved.push(key);
        }
    }

    /// Applications that wait for window may have died unseen.
    pub(crate) fn look_at_the_starved(&mut self) {
        for key in self.starved.clone() {
            self.woken(key);
        }
    }
}
