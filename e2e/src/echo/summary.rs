//! What the long-running client modes say at their end, as one line of JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;

/// One request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When the request was sent, in milliseconds since the start.
    pub at_ms: u64,
    /// What happened.
    pub error: String,
}

/// How fresh connections at a fixed rate fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadSummary {
    /// The start, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// How long it ran.
    pub ran_ms: u64,
    /// Requests begun.
    pub sent: u64,
    /// Requests answered with success (HTTP 2xx, gRPC OK, TCP echoed).
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests cut off by the end of the run; neither ok nor failed.
    pub unfinished: u64,
    /// The first failures.
    pub errors: Vec<Failure>,
    /// Median time of a successful request.
    pub latency_p50_ms: f64,
    /// 99th percentile.
    pub latency_p99_ms: f64,
    /// The slowest.
    pub latency_max_ms: f64,
    /// Successful answers by the server's host name.
    pub hosts: BTreeMap<String, u64>,
}

/// How one held connection fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldSummary {
    /// When the connection was opened, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// How long it was held.
    pub ran_ms: u64,
    /// Lines sent and echoed.
    pub rounds: u64,
    /// What broke the connection, if anything did.
    pub broken: Option<String>,
    /// When it broke, in milliseconds since the start.
    pub broken_at_ms: Option<u64>,
    /// The longest any echo took.
    pub slowest_ms: f64,
    /// The server's host name.
    pub hostname: String,
}

/// What one slice of a closed loop did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchSummary {
    /// Requests answered whole.
    pub requests: u64,
    /// Bytes of their answers' bodies.
    pub bytes: u64,
    /// Requests that failed; each ends its connection's part of the slice.
    pub failed: u64,
    /// Why, the first ones.
    pub errors: Vec<String>,
    /// How long the slice lasted, in microseconds.
    pub wall_us: u64,
    /// CPU time that the load itself took, in microseconds.
    pub cpu_us: u64,
    /// How long requests took (fresh connections: from before connecting).
    pub latencies: Histogram,
}
