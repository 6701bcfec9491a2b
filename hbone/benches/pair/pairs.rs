//! A pair of proxies between a load and an application, in one of three designs, and its figures.

use std::time::Duration;

use crate::Result;
use crate::child::{Cast, Child};
use crate::figures;

/// Streams per connection, as the node proxy has them.
const STREAMS: &str = "100";

/// Connections opened at a time.
const CONNECTING: &str = "4";

/// A design of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Design {
    Ours,
    Usual,
    Relay,
}

/// How much is done for each figure.
pub(crate) struct Sizes {
    pub(crate) bulk: u64,
    pub(crate) requests: usize,
    pub(crate) connections: usize,
    /// Idle streams for the memory of one, in designs with one and with two sockets per stream and end.
    pub(crate) idle: usize,
    /// Streams open at once through one pair.
    pub(crate) open: usize,
    pub(crate) tunnels: usize,
    /// Requests of the tests that are about latency beside something else.
    pub(crate) probes: usize,
    /// Bytes of the test beside stalled readers.
    pub(crate) download: u64,
    /// Direct requests by which a round's noise is known.
    pub(crate) direct: usize,
}

/// Both proxies, and the application behind them.
pub(crate) struct Pair {
    pub(crate) near: Child,
    far: Child,
    _app: Child,
    /// Where the load goes.
    pub(crate) addr: String,
}

/// What one load cost and told.
pub(crate) struct Measured {
    /// CPU of both proxies, in seconds.
    pub(crate) cpu: f64,
    pub(crate) told: Vec<f64>,
}

/// The application without proxies: how noisy the machine is now.
pub(crate) struct Direct {
    app: Child,
    addr: String,
}

// === impl Design ===

impl Design {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Usual, Self::Relay];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Usual => "usual",
            Self::Relay => "relay",
        }
    }
}

// === impl Pair ===

impl Pair {
    /// Three fresh processes.
    pub(crate) fn start(cast: &Cast, design: Design) -> Result<Self> {
        let mut app = cast.start(&["app"])?;
        let app_addr = app.ready()?;
        let mut far = cast.start(&["far", design.name(), &app_addr])?;
        let far_addr = far.ready()?;
        let mut near = cast.start(&["near", design.name(), &far_addr, &app_addr, STREAMS])?;
        let addr = cast.net.front(&near.ready()?);
        Ok(Self {
            near,
            far,
            _app: app,
            addr,
        })
    }

    /// CPU of both proxies so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        Ok(self.near.cpu()? + self.far.cpu()?)
    }

    /// Resident memory of both proxies, in bytes.
    pub(crate) fn rss(&self) -> Result<f64> {
        Ok(self.near.rss()? + self.far.rss()?)
    }

    /// Starts a load and waits until it is warm; it holds there.
    pub(crate) fn load(&self, cast: &Cast, kind: &str, numbers: &[&str]) -> Result<Child> {
        let mut load = cast.start(&[&["load", kind, &self.addr], numbers].concat())?;
        load.ready()?;
        Ok(load)
    }

    /// Runs a load, warmed up, to its end.
    pub(crate) fn measure(&self, cast: &Cast, kind: &str, numbers: &[&str]) -> Result<Measured> {
        let mut load = self.load(cast, kind, numbers)?;
        let before = self.cpu()?;
        load.say("go")?;
        let line = load.line()?;
        let cpu = self.cpu()? - before;
        Ok(Measured {
            cpu,
            told: numbers_of(&line)?,
        })
    }

    /// Waits until both proxies have nothing left to do.
    pub(crate) fn settle(&self) -> Result<()> {
        const QUIET: f64 = 0.002;
        for _ in 0..50 {
            let before = self.cpu()?;
            crate::stage::rest(Duration::from_millis(100));
            if self.cpu()? - before < QUIET {
                break;
            }
        }
        Ok(())
    }
}

/// All compared figures of one design, in the order of [`figures::FIGURES`].
pub(crate) fn figures(cast: &Cast, design: Design, sizes: &Sizes) -> Result<[f64; figures::COUNT]> {
    let pair = Pair::start(cast, design)?;
    let bytes = sizes.bulk.to_string();
    let per_gb = 1e9 / sizes.bulk as f64;
    let bulk_1 = pair.measure(cast, "bulk", &["1", &bytes])?.cpu * per_gb;
    let bulk_8 = pair.measure(cast, "bulk", &["8", &bytes])?.cpu * per_gb;
    let requests = sizes.requests.to_string();
    let per_100k = 1e5 / sizes.requests as f64;
    let alone = pair.measure(cast, "requests", &["1", &requests])?;
    let [_, p50, p99] = alone.told[..] else {
        return Err("requests tell three numbers".into());
    };
    let together = pair.measure(cast, "requests", &["32", &requests])?;
    let [_, p50_32, p99_32] = together.told[..] else {
        return Err("requests tell three numbers".into());
    };
    let connections = sizes.connections.to_string();
    let new = pair.measure(cast, "connections", &[CONNECTING, &connections])?;
    Ok([
        bulk_1,
        bulk_8,
        alone.cpu * per_100k,
        p50 * 1e6,
        p99 * 1e6,
        together.cpu * per_100k,
        p50_32 * 1e6,
        p99_32 * 1e6,
        new.cpu * 1e4 / sizes.connections as f64,
    ])
}

// === impl Direct ===

impl Direct {
    pub(crate) fn start(cast: &Cast) -> Result<Self> {
        let mut app = cast.start_at("direct-app", &["app"])?;
        let addr = app.ready()?;
        Ok(Self { app, addr })
    }

    /// How long one request takes without anything between, in seconds.
    pub(crate) fn probe(&mut self, cast: &Cast, sizes: &Sizes) -> Result<f64> {
        let count = sizes.direct.to_string();
        let role = ["load", "requests", &self.addr, "1", &count];
        let mut load = cast.start_at("direct-load", &role)?;
        load.ready()?;
        load.say("go")?;
        let wall = numbers_of(&load.line()?)?.first().copied();
        // Nobody else may have ended it meanwhile.
        self.app.cpu()?;
        Ok(wall.ok_or("requests tell three numbers")? / sizes.direct as f64)
    }
}

/// The numbers of a child's line.
pub(crate) fn numbers_of(line: &str) -> Result<Vec<f64>> {
    let numbers = line.split_whitespace().map(str::parse);
    Ok(numbers.collect::<std::result::Result<_, _>>()?)
}
