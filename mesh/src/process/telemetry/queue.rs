//! The queue between whoever logs and the output: a thread that serves connections never waits for a reader of the log.

use std::fmt;
use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that wait for the output. A busy proxy's half second, so that a short stall of the node's disk loses none; some
/// megabytes at most.
const MOST_WAITING: usize = 8 * 1024;

/// Lines that are written at once: one call of the kernel for some hundred of them.
const BATCH: usize = 64 * 1024;

/// How long a process that ends waits for what is still queued. Whoever reads at all reads that much in a second.
const LONGEST_FLUSH: Duration = Duration::from_secs(2);

/// Lines on their way to an output. What does not fit is dropped and counted. Dropping this writes what waits.
#[must_use]
pub struct Queue {
    lines: NonBlocking,
    worker: Option<WorkerGuard>,
}

/// Reads the count at each scrape.
struct Dropped(ErrorCounter);

// === impl Queue ===

impl Queue {
    /// Starts the thread that writes.
    pub fn new(output: impl Write + Send + 'static) -> Self {
        let batches = std::io::BufWriter::with_capacity(BATCH, output);
        let (lines, worker) = NonBlockingBuilder::default()
            .buffered_lines_limit(MOST_WAITING)
            .lossy(true)
            .thread_name("log")
            .finish(batches);
        Self {
            lines,
            worker: Some(worker),
        }
    }

    /// Where lines are put. Never blocks.
    pub fn lines(&self) -> NonBlocking {
        self.lines.clone()
    }

    /// Lines that were dropped so far because nobody read the log as fast as it was written.
    pub fn dropped(&self) -> u64 {
        count(&self.lines.error_counter())
    }

    /// Puts the count of dropped lines where metrics are read.
    pub fn register(&self, registry: &mut Registry) {
        let dropped = Dropped(self.lines.error_counter());
        registry.register_collector(Box::new(dropped));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let worker = self.worker.take();
        let (done, flushed) = mpsc::channel::<()>();
        // The guard complains on standard output when the queue stays full, and would wait there for the reader that is
        // missing: not on this thread, or the process could not end.
        let flush = move || {
            drop(worker);
            drop(done);
        };
        if thread::Builder::new()
            .name("log-end".into())
            .spawn(flush)
            .is_ok()
        {
            // An error either way: that it is done, or that it takes too long.
            let _ = flushed.recv_timeout(LONGEST_FLUSH);
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} dropped)", self.dropped())
    }
}

// === impl Dropped ===

impl Collector for Dropped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let dropped = ConstCounter::new(count(&self.0));
        let metric = encoder.encode_descriptor(
            "ambit_log_lines_dropped",
            "Log lines dropped because nobody read the log as fast as it was written",
            None,
            dropped.metric_type(),
        )?;
        dropped.encode(metric)
    }
}

impl fmt::Debug for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dropped({})", count(&self.0))
    }
}

fn count(dropped: &ErrorCounter) -> u64 {
    u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX)
}
