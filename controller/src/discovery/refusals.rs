//! Callers that are refused: all are counted, and as many are logged as people can read.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use crate::discovery::authenticate::Caller;
use crate::metrics::Metrics;
use crate::rate::{Bucket, Rate};

/// A caller who is refused a thousand times a second must not push everything else out of the log.
const LINES: Rate = Rate {
    burst: 100,
    per_second: 10,
};

/// Where refusals go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Refusals {
    metrics: Metrics,
    log: Arc<Mutex<Log>>,
}

#[derive(Debug)]
struct Log {
    lines: Bucket,
    unlogged: u64,
}

// === impl Refusals ===

impl Refusals {
    /// None so far.
    pub fn new(metrics: Metrics) -> Self {
        let lines = Bucket::new(LINES, Instant::now());
        let log = Log { lines, unlogged: 0 };
        Self {
            metrics,
            log: Arc::new(Mutex::new(log)),
        }
    }

    /// One more, of this service; the caller, if it was recognised.
    pub fn note(
        &self,
        service: &'static str,
        peer: Option<SocketAddr>,
        caller: Option<&Caller>,
        status: &Status,
    ) {
        self.metrics.refused(service, status.code());
        let Some(unlogged) = self.line() else {
            return;
        };
        tracing::warn!(
            service,
            ?peer,
            pod = caller.and_then(|caller| caller.pod.as_deref()),
            node = caller.and_then(|caller| caller.node.as_deref()),
            account = caller.map(|caller| caller.account.to_string()),
            code = ?status.code(),
            reason = status.message(),
            unlogged,
            "refused"
        );
    }

    /// Whether there is room for a line, and how many there was none for before.
    fn line(&self) -> Option<u64> {
        let mut log = self.log.lock();
        if log.lines.take(Instant::now()) {
            return Some(std::mem::take(&mut log.unlogged));
        }
        log.unlogged += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_is_counted_and_a_few_lines_are_written() {
        let refusals = Refusals::new(Metrics::default());
        let written =
            |refusals: &Refusals| (0..10_000).filter(|_| refusals.line().is_some()).count();
        assert_eq!(written(&refusals), 100);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(refusals.line(), Some(9900), "how many were left out");
        assert_eq!(written(&refusals), 9);
    }
}
