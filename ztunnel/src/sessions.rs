//! Live connections of one pod on one core: registered before they are judged, judged again when what they stand on
//! changes, counted, listed, logged at their end.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use hbone::{Ended, Meter, PlainRelay, Relay};
use mesh::{
    party::Party,
    process::line_limit::LineLimit,
    verdict::lease::{Input, Lease, Revoked},
    world::{Changed, Snapshot},
};
use serde::Serialize;
use slab::Slab;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    access_log::Line,
    connection::ConnectionInfo,
    failure::Failure,
    metrics::{Metrics, OpenConnection, Reporter, ResponseFlag, TcpLabels},
};

/// How often the byte counters of open connections are brought up to date.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What the other end of a pod's connections gets to read its last bytes, as the pod's own node gives it to send them.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// A connection on which nothing moves for so long, and of which more is to come, has lost its far side.
const STILL: Duration = Duration::from_millis(500);

/// The live connections of one pod on one core.
#[derive(Clone)]
pub(crate) struct Sessions(Rc<Registry>);

/// How a connection comes to a pod's proxy. Each has room of its own: whoever fills it takes nothing from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the pod.
    Outbound,
    /// To the pod, from a peer that is proven.
    Tunnel,
    /// To the pod, from anybody.
    Plaintext,
}

struct Registry {
    live: RefCell<Slab<Entry>>,
    /// The live connections by what they stand on.
    standing_on: RefCell<BTreeSet<(Input, usize)>>,
    metrics: Metrics,
    /// In each direction.
    most: usize,
    open: Cell<[usize; 3]>,
    /// Of lines about connections that never reached their other end: one pod's flood hides no other pod's line.
    refusals: RefCell<LineLimit>,
}

struct Entry {
    meter: Rc<Meter>,
    open: Option<OpenConnection>,
    lease: Option<Lease>,
    revoke: Option<oneshot::Sender<Revoked>>,
    /// Its lease ended before it asked where that is told.
    revoked: Option<Revoked>,
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

/// One connection's place in the registry; gives it up when it finishes or is dropped.
pub(crate) struct Session {
    registry: Rc<Registry>,
    key: usize,
    meter: Rc<Meter>,
    started: Instant,
    direction: Direction,
    reporter: Reporter,
    src: SocketAddr,
    finished: bool,
    /// What is known so far.
    pub(crate) info: ConnectionInfo,
}

/// A relay that says whether the application is all that it waits for.
pub(crate) trait Lasting: Future<Output = Ended> + Unpin {
    /// As [`Relay::waits_for_app`].
    fn waits_for_app(&self) -> bool;
}

/// Tells a connection that what it stands on is gone.
pub(crate) struct Ending(oneshot::Receiver<Revoked>);

// === impl Direction ===

impl Direction {
    fn reporter(self) -> Reporter {
        match self {
            Self::Outbound => Reporter::source,
            Self::Tunnel | Self::Plaintext => Reporter::destination,
        }
    }
}

// === impl Registry ===

impl Registry {
    /// Changes how many connections are open in a direction, and says how many there were.
    fn count(&self, direction: Direction, change: impl FnOnce(usize) -> usize) -> usize {
        let mut open = self.open.get();
        let count = &mut open[direction as usize];
        let before = *count;
        *count = change(before);
        self.open.set(open);
        before
    }
}

// === impl Sessions ===

impl Sessions {
    /// A registry for at most `most` connections at once.
    pub(crate) fn new(metrics: Metrics, most: usize) -> Self {
        Self(Rc::new(Registry {
            live: RefCell::default(),
            standing_on: RefCell::default(),
            metrics,
            most,
            open: Cell::default(),
            refusals: RefCell::default(),
        }))
    }

    /// Registers a connection before anything is decided about it. `Err` where there are too many: the
    /// session is there to be logged, and must be finished.
    pub(crate) fn open(
        &self,
        direction: Direction,
        src: SocketAddr,
        source: Party,
        destination: Party,
    ) -> (Session, Result<(), Failure>) {
        let meter = Rc::new(Meter::new());
        let started = Instant::now();
        let mut live = self.0.live.borrow_mut();
        let reporter = direction.reporter();
        let before = self.0.count(direction, |open| open + 1);
        let room = if before < self.0.most {
            Ok(())
        } else {
            Err(Failure::TooMany(before))
        };
        let key = live.insert(Entry {
            meter: meter.clone(),
            open: None,
            lease: None,
            revoke: None,
            revoked: None,
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
                direction,
                reporter,
                src,
                finished: false,
                info,
            },
            room,
        )
    }

    /// Judges again the connections that stand on something that changed, and ends those whose lease holds no more.
    pub(crate) fn rejudge(&self, changed: &Changed, world: &Snapshot) {
        let standing_on = self.0.standing_on.borrow();
        if standing_on.is_empty() {
            return;
        }
        let touched: Vec<usize> = if changed.is_everything() {
            standing_on.iter().map(|(_, key)| *key).collect()
        } else {
            let workloads = changed.workloads().cloned().map(Input::Workload);
            let inputs = workloads.chain(changed.addresses().map(Input::Address));
            inputs
                .flat_map(|input| {
                    let all = (input.clone(), 0)..=(input, usize::MAX);
                    standing_on.range(all).map(|(_, key)| *key)
                })
                .collect()
        };
        drop(standing_on);
        let mut live = self.0.live.borrow_mut();
        for key in touched {
            let entry = &mut live[key];
            let Some(Err(revoked)) = entry.lease.as_mut().map(|lease| lease.judge(world)) else {
                continue;
            };
            match entry.revoke.take() {
                // One that ends just now needs no word.
                Some(revoke) => drop(revoke.send(revoked)),
                None => entry.revoked = Some(revoked),
            }
        }
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

    /// From here on the connection stands on this, which must hold now.
    pub(crate) fn stands_on(&self, mut lease: Lease, world: &Snapshot) -> Result<(), Revoked> {
        lease.judge(world)?;
        let mut standing_on = self.registry.standing_on.borrow_mut();
        standing_on.insert((lease.input(), self.key));
        self.registry.live.borrow_mut()[self.key].lease = Some(lease);
        Ok(())
    }

    /// Where the end of its lease is told.
    pub(crate) fn ending(&self) -> Ending {
        let (revoke, told) = oneshot::channel();
        let entry = &mut self.registry.live.borrow_mut()[self.key];
        match entry.revoked.take() {
            // There is who hears it.
            Some(revoked) => drop(revoke.send(revoked)),
            None => entry.revoke = Some(revoke),
        }
        Ending(told)
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
        self.registry.count(self.direction, |open| open - 1);
        if let Some(lease) = entry.lease {
            let mut standing_on = self.registry.standing_on.borrow_mut();
            standing_on.remove(&(lease.input(), self.key));
        }
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

/// What is still on its way when a lease ends because the far side is gone: what it has said, while the application reads
/// that, and whatever moves. If somebody else is in its place, nothing is.
async fn last_bytes(
    mut relay: impl Lasting,
    revoked: Revoked,
    meter: &Meter,
) -> Result<(), Failure> {
    let deadline = Instant::now() + LAST_BYTES;
    let moved = || meter.sent() + meter.received();
    while revoked.is_gone() && Instant::now() < deadline {
        let before = moved();
        if let Ok(ended) = timeout(STILL, &mut relay).await {
            return Failure::of(ended);
        }
        if !relay.waits_for_app() && moved() == before {
            break;
        }
    }
    Err(Failure::Revoked(revoked))
}

// === impl Lasting ===

impl Lasting for Relay {
    fn waits_for_app(&self) -> bool {
        Self::waits_for_app(self)
    }
}

impl Lasting for PlainRelay {
    fn waits_for_app(&self) -> bool {
        Self::waits_for_app(self)
    }
}

// === impl Ending ===

impl Ending {
    /// Runs a relay for as long as the lease holds, and a little longer where somebody has gone and left behind what he had
    /// said: an application that reads slowly gets all of it. What is dropped then resets both of its ends.
    pub(crate) async fn unless_revoked(
        self,
        mut relay: impl Lasting,
        meter: &Meter,
    ) -> Result<(), Failure> {
        let revoked = tokio::select! {
            ended = &mut relay => return Failure::of(ended),
            Ok(revoked) = self.0 => revoked,
        };
        // Large, and not what every connection should have room for.
        Box::pin(last_bytes(relay, revoked, meter)).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.finished {
            self.end(&Err(Failure::Ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "10.0.0.1:5000";

    fn open(sessions: &Sessions, direction: Direction) -> (Session, bool) {
        let (nobody, src) = (Party::default, CLIENT.parse().unwrap());
        let (session, room) = sessions.open(direction, src, nobody(), nobody());
        (session, room.is_ok())
    }

    #[test]
    fn who_fills_one_direction_takes_nothing_from_the_others() {
        let sessions = Sessions::new(Metrics::default(), 2);
        let all = [Direction::Plaintext, Direction::Outbound, Direction::Tunnel];
        let mut held = Vec::new();
        for direction in all {
            for room in [true, true, false] {
                let (session, has_room) = open(&sessions, direction);
                assert_eq!(has_room, room, "{direction:?}");
                // What is refused is over; the rest stays.
                held.extend(room.then_some(session));
            }
        }
        drop(held);
        for direction in all {
            assert!(open(&sessions, direction).1, "{direction:?}");
        }
    }
}
