//! What the users of a connection hold: the next request, and one stream each.

use std::cell::RefCell;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::owner::{Call, Owner};
use super::pipe::Pipe;
use super::side::App;
use super::socket::Socket;
use super::{Core, Phase};
use crate::frame::Code;
use crate::limits::HOT;
use crate::session::Key;
use crate::{Ended, Error, Meter, Refusal, Request, Response};

/// One stream. Dropped, it resets the stream, unless that has ended in order or was given away.
pub(crate) struct Handle {
    core: Rc<RefCell<Core>>,
    key: Key,
    given_away: bool,
}

/// A stream that waits for its answer.
type Asked = (Key, Box<Request>);

// === impl Core ===

impl Core {
    /// Whether it takes streams, of at most `most` at a time.
    pub(crate) fn has_room(&self, most: usize) -> bool {
        self.is_open() && self.session.has_room(most)
    }

    /// Whether it may take streams at all.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Running && !self.retired && !self.session.is_going()
    }

    /// Whether it cannot keep up: its socket, or a peer that returns the connection's window only as its
    /// applications read, as stock peers do, and has some that do not.
    pub(crate) fn is_hot(&self) -> bool {
        let flow_blocked = self
            .flow_blocked
            .is_some_and(|since| since.elapsed() >= HOT);
        flow_blocked || self.link.as_ref().is_some_and(|link| link.is_hot())
    }

    /// Server: the next request, or nothing at the end.
    pub(crate) fn poll_asked(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Asked, Option<Error>>> {
        if let Some((key, request)) = self.asked.pop_front() {
            if let Some(stream) = self.session.streams.get_mut(key) {
                stream.app.owned = true;
            }
            return Poll::Ready(Ok((key, request)));
        }
        if let Some(end) = &mut self.end {
            return Poll::Ready(Err(end.take()));
        }
        self.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Server: whether the client has greeted us, or why it never will.
    pub(crate) fn poll_greeted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.session.is_greeted() {
            return Poll::Ready(Ok(()));
        }
        if let Some(end) = &mut self.end {
            let gone = || {
                Error::lost(
                    "the client closed the connection before the HTTP/2 preface",
                    false,
                )
            };
            return Poll::Ready(Err(end.take().unwrap_or_else(gone)));
        }
        self.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nobody will ask for requests any more: everything on it is reset.
    pub(crate) fn leave(&mut self) {
        let error = Error::lost("this side ended the connection", true);
        for key in self.session.streams.keys() {
            if self.session.streams.get(key).is_some_and(|s| !s.closed) {
                self.session.reset(key, Code::CANCEL);
                self.lost(key, error.clone());
            }
        }
        self.part(Code::NO_ERROR, "");
    }

    /// Refuses a stream, if it is still there; the client is heard out, and nobody owns it any more.
    pub(crate) fn refuse(&mut self, key: Key, refusal: &Refusal) -> bool {
        let stream = self.session.streams.get(key);
        let there = stream.is_some_and(|stream| !stream.closed);
        if there {
            self.session.refuse(key, refusal);
            self.discard_rest(key);
        }
        there
    }

    /// How a stream ended that is gone already.
    fn gone(&mut self, key: Key) -> Option<Error> {
        let stream = self.session.streams.get_mut(key)?;
        match stream.app.owner.take_end() {
            Some(Ended::Peer(error)) => Some(error),
            _ => None,
        }
    }

    /// A handle was dropped.
    fn abandon(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        stream.app.owned = false;
        let app = std::mem::replace(&mut stream.app.app, App::Gone);
        if let App::Socket(socket) = app {
            socket.reset();
        }
        stream.app.held = super::held::Held::default();
        self.session.reset(key, Code::CANCEL);
        self.release(key);
        self.ready.wake();
    }
}

// === impl Handle ===

impl Handle {
    /// For a stream that was just opened or asked for.
    pub(crate) fn new(core: Rc<RefCell<Core>>, key: Key) -> Self {
        Self {
            core,
            key,
            given_away: false,
        }
    }

    /// Client: opens a stream, where there is room for one.
    pub(crate) fn open(core: &Rc<RefCell<Core>>, request: &Request) -> Self {
        let mut this = core.borrow_mut();
        let key = this.session.open(request);
        if let Some(stream) = this.session.streams.get_mut(key) {
            stream.app.owned = true;
        }
        this.clock.used(Instant::now());
        this.yielding.opened();
        this.ready.wake();
        Self::new(core.clone(), key)
    }

    /// Client: the answer.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, Error>> {
        let mut core = self.core.borrow_mut();
        let Some(stream) = core.session.streams.get_mut(self.key) else {
            return Poll::Ready(Err(stream_gone()));
        };
        stream.app.owner.poll_answer(cx)
    }

    /// Server: opens the tunnel.
    pub(crate) fn accept(&mut self, response: &Response) -> Result<(), Error> {
        let mut core = self.core.borrow_mut();
        let closed = core.session.streams.get(self.key).is_none_or(|s| s.closed);
        if closed {
            let gone = core.gone(self.key);
            return Err(gone.unwrap_or_else(stream_gone));
        }
        core.session.answer(self.key, response);
        core.ready.wake();
        Ok(())
    }

    /// Server: refuses it.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        let mut core = self.core.borrow_mut();
        // Dropped as its owner, we would reset the client that is still heard out.
        self.given_away = core.refuse(self.key, refusal);
        core.ready.wake();
    }

    /// Hands the application's socket to the engine.
    pub(crate) fn attach(&mut self, tcp: TcpStream, meter: &Meter) {
        let mut core = self.core.borrow_mut();
        let waker = core.ready.waker(self.key);
        let socket = Socket::new(tcp, meter.clone(), waker);
        match core.session.streams.get_mut(self.key) {
            Some(stream) if !stream.app.owner.has_end() => {
                stream.app.app = App::Socket(socket);
                // Whether there is something to read it knows, or its waker will tell.
                core.enqueue(self.key);
                core.ready.wake();
            }
            _ => socket.reset(),
        }
    }

    /// Whether the peer's direction has ended in order, or bytes of it are held for the application.
    pub(crate) fn waits_for_app(&self) -> bool {
        let core = self.core.borrow();
        let stream = core.session.streams.get(self.key);
        stream.is_some_and(|stream| stream.received_end || !stream.app.held.is_empty())
    }

    /// How the relay ended.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut core = self.core.borrow_mut();
        let Some(stream) = core.session.streams.get_mut(self.key) else {
            return Poll::Ready(Ended::Peer(stream_gone()));
        };
        stream.app.owner.poll_end(cx)
    }

    /// Hands the application's socket to the engine, and gives the stream away: `call` is made with how
    /// the relay ended, here and now where that has happened already.
    pub(crate) fn relay_then(mut self, tcp: TcpStream, meter: &Meter, call: Call) {
        self.attach(tcp, meter);
        self.given_away = true;
        let mut core = self.core.borrow_mut();
        let ended = match core.session.streams.get_mut(self.key) {
            Some(stream) => {
                stream.app.owned = false;
                let Some(ended) = stream.app.owner.take_end() else {
                    stream.app.owner = Owner::IsCalled(call);
                    return;
                };
                ended
            }
            None => Ended::Peer(stream_gone()),
        };
        core.release(self.key);
        drop(core);
        call(ended);
    }

    /// Gives the stream away, to be used through a pipe.
    pub(crate) fn into_pipe(mut self) -> Arc<Pipe> {
        self.given_away = true;
        let mut core = self.core.borrow_mut();
        let pipe = Arc::new(Pipe::new(
            core.account.clone(),
            core.ready.clone(),
            self.key,
        ));
        let Some(stream) = core.session.streams.get_mut(self.key) else {
            pipe.fail(stream_gone());
            return pipe.clone();
        };
        stream.app.owned = false;
        let held = std::mem::take(&mut stream.app.held);
        pipe.deliver(&[IoSlice::new(held.bytes())]);
        if stream.received_end {
            pipe.end();
        }
        if let Some(Ended::Peer(error)) = stream.app.owner.take_end() {
            pipe.fail(error);
        }
        stream.app.app = App::Pipe(pipe.clone());
        pipe
    }
}

fn stream_gone() -> Error {
    Error::lost("the stream is gone", true)
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The engine runs no user code in its turns, so nobody is in the middle of one here.
        if !self.given_away
            && let Ok(mut core) = self.core.try_borrow_mut()
        {
            core.abandon(self.key);
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
