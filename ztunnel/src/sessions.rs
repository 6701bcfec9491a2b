//! Live connections of one pod on one core: registered before they are judged, counted, listed, logged at their end.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hbone::{Meter, Target, TraceParent};
use mesh::{process::line_limit::LineLimit, service::Service};
use serde::Serialize;
use slab::Slab;

use crate::{
    access_log::Line,
    failure::Failure,
    metrics::{Metrics, OpenConnection, Reporter, ResponseFlag, TcpLabels},
    party::Party,
};

/// How often the byte counters of open connections are brought up to date.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(5);

/// The live connections of one pod on one core.
#[derive(Clone)]
pub(crate) struct Sessions(Rc<Registry>);

struct Registry {
    live: RefCell<Slab<Entry>>,
    metrics: Metrics,
    most: usize,
    /// Of lines about connections that never reached their other end: one pod's flood hides no other pod's line.
    refusals: RefCell<LineLimit>,
}

struct Entry {
    meter: Rc<Meter>,
    open: Option<OpenConnection>,
    info: SessionInfo,
}

/// One live connection, for people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SessionInfo {
    direction: &'static str,
    src: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip)]
    started: Instant,
    age_ms: u128,
    bytes_sent: u64,
    bytes_recv: u64,
}

/// What is known of a connection so far; filled in as the story goes.
#[derive(Debug, Default)]
pub(crate) struct ConnectionInfo {
    /// The address of the next hop: the tunnel's, where there is one.
    pub(crate) dst: Option<SocketAddr>,
    /// What the tunnel was asked for.
    pub(crate) tunnelled: Option<Target>,
    /// The service that was dialled.
    pub(crate) service: Option<Arc<Service>>,
    /// The client.
    pub(crate) source: Party,
    /// The server.
    pub(crate) destination: Party,
    /// Whether both ends have proven who they are.
    pub(crate) encrypted: bool,
    /// What ties the lines of one connection together.
    pub(crate) trace: Option<TraceParent>,
}

/// One connection's place in the registry; gives it up when it finishes or is dropped.
pub(crate) struct Session {
    registry: Rc<Registry>,
    key: usize,
    meter: Rc<Meter>,
    started: Instant,
    reporter: Reporter,
    src: SocketAddr,
    finished: bool,
    /// What is known so far.
    pub(crate) info: ConnectionInfo,
}

// === impl Sessions ===

impl Sessions {
    /// A registry for at most `most` connections at once.
    pub(crate) fn new(metrics: Metrics, most: usize) -> Self {
        Self(Rc::new(Registry {
            live: RefCell::default(),
            metrics,
            most,
            refusals: RefCell::default(),
        }))
    }

    /// Registers a connection before anything is decided about it. `Err` where there are too many: the
    /// session is there to be logged, and must be finished.
    pub(crate) fn open(
        &self,
        reporter: Reporter,
        src: SocketAddr,
        source: Party,
        destination: Party,
    ) -> (Session, Result<(), Failure>) {
        let meter = Rc::new(Meter::new());
        let started = Instant::now();
        let mut live = self.0.live.borrow_mut();
        let room = if live.len() < self.0.most {
            Ok(())
        } else {
            Err(Failure::TooMany(live.len()))
        };
        let key = live.insert(Entry {
            meter: meter.clone(),
            open: None,
            info: SessionInfo {
                direction: if reporter == Reporter::source {
                    "outbound"
                } else {
                    "inbound"
                },
                src,
                dst: None,
                target: None,
                peer: None,
                started,
                age_ms: 0,
                bytes_sent: 0,
                bytes_recv: 0,
            },
        });
        let info = ConnectionInfo {
            source,
            destination,
            ..ConnectionInfo::default()
        };
        let registry = self.0.clone();
        (
            Session {
                registry,
                key,
                meter,
                started,
                reporter,
                src,
                finished: false,
                info,
            },
            room,
        )
    }

    /// Brings the byte counters of open connections up to date.
    pub(crate) fn report(&self) {
        for (_, entry) in self.0.live.borrow().iter() {
            if let Some(open) = &entry.open {
                open.report(&entry.meter);
            }
        }
    }

    /// How many live connections there are.
    pub(crate) fn count(&self) -> usize {
        self.0.live.borrow().len()
    }

    /// The live connections, for people: at most so many.
    pub(crate) fn list(&self, most: usize) -> Vec<SessionInfo> {
        let reporter = |info: &SessionInfo| match info.direction {
            "outbound" => Reporter::source,
            _ => Reporter::destination,
        };
        self.0
            .live
            .borrow()
            .iter()
            .take(most)
            .map(|(_, entry)| {
                let bytes = OpenConnection::bytes(reporter(&entry.info), &entry.meter);
                SessionInfo {
                    age_ms: entry.info.started.elapsed().as_millis(),
                    bytes_sent: bytes.sent,
                    bytes_recv: bytes.received,
                    ..entry.info.clone()
                }
            })
            .collect()
    }
}

// === impl Session ===

impl Session {
    /// The byte counters that a relay keeps.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The connection has reached its other end: from here on it is counted as open.
    pub(crate) fn established(&mut self) {
        let labels = self.labels(ResponseFlag::None);
        let peer = match self.reporter {
            Reporter::source => &self.info.destination,
            Reporter::destination => &self.info.source,
        };
        let mut live = self.registry.live.borrow_mut();
        let entry = &mut live[self.key];
        entry.open = Some(self.registry.metrics.opened(&labels));
        entry.info.dst = self.info.dst;
        entry.info.target = self.info.tunnelled.as_ref().map(ToString::to_string);
        entry.info.peer = peer.identity.as_ref().map(ToString::to_string);
    }

    /// The connection is over: counts it and writes its line.
    pub(crate) fn finish(mut self, outcome: &Result<(), Failure>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: &Result<(), Failure>) {
        self.finished = true;
        let entry = self.registry.live.borrow_mut().remove(self.key);
        let was_open = entry.open.is_some();
        match entry.open {
            Some(open) => open.close(&self.meter),
            None => {
                if let Err(failure) = outcome {
                    self.registry.metrics.failed(&self.labels(failure.flag()));
                }
            }
        }
        Line {
            reporter: self.reporter,
            src: self.src,
            info: &self.info,
            bytes: OpenConnection::bytes(self.reporter, &self.meter),
            duration: self.started.elapsed(),
            outcome,
            limit: &self.registry.refusals,
            was_open,
        }
        .write();
    }

    fn labels(&self, flag: ResponseFlag) -> TcpLabels {
        TcpLabels::new(
            self.reporter,
            &self.info.source,
            &self.info.destination,
            self.info.service.as_deref(),
            self.info.encrypted,
            flag,
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.finished {
            self.end(&Err(Failure::Ended));
        }
    }
}
