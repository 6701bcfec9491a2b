//! The applications before the near end: closed loops, as cheap as the relay they are measured with.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Poll};

use crate::app::{CHUNK, ECHO, HEAD, MESSAGE, SINK, SOURCE, head};
use crate::turns::{Socket, Turns};
use crate::{Result, child, stage};

/// What every figure does before it counts, as a part of what counts.
const WARM_UP: usize = 20;

/// What bulk moves before it counts.
const WARM_UP_BYTES: u64 = 16 << 20;

/// How often paced bulk sends a piece.
const PACE: Duration = Duration::from_millis(1);

/// More than anybody reads.
const ENDLESS: u64 = 1 << 50;

/// Runs one load: warms up, says `ready`, waits for the word, and tells what it measured.
pub(crate) fn run(kind: &str, to: SocketAddr, numbers: &[&str]) -> Result<()> {
    let numbers = numbers
        .iter()
        .map(|number| number.parse::<u64>())
        .collect::<std::result::Result<Vec<_>, _>>()?;
    match (kind, &numbers[..]) {
        ("requests", &[clients, count]) => requests(to, size(clients)?, size(count)?),
        ("connections", &[clients, count]) => connections(to, size(clients)?, size(count)?),
        ("bulk", &[streams, bytes]) => bulk(to, size(streams)?, bytes),
        ("download", &[streams, bytes]) => download(to, size(streams)?, bytes),
        ("paced", &[rate]) => paced(to, rate),
        ("stalled", &[streams]) => stalled(to, size(streams)?),
        ("idle", &[streams]) => idle(to, size(streams)?),
        other => Err(format!("no such load: {other:?}").into()),
    }
}

fn size(number: u64) -> Result<usize> {
    Ok(usize::try_from(number)?)
}

/// Says that all is prepared, and waits for the word.
fn ready() -> Result<Instant> {
    child::tell("ready")?;
    child::hear()?.ok_or("nobody wants it measured")?;
    Ok(Instant::now())
}

/// Requests over connections that stay: CPU per request, and how long each takes.
fn requests(to: SocketAddr, clients: usize, count: usize) -> Result<()> {
    let mut asking = Asking::open(to, clients)?;
    asking.ask(count / WARM_UP + clients, None)?;
    let mut took = Vec::with_capacity(count);
    let began = ready()?;
    asking.ask(count, Some(&mut took))?;
    let wall = began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64();
    child::tell(&format!("{wall} {} {}", at(0.5), at(0.99)))
}

/// Connections with one request each: `clients` at a time.
fn connections(to: SocketAddr, clients: usize, count: usize) -> Result<()> {
    connect_and_ask(to, clients, count / WARM_UP + clients)?;
    let began = ready()?;
    connect_and_ask(to, clients, count)?;
    child::tell(&format!("{}", began.elapsed().as_secs_f64()))
}

/// Half of the bytes up, then half of them down, over all streams at once.
fn bulk(to: SocketAddr, streams: usize, bytes: u64) -> Result<()> {
    let each = bytes / 2 / streams as u64;
    let warm = WARM_UP_BYTES / streams as u64;
    move_bytes(to, streams, SINK, warm)?;
    move_bytes(to, streams, SOURCE, warm)?;
    let began = ready()?;
    move_bytes(to, streams, SINK, each)?;
    move_bytes(to, streams, SOURCE, each)?;
    child::tell(&format!("{}", began.elapsed().as_secs_f64()))
}

/// Bytes down only, and no warm-up: somebody else may be in the way.
fn download(to: SocketAddr, streams: usize, bytes: u64) -> Result<()> {
    let began = ready()?;
    move_bytes(to, streams, SOURCE, bytes.min(ENDLESS))?;
    child::tell(&format!("{}", began.elapsed().as_secs_f64()))
}

/// Sends so many bytes per second, for ever, in pieces as applications write them.
fn paced(to: SocketAddr, rate: u64) -> Result<()> {
    use std::io::Write;
    let mut tcp = std::net::TcpStream::connect(to)?;
    tcp.set_nodelay(true)?;
    tcp.write_all(&head(SINK, ENDLESS))?;
    let piece = vec![b'x'; size(rate / 1000)?];
    let mut next = ready()?;
    loop {
        tcp.write_all(&piece)?;
        next = (next + PACE).max(Instant::now() - PACE);
        stage::rest(next.saturating_duration_since(Instant::now()));
    }
}

/// Asks for more than anybody reads, and reads none of it.
fn stalled(to: SocketAddr, streams: usize) -> Result<()> {
    use std::io::Write;
    let mut held = Vec::new();
    for _ in 0..streams {
        let mut tcp = std::net::TcpStream::connect(to)?;
        tcp.write_all(&head(SOURCE, ENDLESS))?;
        held.push(tcp);
    }
    child::tell("ready")?;
    while child::hear()?.is_some() {}
    Ok(())
}

/// Opens connections that have talked once and then say nothing.
fn idle(to: SocketAddr, streams: usize) -> Result<()> {
    use std::io::{Read, Write};
    let (request, mut answer) = ([ECHO; MESSAGE], [0; MESSAGE]);
    let mut held = Vec::new();
    for _ in 0..streams {
        let mut tcp = std::net::TcpStream::connect(to)?;
        tcp.write_all(&request)?;
        tcp.read_exact(&mut answer)?;
        held.push(tcp);
    }
    child::tell("ready")?;
    while child::hear()?.is_some() {}
    Ok(())
}

/// Clients that ask one question at a time.
struct Asking {
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
}

struct Client {
    socket: Socket,
    asked: Instant,
    got: usize,
}

// === impl Asking ===

impl Asking {
    fn open(to: SocketAddr, clients: usize) -> Result<Self> {
        let (poll, events) = (Poll::new()?, Events::with_capacity(256));
        let open = |token| {
            let tcp = std::net::TcpStream::connect(to)?;
            tcp.set_nodelay(true)?;
            tcp.set_nonblocking(true)?;
            Ok(Client {
                socket: Socket::new(&poll, TcpStream::from_std(tcp), token)?,
                asked: Instant::now(),
                got: 0,
            })
        };
        let clients = (0..clients).map(open).collect::<io::Result<_>>()?;
        Ok(Self {
            poll,
            events,
            clients,
        })
    }

    /// Asks `count` times in all, everybody at once.
    fn ask(&mut self, count: usize, mut took: Option<&mut Vec<Duration>>) -> Result<()> {
        let mut answer = [0; MESSAGE];
        let (mut asked, mut answered) = (0, 0);
        for client in &mut self.clients {
            if asked < count {
                client.ask()?;
                asked += 1;
            }
        }
        while answered < count {
            self.poll.poll(&mut self.events, None)?;
            for event in &self.events {
                let client = &mut self.clients[event.token().0];
                client.socket.note(event);
                if !client.socket.readable {
                    continue;
                }
                match client.socket.read(&mut answer[client.got..])? {
                    Some(0) => return Err("a connection ended under a request".into()),
                    Some(n) => client.got += n,
                    None => continue,
                }
                // A whole answer fills the buffer, and nothing follows it.
                client.socket.readable = false;
                if client.got < MESSAGE {
                    continue;
                }
                answered += 1;
                if let Some(took) = &mut took {
                    took.push(client.asked.elapsed());
                }
                if asked < count {
                    client.ask()?;
                    asked += 1;
                }
            }
        }
        Ok(())
    }
}

impl Client {
    fn ask(&mut self) -> Result<()> {
        self.got = 0;
        self.asked = Instant::now();
        match self.socket.write(&[ECHO; MESSAGE])? {
            MESSAGE => Ok(()),
            _ => Err("a request did not fit into an empty socket".into()),
        }
    }
}

/// `count` connections, each with one request, `clients` at a time.
fn connect_and_ask(to: SocketAddr, clients: usize, count: usize) -> Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(64));
    let connect = |poll: &Poll, token| -> io::Result<Client> {
        Ok(Client {
            socket: Socket::new(poll, TcpStream::connect(to)?, token)?,
            asked: Instant::now(),
            got: 0,
        })
    };
    let mut answer = [0; MESSAGE];
    let (mut begun, mut over) = (clients.min(count), 0);
    let mut open = (0..begun)
        .map(|token| connect(&poll, token).map(|client| (client, false)))
        .collect::<io::Result<Vec<_>>>()?;
    while over < count {
        poll.poll(&mut events, None)?;
        for event in &events {
            let (client, asked) = &mut open[event.token().0];
            client.socket.note(event);
            if client.socket.writable && !std::mem::replace(asked, true) {
                client.ask()?;
            }
            if !client.socket.readable {
                continue;
            }
            match client.socket.read(&mut answer[client.got..])? {
                Some(0) => return Err("a new connection ended under its request".into()),
                Some(n) => client.got += n,
                None => continue,
            }
            if client.got == MESSAGE {
                over += 1;
                if begun < count {
                    begun += 1;
                    open[event.token().0] = (connect(&poll, event.token().0)?, false);
                }
            }
        }
    }
    Ok(())
}

/// One stream of bulk.
struct Stream {
    socket: Socket,
    head: [u8; HEAD],
    headed: bool,
    /// Bytes still to be written, and to be read.
    send: u64,
    receive: u64,
}

/// Moves so many bytes on each of so many streams, and sees the last of them arrive.
fn move_bytes(to: SocketAddr, streams: usize, verb: u8, each: u64) -> Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(64));
    let mut open = Vec::new();
    for token in 0..streams {
        let (send, receive) = if verb == SINK { (each, 1) } else { (0, each) };
        open.push(Stream {
            socket: Socket::new(&poll, TcpStream::connect(to)?, token)?,
            head: head(verb, each),
            headed: false,
            send,
            receive,
        });
    }
    let (mut scratch, payload) = (vec![0; CHUNK], vec![b'x'; CHUNK]);
    let (mut turns, mut left) = (Turns::default(), streams);
    while left > 0 {
        turns.wait(&mut poll, &mut events)?;
        for event in &events {
            open[event.token().0].socket.note(event);
            turns.add(event.token().0);
        }
        for _ in 0..turns.len() {
            let Some(at) = turns.next() else { break };
            if open[at].receive > 0 {
                if open[at].turn(&mut scratch, &payload)? {
                    turns.add(at);
                }
                left -= usize::from(open[at].receive == 0);
            }
        }
    }
    Ok(())
}

// === impl Stream ===

impl Stream {
    /// One write and one read; whether there is more to do now.
    fn turn(&mut self, scratch: &mut [u8], payload: &[u8]) -> Result<bool> {
        if self.socket.writable && !self.headed {
            if self.socket.write(&self.head)? != HEAD {
                return Err("a head did not fit into an empty socket".into());
            }
            self.headed = true;
        }
        if self.socket.writable && self.headed && self.send > 0 {
            let most = usize::try_from(self.send)?.min(payload.len());
            self.send -= self.socket.write(&payload[..most])? as u64;
        }
        if self.socket.readable {
            match self.socket.read(scratch)? {
                Some(0) => return Err("bulk ended too early".into()),
                Some(n) => self.receive = self.receive.saturating_sub(n as u64),
                None => {}
            }
        }
        Ok(self.socket.readable || (self.send > 0 && self.socket.writable))
    }
}
