//! Who has something to do: remembered readiness for edge-triggered sockets, one turn each.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Tokens that still have something to do, in order.
#[derive(Default)]
pub(crate) struct Turns {
    queue: VecDeque<usize>,
    queued: Vec<bool>,
}

/// A socket with what is known of it, so that no system call asks again.
pub(crate) struct Socket {
    pub(crate) tcp: TcpStream,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The end, or a failure, waits behind what can be read.
    closing: bool,
}

// === impl Turns ===

impl Turns {
    /// Gives `who` a turn.
    pub(crate) fn add(&mut self, who: usize) {
        if self.queued.len() <= who {
            self.queued.resize(who + 1, false);
        }
        if !std::mem::replace(&mut self.queued[who], true) {
            self.queue.push_back(who);
        }
    }

    /// How many have a turn now; those added while they take it come later.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let who = self.queue.pop_front()?;
        self.queued[who] = false;
        Some(who)
    }

    /// Waits for news unless somebody has a turn anyway.
    pub(crate) fn wait(&self, poll: &mut Poll, events: &mut Events) -> io::Result<()> {
        let timeout = (!self.queue.is_empty()).then_some(Duration::ZERO);
        match poll.poll(events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            done => done,
        }
    }
}

// === impl Socket ===

impl Socket {
    /// A socket of which nothing is known yet, registered under `token`.
    pub(crate) fn new(poll: &Poll, mut tcp: TcpStream, token: usize) -> io::Result<Self> {
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut tcp, Token(token), both)?;
        Ok(Self {
            tcp,
            readable: false,
            writable: false,
            closing: false,
        })
    }

    /// Remembers what the kernel said.
    pub(crate) fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.closing |= event.is_read_closed() || event.is_error();
    }

    /// Reads once; nothing where nothing is there, zero at the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.tcp.read(buffer) {
            Ok(n) => {
                // A short read has emptied it, unless the end waits behind.
                self.readable = n == buffer.len() || self.closing;
                Ok(Some(n))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes once; how much was taken.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match self.tcp.write(bytes) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.writable = n == bytes.len();
        Ok(n)
    }
}
