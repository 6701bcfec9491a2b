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

/// Bytes a peer may send on a stream before our application took any: what one stalled reader
/// can make us hold. Gives one stream 1 GB/s at 1 ms round trip, 20 MB/s at 50 ms.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;

/// Bytes a peer may send on a connection before our applications took any.
///
/// The h2 crate returns connection and stream window together, when the application took the bytes.
/// A connection window smaller than all stream windows would let a few stalled readers stop every
/// other stream, so it is exactly all of them: the stream windows alone bound memory.
pub(crate) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * SERVER_STREAMS;

/// The largest DATA frame we take: bounds the frame being assembled per connection, while bulk still
/// needs few frames.
pub(crate) const MAX_FRAME: u32 = 64 << 10;

/// Bytes of one stream that may wait for the tunnel's socket on the sending side.
pub(crate) const SEND_BUFFER: usize = 256 << 10;

/// How long a client may take to end a tunnel whose server has said all: longer than any client needs
/// that reads the end. Looked at with every ping.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(10);

/// What such a client may still say before it is stopped: a window full.
pub(crate) const LINGER_BYTES: usize = STREAM_WINDOW as usize;

/// Decoded header list of a CONNECT; ours take about 1 KiB.
pub(crate) const MAX_HEADER_LIST: u32 = 16 << 10;

/// TCP keepalive idle time and interval, and probes: the last resort for sockets without pings.
pub(crate) const TCP_KEEPALIVE: (Duration, u32) = (Duration::from_secs(180), 9);

/// What a server grants its clients.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Concurrent streams of one connection.
    pub max_streams: u32,
    /// TLS and HTTP/2 preface together.
    pub handshake_timeout: Duration,
    /// A connection without streams is closed after this.
    pub idle_timeout: Duration,
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
    /// TCP connect.
    pub connect_timeout: Duration,
    /// TLS and HTTP/2 preface together.
    pub handshake_timeout: Duration,
    /// From CONNECT to its answer.
    pub response_timeout: Duration,
    /// A connection without streams is closed after this.
    pub idle_timeout: Duration,
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
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            ping_interval: PING_INTERVAL,
            ping_timeout: PING_TIMEOUT,
        }
    }
}
