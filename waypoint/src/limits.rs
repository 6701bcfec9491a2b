//! Every bound that clients share, in one place, each with its reason.
//!
//! The numbers are of a process with 1 GiB, and divided among its cores: a connection lives and dies on one, and cores share
//! nothing. How a core's part is divided among clients is in `budget.rs`: nobody has a fixed part of it, and nobody can
//! have all.

use std::time::Duration;

/// Connections that have not proved yet whose they are. An honest one takes some milliseconds, so this is thousands a second;
/// more at a time is a flood, in which the oldest is the likeliest to be silent. One that has just come keeps its place
/// (`mesh::unproven`).
const HANDSHAKES: usize = 2048;

/// Connections of proved clients. A node's proxy makes one or a few for each of its pods and cores, and each takes about
/// 12 KiB: together 200 MiB.
const CONNECTIONS: usize = 16 * 1024;

/// Tunnels, each of which is a connection of an application. One that rests takes about 25 KiB: together 400 MiB.
const TUNNELS: usize = 16 * 1024;

/// Heads of requests that have begun and are not whole. A head that comes at once is never one of them; each may take
/// `MAX_BUFFER` (`http.rs`): together 128 MiB.
const HEADS: usize = 1024;

/// Requests at a time, streams of gRPC among them. Each may hold an endpoint's connection and the windows of two streams.
const REQUESTS: usize = 16 * 1024;

/// Into so many parts a bound is divided at most. Clients meet cores by chance, a few hundred tunnels at a time: where there are
/// more cores, smaller parts would refuse one client here while there is room elsewhere.
const MOST_PARTS: usize = 8;

/// How long a head may take once its first byte has come: a client on a bad line needs a second, and one that sends a byte
/// now and then holds nothing for longer. Before its first byte a connection may rest (`http.rs`).
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection that its client has no room for is kept this long, to say so to the tunnels that it was made for.
pub(crate) const TURNED_AWAY: Duration = Duration::from_secs(1);

/// What all clients of one core may have together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that have not proved yet whose they are; when one more comes, the oldest goes if it had
    /// its chance.
    pub handshakes: usize,
    /// Connections of proved clients.
    pub connections: usize,
    /// Tunnels.
    pub tunnels: usize,
    /// Heads of HTTP/1.1 requests that have begun and are not whole.
    pub heads: usize,
    /// HTTP requests that are not answered yet.
    pub requests: usize,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
}

// === impl Limits ===

impl Limits {
    /// Of each of a process's cores.
    pub fn of_cores(cores: usize) -> Self {
        let parts = cores.clamp(1, MOST_PARTS);
        Self {
            handshakes: HANDSHAKES / parts,
            connections: CONNECTIONS / parts,
            tunnels: TUNNELS / parts,
            heads: HEADS / parts,
            requests: REQUESTS / parts,
            head_timeout: HEAD_TIMEOUT,
        }
    }
}

impl Default for Limits {
    /// Of the only core.
    fn default() -> Self {
        Self::of_cores(1)
    }
}
