//! DECISION: which connections are held, and which one goes when there is no more room.
//!
//! A connection is *unproven* until one of its calls was authorised: anybody who reaches the port may have those, so they
//! are few, shared out by source address, and always make room for a newcomer. The one that goes is of the source that
//! holds the most, so that one source can only push out itself; of that source, the oldest one that has said nothing.
//! Afterwards it is *proven* and belongs to the pod whose token was shown: only newer ones of that pod push it out. It
//! counts against larger bounds, in all and of one source (nodes and pods may come from one address, behind NAT), of which
//! a share is kept for node proxies: pods that anybody may make cannot take all.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Unproven ones in all.
    pub unproven: usize,
    /// Unproven ones of one source.
    pub unproven_per_source: usize,
    /// Proven ones in all.
    pub proven: usize,
    /// Proven ones of one source.
    pub proven_per_source: usize,
    /// Proven ones of one pod.
    pub proven_per_pod: usize,
    /// Proven ones of all pods that are no node proxies.
    pub proven_of_others: usize,
    /// Those of one source.
    pub proven_of_others_per_source: usize,
}

/// Whose a proven connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The UID of the pod whose token was shown.
    pub pod: Arc<str>,
    /// What the pod is.
    pub class: Class,
}

/// For whom places are kept, and for whom not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// One of each node.
    NodeProxy,
    /// A waypoint, or whoever asks for itself: as many as somebody starts.
    Other,
}

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// No call of it was authorised.
    Unproven,
    /// An authorised call is open.
    Busy,
    /// The last authorised call ended then.
    IdleSince(Instant),
}

/// How far an unproven connection has come. The least advanced goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It has sent no byte.
    Silent,
    /// In its TLS handshake.
    Handshake,
    /// No call of it was authorised so far.
    Idle,
}

/// Names a connection. Smaller is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// The last in order gives way: of the source with the most, or, among equals, with the least advanced and oldest.
type Rank = (usize, Reverse<(Stage, ConnectionId)>, IpAddr);

/// Who is connected.
#[derive(Debug)]
pub struct Admission {
    bounds: Bounds,
    next: u64,
    connections: HashMap<ConnectionId, Connection>,
    unproven: HashMap<IpAddr, BTreeSet<(Stage, ConnectionId)>>,
    /// The sources of `unproven`, the one that has to give way last.
    crowded: BTreeSet<Rank>,
    /// Of the sources that have any.
    proven_by_source: HashMap<IpAddr, Count>,
    proven: Count,
    /// Proven ones, oldest first.
    pods: HashMap<Arc<str>, Vec<ConnectionId>>,
}

/// How many are proven.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    node_proxies: usize,
    others: usize,
}

#[derive(Debug)]
struct Connection {
    source: IpAddr,
    state: State,
}

#[derive(Debug)]
enum State {
    Unproven(Stage),
    Proven {
        holder: Holder,
        calls: usize,
        idle_since: Instant,
    },
}

/// What became of a connection whose call was authorised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// It is held until it ends, or has been idle for long.
    Held,
    /// Its source, or everybody together, already holds as many as there may be.
    Full,
    /// It had to go before.
    Gone,
}

// === impl Bounds ===

impl Default for Bounds {
    /// An unproven connection costs up to some 64 KiB (TLS and HTTP/2 state): 1024 of them are 64 MiB. A proxy has two or three
    /// connections; 64 in a handshake at once is a NAT gateway with a whole cluster behind it, and so are 1024 proven ones.
    /// Half of all is kept for node proxies, and half of a source: two connections of each of 8192, and of 256.
    fn default() -> Self {
        Self {
            unproven: 1024,
            unproven_per_source: 64,
            proven: 32_768,
            proven_per_source: 1024,
            proven_per_pod: 4,
            proven_of_others: 16_384,
            proven_of_others_per_source: 512,
        }
    }
}

// === impl Admission ===

impl Admission {
    /// Nobody is connected.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next: 0,
            connections: HashMap::new(),
            unproven: HashMap::new(),
            crowded: BTreeSet::new(),
            proven_by_source: HashMap::new(),
            proven: Count::default(),
            pods: HashMap::new(),
        }
    }

    /// A new connection of this source, and the one that has to go for it.
    pub fn arrive(&mut self, source: IpAddr) -> (ConnectionId, Option<ConnectionId>) {
        let source = source.to_canonical();
        let evicted = self.make_room(source);
        let id = ConnectionId(self.next);
        self.next += 1;
        let state = State::Unproven(Stage::Silent);
        self.connections.insert(id, Connection { source, state });
        self.change(source, |set| set.insert((Stage::Silent, id)));
        (id, evicted)
    }

    fn make_room(&mut self, source: IpAddr) -> Option<ConnectionId> {
        let own = self.unproven.get(&source);
        let victim = match own {
            Some(own) if own.len() >= self.bounds.unproven_per_source => own.first().copied(),
            _ if self.unproven() >= self.bounds.unproven => {
                self.crowded.last().map(|(_, Reverse(oldest), _)| *oldest)
            }
            _ => None,
        };
        let (_, id) = victim?;
        self.leave(id);
        Some(id)
    }

    /// It has come further.
    pub fn advance(&mut self, id: ConnectionId, stage: Stage) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        // Proven is the furthest.
        let State::Unproven(before) = connection.state else {
            return;
        };
        connection.state = State::Unproven(stage);
        let source = connection.source;
        self.change(source, |set| {
            set.remove(&(before, id));
            set.insert((stage, id))
        });
    }

    /// One of its calls was authorised and is open, and the connection that has to go for it.
    pub fn prove(
        &mut self,
        id: ConnectionId,
        holder: Holder,
        now: Instant,
    ) -> (Proven, Option<ConnectionId>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return (Proven::Gone, None);
        };
        let source = connection.source;
        let stage = match &mut connection.state {
            State::Unproven(stage) => *stage,
            State::Proven { calls, .. } => {
                *calls += 1;
                return (Proven::Held, None);
            }
        };
        let evicted = self.surplus(&holder.pod);
        if let Some(evicted) = evicted {
            self.leave(evicted);
        }
        if !self.has_room(source, holder.class) {
            return (Proven::Full, evicted);
        }
        self.change(source, |set| set.remove(&(stage, id)));
        *self.proven.of(holder.class) += 1;
        *self
            .proven_by_source
            .entry(source)
            .or_default()
            .of(holder.class) += 1;
        self.pods.entry(holder.pod.clone()).or_default().push(id);
        let state = State::Proven {
            holder,
            calls: 1,
            idle_since: now,
        };
        self.connections.insert(id, Connection { source, state });
        (Proven::Held, evicted)
    }

    /// Of a pod that has as many as it may: the oldest without a call, or else the oldest. A proxy whose connection is
    /// dead opens a new one, so it is not the new one that is refused.
    fn surplus(&self, pod: &str) -> Option<ConnectionId> {
        let own = self.pods.get(pod)?;
        if own.len() < self.bounds.proven_per_pod {
            return None;
        }
        let idle = |id: &&ConnectionId| matches!(self.activity(**id), Activity::IdleSince(_));
        own.iter().find(idle).or(own.first()).copied()
    }

    fn has_room(&self, source: IpAddr, class: Class) -> bool {
        let of_source = self.proven_by_source.get(&source);
        let of_source = of_source.copied().unwrap_or_default();
        let Bounds {
            proven,
            proven_per_source,
            proven_of_others,
            proven_of_others_per_source,
            ..
        } = self.bounds;
        self.proven.has_room(class, proven, proven_of_others)
            && of_source.has_room(class, proven_per_source, proven_of_others_per_source)
    }

    /// A call that was authorised has ended.
    pub fn call_ended(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let State::Proven {
                calls, idle_since, ..
            } = &mut connection.state
        {
            *calls = calls.saturating_sub(1);
            *idle_since = now;
        }
    }

    /// It has ended.
    pub fn leave(&mut self, id: ConnectionId) {
        let Some(Connection { source, state }) = self.connections.remove(&id) else {
            return;
        };
        match state {
            State::Unproven(stage) => {
                self.change(source, |set| set.remove(&(stage, id)));
            }
            State::Proven { holder, .. } => {
                *self.proven.of(holder.class) -= 1;
                if let Some(of_source) = self.proven_by_source.get_mut(&source) {
                    *of_source.of(holder.class) -= 1;
                    if *of_source == Count::default() {
                        self.proven_by_source.remove(&source);
                    }
                }
                if let Some(own) = self.pods.get_mut(&holder.pod) {
                    own.retain(|one| *one != id);
                    if own.is_empty() {
                        self.pods.remove(&holder.pod);
                    }
                }
            }
        }
    }

    /// What it does; one that is gone is not proven.
    pub fn activity(&self, id: ConnectionId) -> Activity {
        match self
            .connections
            .get(&id)
            .map(|connection| &connection.state)
        {
            Some(State::Proven { calls: 1.., .. }) => Activity::Busy,
            Some(State::Proven { idle_since, .. }) => Activity::IdleSince(*idle_since),
            Some(State::Unproven(_)) | None => Activity::Unproven,
        }
    }

    /// How many are unproven.
    pub fn unproven(&self) -> usize {
        self.connections.len() - self.proven()
    }

    /// How many are proven.
    pub fn proven(&self) -> usize {
        self.proven.all()
    }

    /// Changes a source's set and its rank among all.
    fn change(
        &mut self,
        source: IpAddr,
        how: impl FnOnce(&mut BTreeSet<(Stage, ConnectionId)>) -> bool,
    ) {
        let set = self.unproven.entry(source).or_default();
        if let Some(rank) = rank(source, set) {
            self.crowded.remove(&rank);
        }
        how(set);
        match rank(source, set) {
            Some(rank) => drop(self.crowded.insert(rank)),
            None => drop(self.unproven.remove(&source)),
        }
    }
}

// === impl Count ===

impl Count {
    fn of(&mut self, class: Class) -> &mut usize {
        match class {
            Class::NodeProxy => &mut self.node_proxies,
            Class::Other => &mut self.others,
        }
    }

    fn all(self) -> usize {
        self.node_proxies + self.others
    }

    /// Whether there is room for one more, where there are so many places, and so many of them for others than node proxies.
    fn has_room(self, class: Class, places: usize, of_others: usize) -> bool {
        let of_class = match class {
            Class::NodeProxy => true,
            Class::Other => self.others < of_others,
        };
        of_class && self.all() < places
    }
}

/// Nothing for a source without connections.
fn rank(source: IpAddr, set: &BTreeSet<(Stage, ConnectionId)>) -> Option<Rank> {
    Some((set.len(), Reverse(*set.first()?), source))
}

#[cfg(test)]
mod tests;
