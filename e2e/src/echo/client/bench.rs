//! Closed loops for measuring: a socket, a request made beforehand, and a length that is counted off, nothing more.
//!
//! A load that is dearer than what it measures shows itself: each summary says what CPU time the load took.

mod head;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::head::Head;
use super::{Ask, Scheme, say};
use crate::echo::flags::{self, Flags};
use crate::echo::orders::{Order, Orders};
use crate::echo::summary::BenchSummary;

/// Requests on each connection before anybody is told that it is ready, or fewer where answers are large.
const WARM_UP: usize = 20;
/// So many bytes are enough to warm a connection up.
const WARM_UP_BYTES: usize = 32 << 20;
/// Connections at once; each has its buffer.
const MOST_CONNECTIONS: u32 = 1024;
/// Whoever waits for a slice's summary gives up soon after.
const LONGEST_SLICE: Duration = Duration::from_secs(10);
/// How long the last requests of a slice may still take.
const GRACE: Duration = Duration::from_secs(4);
/// Failures told one by one; the rest are only counted.
const MAX_ERRORS: usize = 5;
/// Room for an answer's head, and what is read of a body at once.
const BUFFER: usize = 256 << 10;

/// What to ask, how many at a time, and for how long at each order.
#[derive(Debug)]
pub(crate) struct Bench {
    ask: Ask,
    connections: u32,
    slice: Duration,
    /// Requests of one slice, at most; zero for as many as it has time for.
    most: u64,
    /// A connection for each request.
    fresh: bool,
}

/// What all connections of a load share.
struct Load {
    to: SocketAddr,
    request: Vec<u8>,
    fresh: bool,
}

/// One connection, and what was read of it.
struct Connection {
    /// None until it is opened, and after it failed.
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Bench {
    pub(super) fn take(ask: Ask, flags: &mut Flags) -> Result<Self> {
        ensure!(ask.scheme == Scheme::Http, "bench speaks http:// only");
        let bench = Self {
            ask,
            connections: flags.or("connections", 1, flags::number)?,
            slice: flags.or("slice", Duration::from_secs(1), flags::duration)?,
            most: flags.or("most", 0, flags::number)?.into(),
            fresh: flags.or("new-connection-per-request", false, flags::boolean)?,
        };
        let connections = 1..=MOST_CONNECTIONS;
        ensure!(
            connections.contains(&bench.connections),
            "--connections is not of {connections:?}"
        );
        let slice = Duration::from_millis(1)..=LONGEST_SLICE;
        ensure!(slice.contains(&bench.slice), "--slice is not of {slice:?}");
        Ok(bench)
    }

    /// Warms up, prints `ready`, and at each `now` runs a slice and prints its summary; true at the end.
    pub(super) async fn main(self) -> Result<bool> {
        let mut orders = Orders::listen(true).context("signals")?;
        let load = Arc::new(self.load().await?);
        let mut idle: Vec<Connection> = (0..self.connections).map(|_| Connection::new()).collect();
        for connection in &mut idle {
            connection.warm_up(&load).await.context("warming up")?;
        }
        say("ready\n")?;
        loop {
            match orders.next().await {
                Order::Now => {
                    let summary = self.slice(&load, &mut idle).await?;
                    say(&(serde_json::to_string(&summary)? + "\n"))?;
                }
                Order::Stop | Order::Quit => return Ok(true),
            }
        }
    }

    /// The address is looked up once: names are not what is measured.
    async fn load(&self) -> Result<Load> {
        let Ask {
            host,
            port,
            authority,
            path,
            ..
        } = &self.ask;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let mut found = found.with_context(|| format!("cannot resolve {host}"))?;
        let to = found
            .next()
            .with_context(|| format!("{host} has no address"))?;
        let close = if self.fresh {
            "Connection: close\r\n"
        } else {
            ""
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{close}\r\n");
        Ok(Load {
            to,
            request: request.into_bytes(),
            fresh: self.fresh,
        })
    }

    /// All connections at once, until the time or the requests are used up.
    async fn slice(&self, load: &Arc<Load>, idle: &mut Vec<Connection>) -> Result<BenchSummary> {
        let (start, cpu) = (Instant::now(), cpu_time()?);
        let end = start + self.slice;
        let count = u64::from(self.connections);
        let mut open = JoinSet::new();
        for (number, connection) in (0_u64..).zip(idle.drain(..)) {
            // What does not divide evenly is done by the first ones.
            let most = match self.most {
                0 => u64::MAX,
                most => most / count + u64::from(number < most % count),
            };
            open.spawn(connection.ask_until(load.clone(), end, most));
        }
        let mut summary = BenchSummary::default();
        let all = async {
            while let Some(done) = open.join_next().await {
                let (connection, part) = done.context("a connection's task died")?;
                idle.push(connection);
                add(&mut summary, part);
            }
            Ok::<_, anyhow::Error>(())
        };
        match tokio::time::timeout(self.slice + GRACE, all).await {
            Ok(done) => done?,
            Err(_) => failed(
                &mut summary,
                &anyhow!("no answer within {GRACE:?} of the slice's end"),
            ),
        }
        // Connections that hang are given up, and opened anew by the next slice.
        idle.resize_with(self.connections as usize, Connection::new);
        summary.wall_us = micros(start.elapsed());
        summary.cpu_us = micros(cpu_time()?.saturating_sub(cpu));
        Ok(summary)
    }
}

impl Connection {
    fn new() -> Self {
        Self {
            stream: None,
            buffer: vec![0; BUFFER],
        }
    }

    async fn warm_up(&mut self, load: &Load) -> Result<()> {
        let mut bytes = 0;
        for _ in 0..WARM_UP {
            bytes += self.ask(load).await?;
            if bytes >= WARM_UP_BYTES {
                break;
            }
        }
        Ok(())
    }

    /// Asks again and again; one that fails ends it, as it would for its share of a slice.
    async fn ask_until(mut self, load: Arc<Load>, end: Instant, most: u64) -> (Self, BenchSummary) {
        let mut part = BenchSummary::default();
        let mut now = Instant::now();
        while now < end && part.requests < most {
            match self.ask(&load).await {
                Ok(bytes) => {
                    let done = Instant::now();
                    part.requests += 1;
                    part.bytes += bytes as u64;
                    part.latencies.record(done - now);
                    now = done;
                }
                Err(error) => {
                    self.stream = None;
                    failed(&mut part, &error);
                    break;
                }
            }
        }
        (self, part)
    }

    /// Asks once and reads the whole answer; how many bytes its body had.
    async fn ask(&mut self, load: &Load) -> Result<usize> {
        let stream = match &mut self.stream {
            Some(stream) if !load.fresh => stream,
            stream => {
                let opened = TcpStream::connect(load.to).await;
                let opened = opened.with_context(|| format!("connect to {}", load.to))?;
                opened.set_nodelay(true)?;
                stream.insert(opened)
            }
        };
        stream.write_all(&load.request).await?;
        let (mut have, head) = (0, &mut self.buffer);
        let head = loop {
            let room = head.get_mut(have..).unwrap_or_default();
            match stream.read(room).await? {
                0 => bail!("cut off after {have} bytes"),
                more => have += more,
            }
            if let Some(found) = Head::parse(head.get(..have).unwrap_or_default())? {
                break found;
            }
        };
        let mut left = (head.length + head.body)
            .checked_sub(have)
            .context("more than one answer")?;
        while left > 0 {
            let most = left.min(self.buffer.len());
            match stream
                .read(self.buffer.get_mut(..most).unwrap_or_default())
                .await?
            {
                0 => bail!("cut off {left} bytes before the end"),
                more => left -= more,
            }
        }
        if load.fresh {
            // The server ends first, so that it has the waiting for late packets: ports here are free at once.
            ensure!(
                stream.read(&mut self.buffer).await? == 0,
                "more than one answer"
            );
            self.stream = None;
        }
        Ok(head.body)
    }
}

fn add(summary: &mut BenchSummary, part: BenchSummary) {
    summary.requests += part.requests;
    summary.bytes += part.bytes;
    summary.failed += part.failed;
    summary.errors.extend(part.errors);
    summary.errors.truncate(MAX_ERRORS);
    summary.latencies.add(&part.latencies);
}

fn failed(summary: &mut BenchSummary, error: &anyhow::Error) {
    summary.failed += 1;
    if summary.errors.len() < MAX_ERRORS {
        summary.errors.push(format!("{error:#}"));
    }
}

/// What this process has used so far.
fn cpu_time() -> Result<Duration> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    Ok(now.context("this process's CPU time")?.into())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
