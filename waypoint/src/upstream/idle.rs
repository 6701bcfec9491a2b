//! Connections to endpoints that wait for their next request, each list with its bound.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use mesh::names::Uid;
use tokio::sync::Semaphore;

use super::{Key, Unreachable};
use crate::request_body::RequestBody;

/// An idle HTTP/1.1 connection is kept this long: less than the 5 s after which the most impatient common
/// servers close theirs, so that a request seldom meets a closing one.
const IDLE: Duration = Duration::from_secs(4);

/// An HTTP/2 connection without requests; closing one is in order at any time (GOAWAY).
const IDLE_SHARED: Duration = Duration::from_secs(60);

/// Idle HTTP/1.1 connections of one core.
const MAX_IDLE: usize = 4096;

/// Shared HTTP/2 connections of one core; one more serves only the request that it was made for.
const MAX_SHARED: usize = 4096;

/// Requests on one HTTP/2 connection; then another is opened. Common servers grant 100 or more.
const MAX_STREAMS: usize = 100;

/// All that is kept for one core.
#[derive(Debug, Default)]
pub(super) struct IdleConnections {
    idle: HashMap<Key, Vec<(Instant, http1::SendRequest<RequestBody>)>>,
    /// In all lists of `idle`.
    resting: usize,
    shared: HashMap<Key, Slot>,
    /// In all slots of `shared`, at the last look.
    sharing: usize,
}

#[derive(Debug)]
struct Slot {
    connections: Vec<Rc<Shared>>,
    /// One permit: one dial at a time.
    dialling: Rc<Semaphore>,
    /// Of the last dial.
    failure: Option<(Instant, Unreachable)>,
    used: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Cell<usize>,
    used: Cell<Instant>,
}

/// One request's place on a shared connection; given back when dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    shared: Rc<Shared>,
    sender: http2::SendRequest<RequestBody>,
}

// === impl IdleConnections ===

impl IdleConnections {
    /// The HTTP/1.1 connection that was used last, if one rests.
    pub(super) fn take(&mut self, key: &Key) -> Option<http1::SendRequest<RequestBody>> {
        let list = self.idle.get_mut(key)?;
        let mut found = None;
        while found.is_none() {
            let Some((since, sender)) = list.pop() else {
                break;
            };
            self.resting -= 1;
            found = Some(sender).filter(|sender| sender.is_ready() && since.elapsed() < IDLE);
        }
        if list.is_empty() {
            self.idle.remove(key);
        }
        found
    }

    /// Keeps a connection that has answered.
    pub(super) fn put(&mut self, key: Key, sender: http1::SendRequest<RequestBody>) {
        if self.resting < MAX_IDLE && !sender.is_closed() {
            self.resting += 1;
            self.idle
                .entry(key)
                .or_default()
                .push((Instant::now(), sender));
        }
    }

    /// Lets go the resting connections of a key.
    pub(super) fn forget(&mut self, key: &Key) {
        self.resting -= self.idle.remove(key).map_or(0, |list| list.len());
    }

    /// Lets go all connections to a workload: those that are in use end with what uses them.
    pub(super) fn forget_endpoint(&mut self, uid: &Uid) {
        self.idle.retain(|key, _| key.uid != *uid);
        self.resting = self.idle.values().map(Vec::len).sum();
        self.shared.retain(|key, _| key.uid != *uid);
        self.sharing = self
            .shared
            .values()
            .map(|slot| slot.connections.len())
            .sum();
    }

    /// A place on a shared connection, if one has room.
    pub(super) fn permit(&mut self, key: &Key) -> Option<StreamPermit> {
        let slot = self.shared.get_mut(key)?;
        slot.used = Instant::now();
        slot.connections.retain(|shared| !shared.sender.is_closed());
        let room = slot
            .connections
            .iter()
            .find(|shared| shared.streams.get() < MAX_STREAMS)?;
        Some(StreamPermit::new(Rc::clone(room)))
    }

    /// The turn to dial for a key.
    pub(super) fn dialling(&mut self, key: &Key) -> Rc<Semaphore> {
        let slot = self.shared.entry(key.clone()).or_insert_with(Slot::new);
        Rc::clone(&slot.dialling)
    }

    /// The failure of a dial that ended after `came`: whoever has waited for it is told the same.
    pub(super) fn failure_since(&self, key: &Key, came: Instant) -> Option<Unreachable> {
        let (when, failure) = self.shared.get(key)?.failure.as_ref()?;
        (*when >= came).then(|| failure.clone())
    }

    /// A dial has failed.
    pub(super) fn failed(&mut self, key: &Key, failure: Unreachable) {
        if let Some(slot) = self.shared.get_mut(key) {
            slot.failure = Some((Instant::now(), failure));
        }
    }

    /// Adds a shared connection and takes the first place on it.
    pub(super) fn share(
        &mut self,
        key: Key,
        sender: http2::SendRequest<RequestBody>,
    ) -> StreamPermit {
        let shared = Rc::new(Shared {
            sender,
            streams: Cell::new(0),
            used: Cell::new(Instant::now()),
        });
        if self.sharing < MAX_SHARED {
            self.sharing += 1;
            let slot = self.shared.entry(key).or_insert_with(Slot::new);
            slot.connections.push(Rc::clone(&shared));
        }
        StreamPermit::new(shared)
    }

    /// Lets go what nobody has used for a while.
    pub(super) fn sweep(&mut self) {
        let mut resting = 0;
        self.idle.retain(|_, list| {
            list.retain(|(since, sender)| since.elapsed() < IDLE && !sender.is_closed());
            resting += list.len();
            !list.is_empty()
        });
        self.resting = resting;
        let mut sharing = 0;
        self.shared.retain(|_, slot| {
            slot.connections.retain(|shared| {
                let idle = shared.streams.get() == 0 && shared.used.get().elapsed() >= IDLE_SHARED;
                !idle && !shared.sender.is_closed()
            });
            sharing += slot.connections.len();
            !slot.connections.is_empty() || slot.used.elapsed() < IDLE_SHARED
        });
        self.sharing = sharing;
    }
}

// === impl Slot ===

impl Slot {
    fn new() -> Self {
        Self {
            connections: Vec::new(),
            dialling: Rc::new(Semaphore::new(1)),
            failure: None,
            used: Instant::now(),
        }
    }
}

// === impl StreamPermit ===

impl StreamPermit {
    fn new(shared: Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        let sender = shared.sender.clone();
        Self { shared, sender }
    }

    /// The connection.
    pub(super) fn sender(&mut self) -> &mut http2::SendRequest<RequestBody> {
        &mut self.sender
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.shared.streams.set(self.shared.streams.get() - 1);
        self.shared.used.set(Instant::now());
    }
}
