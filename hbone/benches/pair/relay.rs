//! The plain relay: TCP to TCP and nothing else, as cheap as a program can do it that reads and
//! writes sockets. One thread, edge-triggered epoll, no probing calls, one large buffer for all.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::SockRef;

use crate::turns::{Socket, Turns};
use crate::{Result, child};

const LISTENER: Token = Token(usize::MAX);

/// What one read may take: few calls for bulk, and it stays in the second-level cache.
const READ: usize = 256 << 10;

/// One connection: whoever called, and whom we called for it.
struct Pair([Leg; 2]);

struct Leg {
    socket: Socket,
    /// What this socket has not taken yet.
    unsent: Vec<u8>,
    /// Its end was read.
    ended: bool,
}

/// Relays every connection to `to`, for ever.
pub(crate) fn run(to: SocketAddr) -> Result<()> {
    let listener = StdListener::bind(child::bind()?)?;
    listener.set_nonblocking(true)?;
    // Inherited by what is accepted.
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    child::tell(&format!("ready {}", listener.local_addr()?))?;
    let mut listener = TcpListener::from_std(listener);
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut pairs: Slab<Pair> = Slab::new();
    let mut turns = Turns::default();
    let mut scratch = vec![0; READ];
    loop {
        turns.wait(&mut poll, &mut events)?;
        let mut arrived = false;
        for event in &events {
            if event.token() == LISTENER {
                arrived = true;
            } else if let Some(pair) = pairs.get_mut(event.token().0 / 2) {
                pair.0[event.token().0 % 2].socket.note(event);
                turns.add(event.token().0 / 2);
            }
        }
        for _ in 0..turns.len() {
            let Some(at) = turns.next() else { break };
            let Some(pair) = pairs.get_mut(at) else {
                continue;
            };
            match pair.turn(&mut scratch) {
                Ok(Next::Again) => turns.add(at),
                Ok(Next::Wait) => {}
                Ok(Next::Over) => drop(pairs.remove(at)),
                Err(_) => pairs.remove(at).reset(),
            }
        }
        if arrived {
            accept(&listener, &poll, &mut pairs, to)?;
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    pairs: &mut Slab<Pair>,
    to: SocketAddr,
) -> io::Result<()> {
    loop {
        let tcp = match listener.accept() {
            Ok((tcp, _)) => tcp,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let entry = pairs.vacant_entry();
        let token = entry.key() * 2;
        let upstream = TcpStream::connect(to)?;
        upstream.set_nodelay(true)?;
        let near = Leg::new(Socket::new(poll, tcp, token)?);
        let far = Leg::new(Socket::new(poll, upstream, token + 1)?);
        entry.insert(Pair([near, far]));
    }
}

enum Next {
    /// There is more to do now.
    Again,
    /// The kernel will tell.
    Wait,
    /// Both directions have ended.
    Over,
}

// === impl Pair ===

impl Pair {
    /// One read and one write each way, at most.
    fn turn(&mut self, scratch: &mut [u8]) -> io::Result<Next> {
        let [near, far] = &mut self.0;
        let more = pump(near, far, scratch)? | pump(far, near, scratch)?;
        if near.ended && far.ended && near.unsent.is_empty() && far.unsent.is_empty() {
            return Ok(Next::Over);
        }
        Ok(if more { Next::Again } else { Next::Wait })
    }

    fn reset(self) {
        for leg in self.0 {
            // Fails only for a socket that is gone already.
            let _ = SockRef::from(&leg.socket.tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Moves a piece; whether there is more to move now.
fn pump(from: &mut Leg, to: &mut Leg, scratch: &mut [u8]) -> io::Result<bool> {
    if !to.socket.writable {
        return Ok(false);
    }
    if !to.unsent.is_empty() {
        let n = to.socket.write(&to.unsent)?;
        to.unsent.drain(..n);
        if !to.unsent.is_empty() {
            return Ok(false);
        }
        to.unsent = Vec::new();
        if from.ended {
            to.socket.tcp.shutdown(Shutdown::Write)?;
            return Ok(false);
        }
    }
    if from.ended || !from.socket.readable {
        return Ok(false);
    }
    match from.socket.read(scratch)? {
        None => {}
        Some(0) => {
            from.ended = true;
            // Closing follows at once where the other direction has ended before.
            if !to.ended {
                to.socket.tcp.shutdown(Shutdown::Write)?;
            }
        }
        Some(n) => {
            let taken = to.socket.write(&scratch[..n])?;
            to.unsent.extend_from_slice(&scratch[taken..n]);
        }
    }
    Ok(!from.ended && from.socket.readable && to.socket.writable)
}

// === impl Leg ===

impl Leg {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            unsent: Vec::new(),
            ended: false,
        }
    }
}
