//! What the kernel says of this process: memory, and time on a core by thread name.

use std::time::{Duration, Instant};

/// Latencies of one sort.
#[derive(Debug, Default, Clone)]
pub(crate) struct Latencies(Vec<Duration>);

// === impl Latencies ===

impl Latencies {
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub(crate) fn join(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds; `share` of them are no longer.
    pub(crate) fn percentile(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let Some(last) = self.0.len().checked_sub(1) else {
            return f64::NAN;
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let at = (last as f64 * share).round() as usize;
        milliseconds(self.0[at])
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().split(' ').next()?.parse().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// The same, once it no longer moves: what was needed for a moment is given back a moment later.
pub(crate) fn settled() -> u64 {
    let mut before = resident();
    let mut calm = 0;
    while calm < 5 {
        std::thread::sleep(Duration::from_millis(200));
        let now = resident();
        let moved = now.abs_diff(before) > before / 500;
        calm = if moved { 0 } else { calm + 1 };
        before = now;
    }
    before
}

/// Time on a core that threads whose name begins so have taken.
pub(crate) fn cpu(name: &str) -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    let mut nanoseconds = 0;
    for task in tasks.flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").starts_with(name) {
            let on_core = read("schedstat");
            nanoseconds += on_core
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0u64);
        }
    }
    Duration::from_nanos(nanoseconds)
}

/// Time on a core of those threads while it is measured.
pub(crate) struct Cpu {
    name: &'static str,
    begun: Duration,
    at: Instant,
}

impl Cpu {
    pub(crate) fn begin(name: &'static str) -> Self {
        Self {
            name,
            begun: cpu(name),
            at: Instant::now(),
        }
    }

    /// Time on a core, and how many cores that is.
    pub(crate) fn end(&self) -> (Duration, f64) {
        let taken = cpu(self.name).saturating_sub(self.begun);
        (taken, taken.as_secs_f64() / self.at.elapsed().as_secs_f64())
    }
}
