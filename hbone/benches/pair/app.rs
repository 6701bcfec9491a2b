//! The application behind the far end: echoes small requests, swallows and pours out bulk.

use std::io::{self, ErrorKind};
use std::net::TcpListener as StdListener;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::SockRef;

use crate::turns::{Socket, Turns};
use crate::{Result, child};

/// The length of a request and of its answer.
pub(crate) const MESSAGE: usize = 1 << 10;

/// The length of what opens a bulk connection: a verb, and how many bytes.
pub(crate) const HEAD: usize = 16;

/// The first byte of every request: it is answered with as many bytes.
pub(crate) const ECHO: u8 = b'E';
/// So many bytes follow; one byte answers them all.
pub(crate) const SINK: u8 = b'S';
/// So many bytes are asked for.
pub(crate) const SOURCE: u8 = b'D';

/// What one read or write moves in bulk.
pub(crate) const CHUNK: usize = 256 << 10;

const LISTENER: Token = Token(usize::MAX);

struct Client {
    socket: Socket,
    asked: Asked,
    /// Bytes still to be written.
    owed: u64,
}

enum Asked {
    /// Nothing whole yet: the first bytes.
    Nothing(Vec<u8>),
    /// Requests, this much of the current one.
    Echo(usize),
    /// This much is still to come.
    Sink(u64),
    /// Everything was said.
    Source,
}

/// Serves, for ever.
pub(crate) fn run() -> Result<()> {
    let listener = StdListener::bind(child::bind()?)?;
    listener.set_nonblocking(true)?;
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    child::tell(&format!("ready {}", listener.local_addr()?))?;
    let mut listener = TcpListener::from_std(listener);
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut clients: Slab<Client> = Slab::new();
    let mut turns = Turns::default();
    let (mut scratch, payload) = (vec![0; CHUNK], vec![b'x'; CHUNK]);
    loop {
        turns.wait(&mut poll, &mut events)?;
        let mut arrived = false;
        for event in &events {
            if event.token() == LISTENER {
                arrived = true;
            } else if let Some(client) = clients.get_mut(event.token().0) {
                client.socket.note(event);
                turns.add(event.token().0);
            }
        }
        for _ in 0..turns.len() {
            let Some(at) = turns.next() else { break };
            let Some(client) = clients.get_mut(at) else {
                continue;
            };
            match client.turn(&mut scratch, &payload) {
                Ok(Some(true)) => turns.add(at),
                Ok(Some(false)) => {}
                // The end, in order or not: whoever measures sees what is missing.
                Ok(None) | Err(_) => drop(clients.remove(at)),
            }
        }
        if arrived {
            accept(&listener, &poll, &mut clients)?;
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, clients: &mut Slab<Client>) -> io::Result<()> {
    loop {
        let tcp = match listener.accept() {
            Ok((tcp, _)) => tcp,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let entry = clients.vacant_entry();
        let socket = Socket::new(poll, tcp, entry.key())?;
        entry.insert(Client {
            socket,
            asked: Asked::Nothing(Vec::new()),
            owed: 0,
        });
    }
}

// === impl Client ===

impl Client {
    /// One read and one write; whether there is more to do now, nothing at the end.
    fn turn(&mut self, scratch: &mut [u8], payload: &[u8]) -> io::Result<Option<bool>> {
        if self.socket.readable {
            match self.socket.read(scratch)? {
                Some(0) => return Ok(None),
                Some(n) => self.take(&scratch[..n])?,
                None => {}
            }
        }
        if self.owed > 0 && self.socket.writable {
            let most = usize::try_from(self.owed).unwrap_or(usize::MAX);
            let n = self.socket.write(&payload[..most.min(payload.len())])?;
            self.owed -= n as u64;
        }
        let more = self.socket.readable || (self.owed > 0 && self.socket.writable);
        Ok(Some(more))
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.asked {
            Asked::Nothing(first) => {
                first.extend_from_slice(bytes);
                if first.len() >= HEAD {
                    let first = std::mem::take(first);
                    self.begin(&first)?;
                }
            }
            Asked::Echo(got) => {
                let whole = *got + bytes.len();
                *got = whole % MESSAGE;
                self.owed += (whole - *got) as u64;
            }
            Asked::Sink(left) => {
                *left = left.saturating_sub(bytes.len() as u64);
                self.owed += u64::from(*left == 0);
            }
            Asked::Source => {}
        }
        Ok(())
    }

    fn begin(&mut self, first: &[u8]) -> io::Result<()> {
        let (head, rest) = first.split_at(HEAD);
        let number = head[8..].try_into().map(u64::from_be_bytes);
        let number = number.map_err(io::Error::other)?;
        match head[0] {
            ECHO => {
                self.asked = Asked::Echo(0);
                self.take(first)
            }
            SINK => {
                self.asked = Asked::Sink(number);
                self.take(rest)
            }
            SOURCE => {
                (self.asked, self.owed) = (Asked::Source, number);
                Ok(())
            }
            other => Err(io::Error::other(format!("no such verb: {other}"))),
        }
    }
}

/// The bytes that open a bulk connection.
pub(crate) fn head(verb: u8, bytes: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = verb;
    head[8..].copy_from_slice(&bytes.to_be_bytes());
    head
}
