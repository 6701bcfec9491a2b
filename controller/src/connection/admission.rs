//! DECISION: which connections are held, and which one goes when there is no more room.
//!
//! A connection is *unproven* until one of its calls was authorised: anybody who reaches the port may have those, so they
//! are few, shared out by source address, and always make room for a newcomer. The one that goes is of the source that
//! holds the most, so that one source can only push out itself; of that source, the oldest one that has said nothing.
//! Afterwards it is *proven*, is never pushed out, and counts against larger bounds.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

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
    proven: HashMap<IpAddr, usize>,
    proven_total: usize,
}

#[derive(Debug)]
struct Connection {
    source: IpAddr,
    /// `None`: proven.
    stage: Option<Stage>,
}

/// What became of a connection whose call was authorised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// It is held until it ends.
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
    fn default() -> Self {
        Self {
            unproven: 1024,
            unproven_per_source: 64,
            proven: 32_768,
            proven_per_source: 1024,
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
            proven: HashMap::new(),
            proven_total: 0,
        }
    }

    /// A new connection of this source, and the one that has to go for it.
    pub fn arrive(&mut self, source: IpAddr) -> (ConnectionId, Option<ConnectionId>) {
        let source = source.to_canonical();
        let evicted = self.make_room(source);
        let id = ConnectionId(self.next);
        self.next += 1;
        let stage = Some(Stage::Silent);
        self.connections.insert(id, Connection { source, stage });
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
        let Some(before) = connection.stage else {
            return;
        };
        connection.stage = Some(stage);
        let source = connection.source;
        self.change(source, |set| {
            set.remove(&(before, id));
            set.insert((stage, id))
        });
    }

    /// One of its calls was authorised.
    pub fn prove(&mut self, id: ConnectionId) -> Proven {
        let Some(connection) = self.connections.get(&id) else {
            return Proven::Gone;
        };
        let (source, Some(stage)) = (connection.source, connection.stage) else {
            return Proven::Held;
        };
        let held = self.proven.get(&source).copied().unwrap_or(0);
        if held >= self.bounds.proven_per_source || self.proven() >= self.bounds.proven {
            return Proven::Full;
        }
        self.change(source, |set| set.remove(&(stage, id)));
        self.proven.insert(source, held + 1);
        self.proven_total += 1;
        self.connections.insert(
            id,
            Connection {
                source,
                stage: None,
            },
        );
        Proven::Held
    }

    /// It has ended.
    pub fn leave(&mut self, id: ConnectionId) {
        let Some(Connection { source, stage }) = self.connections.remove(&id) else {
            return;
        };
        match stage {
            Some(stage) => {
                self.change(source, |set| set.remove(&(stage, id)));
            }
            None => {
                self.proven_total -= 1;
                match self.proven.get(&source).copied() {
                    Some(count) if count > 1 => drop(self.proven.insert(source, count - 1)),
                    _ => drop(self.proven.remove(&source)),
                }
            }
        }
    }

    /// Whether one of its calls was authorised.
    pub fn is_proven(&self, id: ConnectionId) -> bool {
        self.connections
            .get(&id)
            .is_some_and(|connection| connection.stage.is_none())
    }

    /// How many are unproven.
    pub fn unproven(&self) -> usize {
        self.connections.len() - self.proven()
    }

    /// How many are proven.
    pub fn proven(&self) -> usize {
        self.proven_total
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

/// Nothing for a source without connections.
fn rank(source: IpAddr, set: &BTreeSet<(Stage, ConnectionId)>) -> Option<Rank> {
    Some((set.len(), Reverse(*set.first()?), source))
}

#[cfg(test)]
mod tests;
