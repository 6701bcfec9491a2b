//! Every bound of the tunnel in one place, each with its reason.

use std::time::Duration;

/// How long TLS and the HTTP/2 preface may take: a peer that says nothing holds a socket no longer.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a TCP connect may take; the same as stock peers wait.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the answer to a CONNECT may take: the far side may spend [`CONNECT_TIMEOUT`] dialling
/// its application, and a waypoint in between may do so twice.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection without streams is closed after this; stock peers do the same.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A connection of ours takes no new streams after this: renewed certificates would end it after half a
/// day anyway, and a peer that came up since gets its share.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(3600);

/// A server lets a silent but living client keep its connection longer than any client of ours
/// would, so that the client's idle end comes first and nobody races it.
pub(crate) const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How often each end asks the other whether it lives.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer may take. With the interval: a dead peer is known within 30 s.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams on one pooled connection before another is opened; stock waypoints allow 100.
pub(crate) const POOL_STREAMS: usize = 100;

/// Connections of one pool, all destinations together: bounds sockets, not use (25 k tunnels).
pub(crate) const POOL_CONNECTIONS: usize = 4096;

/// Streams a client may have open on one connection to us; twice what our own pool uses.
pub(crate) const SERVER_STREAMS: u32 = 200;

/// Bytes a peer may send on a new stream before our application took any: small, because most streams
/// never need more, and what one stalled reader can make us hold.
pub(crate) const INITIAL_WINDOW: u32 = 64 << 10;

/// What a stream's window may grow to while its application keeps up: 4 GB/s at 1 ms round trip,
/// 80 MB/s at 50 ms.
pub(crate) const LARGEST_WINDOW: u32 = 4 << 20;

/// Bytes a peer may have in flight on a connection. They are returned on receipt: stream windows bound
/// memory, and stalled readers never take window from others.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;

/// Bytes that all tunnels of a thread may hold for applications that do not take them. In the name of one certificate no more are
/// held than are left for all others: half, if it is alone. Beyond, whoever took nothing for longest is reset at once.
pub(crate) const BUDGET: usize = 128 << 20;

/// Which part of what is left may be held when new streams come (a quarter of [`BUDGET`], alone). Windows that have grown may
/// fill the rest: nothing breaks when the applications of some of them pause together. Beyond, new streams are refused, and those
/// that have been [`STALLED`] are reset.
pub(crate) const WELCOME_PART: usize = 3;

/// The same while windows grow.
pub(crate) const GROWING_PART: usize = 7;

/// How long an application may take nothing while memory is short. One that is only slow takes something.
pub(crate) const STALLED: Duration = Duration::from_secs(60);

/// The largest DATA frame we take. They are never assembled, so it costs nothing; it bounds how long
/// one frame of the peer keeps its others waiting.
pub(crate) const MAX_FRAME: u32 = 64 << 10;

/// Answers that wait for a peer that asks and does not read: above it, it is not read either.
pub(crate) const BACKLOG: usize = 256 << 10;

/// Sealed bytes the tunnel's socket has not taken, above which applications are not read: what a small
/// message waits behind, besides [`NOT_SENT`].
pub(crate) const UNSENT: usize = 32 << 10;

/// A tunnel whose socket has left more than [`UNSENT`] for this long, or that the peer has granted no window as
/// a whole, is hot: new streams get another connection, which another core of the peer may serve.
pub(crate) const HOT: Duration = Duration::from_millis(50);

/// Connections to one destination that are opened because the others are hot.
pub(crate) const POOL_PARALLEL: usize = 4;

/// Unsent bytes the kernel may queue for a tunnel: what a small message waits behind. With half of it
/// a sender that is paced takes a twentieth more of CPU.
pub(crate) const NOT_SENT: u32 = 512 << 10;

/// Bytes of one stream that are sent in one turn, and of all of them in one write: one system call for
/// much. Streams that begin to speak go first, so that they wait for no more than one of it.
pub(crate) const QUANTUM: usize = 256 << 10;

/// Bytes that a [`TunnelIo`](crate::TunnelIo)'s writer may be ahead of the tunnel.
pub(crate) const PIPE: usize = 128 << 10;

/// How long a client may take to end a tunnel whose server has said all: longer than any client needs
/// that reads the end.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(10);

/// What such a client may still say before it is stopped: a few windows full.
pub(crate) const LINGER_BYTES: usize = 1 << 20;

/// How long a peer may take to read our last words and leave, before its socket is closed anyway.
pub(crate) const CLOSING_TIME: Duration = Duration::from_secs(1);

/// What it may still send until then.
pub(crate) const CLOSING_BYTES: usize = 1 << 20;

/// A header block on the wire, padding aside: ours take about 1 KiB.
pub(crate) const MAX_BLOCK: usize = 16 << 10;

/// CONTINUATION frames of one block, counted before anything is decoded.
pub(crate) const MAX_CONTINUATIONS: usize = 8;

/// Decoded header list of a CONNECT, by RFC 9113's count (32 bytes a field).
pub(crate) const MAX_HEADER_LIST: u32 = 16 << 10;

/// Fields of a header list.
pub(crate) const MAX_FIELDS: usize = 64;

/// Streams that may be opened and reset before they are answered, at once: twice the streams a
/// connection may have, because a client may give up on all of them.
pub(crate) const RESET_BURST: u32 = 400;

/// The same per second, for as long as it likes.
pub(crate) const RESET_RATE: u32 = 100;

/// Frames that move no byte, at once: a connection of 200 busy streams sends fewer.
pub(crate) const CONTROL_BURST: u32 = 1000;

/// The same per second; DATA pays for more.
pub(crate) const CONTROL_RATE: u32 = 100;

/// Streams we reset lately, whose frames in flight are ignored.
pub(crate) const LATELY_RESET: usize = 128;

/// How long a peer may take to acknowledge our SETTINGS.
pub(crate) const SETTINGS_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server grants its clients.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Concurrent streams of one connection.
    pub max_streams: u32,
    /// TLS and HTTP/2 preface together.
    pub handshake_timeout: Duration,
    /// A connection without streams is closed after this.
    pub idle_timeout: Duration,
    /// A connection takes no new streams after this; nothing: until the client's certificate runs out.
    pub max_age: Option<Duration>,
    /// How often the client is asked whether it lives.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_timeout: Duration,
}

/// What a pool uses of its peers and of this machine.
#[derive(Clone, Debug)]
pub struct PoolLimits {
    /// Concurrent streams of one connection, then another is opened.
    pub max_streams: usize,
    /// Connections of the whole pool.
    pub max_connections: usize,
    /// Connections to one destination, as long as each has places left: another is opened where the
    /// peer's core cannot keep up with those there are.
    pub max_parallel: usize,
    /// TCP connect.
    pub connect_timeout: Duration,
    /// TLS and HTTP/2 preface together.
    pub handshake_timeout: Duration,
    /// From CONNECT to its answer.
    pub response_timeout: Duration,
    /// A connection without streams is closed after this.
    pub idle_timeout: Duration,
    /// A connection takes no new streams after this, so that load spreads over new peers and cores.
    pub max_age: Option<Duration>,
    /// How often the server is asked whether it lives.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_timeout: Duration,
}

// === impl ServerLimits ===

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_streams: SERVER_STREAMS,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            idle_timeout: SERVER_IDLE_TIMEOUT,
            max_age: None,
            ping_interval: PING_INTERVAL,
            ping_timeout: PING_TIMEOUT,
        }
    }
}

// === impl PoolLimits ===

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            max_streams: POOL_STREAMS,
            max_connections: POOL_CONNECTIONS,
            max_parallel: POOL_PARALLEL,
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            max_age: Some(MAX_AGE),
            ping_interval: PING_INTERVAL,
            ping_timeout: PING_TIMEOUT,
        }
    }
}
