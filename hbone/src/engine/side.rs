//! The application's side of a stream: a socket, a pipe, or nobody yet.

use std::sync::Arc;

use super::held::Held;
use super::owner::{Calls, Owner};
use super::pipe::Pipe;
use super::socket::Socket;
use crate::Ended;

/// What the engine keeps beside a stream's protocol state. Most streams are idle: what is rare is a
/// pointer to nothing.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) app: App,
    /// Bytes for the application that it has not taken.
    pub(crate) held: Held,
    pub(crate) owner: Owner,
    /// A handle refers to the stream: its place is kept.
    pub(crate) owned: bool,
    /// It stands in the queue.
    pub(crate) queued: bool,
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
    Discarding(usize),
    /// It is over.
    Gone,
}

// === impl Side ===

impl Side {
    pub(crate) fn is_discarding(&self) -> bool {
        matches!(self.app, App::Discarding(_))
    }

    /// Whether bytes are held for it whose room is needed.
    pub(crate) fn is_given_up(&self) -> bool {
        let in_pipe = matches!(&self.app, App::Pipe(pipe) if pipe.is_given_up());
        in_pipe || self.held.is_given_up()
    }

    /// The end of a stream whose application is a socket.
    pub(crate) fn finish(&mut self, ended: Ended, calls: &mut Calls) {
        let app = std::mem::replace(&mut self.app, App::Gone);
        if let App::Socket(socket) = app
            && !matches!(ended, Ended::Finished)
        {
            socket.reset();
        }
        self.held = Held::default();
        self.owner.tell_end(ended, calls);
    }
}
