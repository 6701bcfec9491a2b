//! Every bound that clients share, in one place, each with its reason.
//!
//! All are of one core: a connection lives and dies on one, and cores share nothing. How a bound is divided among clients is
//! in `budget.rs`: nobody has a fixed part of it, and nobody can have all.

use std::time::Duration;

/// Connections that have not proved yet whose they are. An honest one takes some milliseconds, so this is thousands a second;
/// more at a time is a flood, in which the oldest is the likeliest to be silent.
const HANDSHAKES: usize = 1024;

/// Connections of proved clients. A node's proxy makes one or a few for each of its pods and cores, and each costs about
/// 50 KiB.
const CONNECTIONS: usize = 16 * 1024;

/// Tunnels, each of which is a connection of an application. An idle one costs some 10 KiB.
const TUNNELS: usize = 16 * 1024;

/// Heads of requests that have begun and are not whole. A head that comes at once is never one of them; each may take
/// `MAX_BUFFER` (`http.rs`), so together 128 MiB.
const HEADS: usize = 1024;

/// Requests at a time, streams of gRPC among them. Each may hold an endpoint's connection and the windows of two streams.
const REQUESTS: usize = 8 * 1024;

/// How long a head may take once its first byte has come: a client on a bad line needs a second, and one that sends a byte
/// now and then holds nothing for longer. Before its first byte a connection may rest (`http.rs`).
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection that its client has no room for is kept this long, to say so to the tunnels that it was made for.
pub(crate) const TURNED_AWAY: Duration = Duration::from_secs(1);

/// What all clients of one core may have together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that have not proved yet whose they are; when one more comes, the oldest goes.
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: HANDSHAKES,
            connections: CONNECTIONS,
            tunnels: TUNNELS,
            heads: HEADS,
            requests: REQUESTS,
            head_timeout: HEAD_TIMEOUT,
        }
    }
}
