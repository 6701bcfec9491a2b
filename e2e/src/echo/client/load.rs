//! Fresh connections at a fixed rate, whatever becomes of them: the open loop that shows every lost request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{Ask, millis, say, unix_ms};
use crate::echo::answer::Answer;
use crate::echo::flags::{self, Flags};
use crate::echo::orders::{Order, Orders};
use crate::echo::summary::{Failure, LoadSummary};

/// Requests under way at once; beyond it the machine is the bottleneck, and that is an error of its own.
const MAX_OPEN: usize = 4096;
/// Failures told one by one; the rest are only counted.
const MAX_FAILURES: usize = 100;
/// Latencies kept for the percentiles.
const MAX_SAMPLES: usize = 1 << 20;

/// What to load, how fast and for how long.
#[derive(Debug)]
pub(crate) struct Load {
    ask: Ask,
    rate: u32,
    /// Zero: until told to stop.
    duration: Duration,
    /// For each request.
    timeout: Duration,
    stdin: bool,
}

impl Load {
    pub(super) fn take(ask: Ask, flags: &mut Flags) -> Result<Self> {
        let load = Self {
            ask,
            rate: flags.or("rate", 50, flags::number)?,
            duration: flags.or("duration", Duration::ZERO, flags::duration)?,
            timeout: flags.or("timeout", Duration::from_secs(5), flags::duration)?,
            stdin: flags.or("stdin", false, flags::boolean)?,
        };
        ensure!(load.rate > 0, "--rate=0 would never ask");
        Ok(load)
    }

    /// Prints `ready` after the first success, and the summary at the end; true if nothing failed.
    pub(super) async fn main(self) -> Result<bool> {
        let mut orders = Orders::listen(self.stdin).context("signals")?;
        let mut run = Run::begin(&self);
        let mut pace = pace(self.rate);
        let end = deadline(self.duration);
        tokio::pin!(end);
        let quit = loop {
            tokio::select! {
                _ = pace.tick() => run.begin_one(&self),
                Some(done) = run.open.join_next() => run.note(done)?,
                () = &mut end => break false,
                order = orders.next() => match order {
                    Order::Now => say(&run.json()?)?,
                    Order::Stop => break false,
                    Order::Quit => break true,
                },
            }
        };
        run.ran_ms = Some(millis(run.start));
        while !quit && !run.open.is_empty() {
            tokio::select! {
                Some(done) = run.open.join_next() => run.note(done)?,
                order = orders.next() => match order {
                    Order::Quit => break,
                    Order::Stop | Order::Now => {}
                },
            }
        }
        say(&run.json()?)?;
        Ok(run.summary.failed == 0)
    }
}

/// Ticks that are late are made up for.
fn pace(rate: u32) -> Interval {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    pace
}

/// Ends after `duration`; never, if it is zero.
pub(super) async fn deadline(duration: Duration) {
    if duration.is_zero() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(duration).await;
}

/// How one request ended.
struct Done {
    at_ms: u64,
    took: Duration,
    result: Result<Answer>,
}

/// A run so far.
struct Run {
    start: Instant,
    ask: Arc<Ask>,
    open: JoinSet<Done>,
    samples: Vec<Duration>,
    ran_ms: Option<u64>,
    summary: LoadSummary,
}

impl Run {
    fn begin(load: &Load) -> Self {
        Self {
            start: Instant::now(),
            ask: Arc::new(load.ask.clone()),
            open: JoinSet::new(),
            samples: Vec::new(),
            ran_ms: None,
            summary: LoadSummary {
                started_unix_ms: unix_ms(),
                hosts: BTreeMap::new(),
                ..LoadSummary::default()
            },
        }
    }

    fn begin_one(&mut self, load: &Load) {
        self.summary.sent += 1;
        let at_ms = millis(self.start);
        if self.open.len() >= MAX_OPEN {
            self.failed(
                at_ms,
                format!("not sent: {MAX_OPEN} requests are under way"),
            );
            return;
        }
        let (ask, timeout) = (self.ask.clone(), load.timeout);
        self.open.spawn(async move {
            let start = Instant::now();
            let result = match tokio::time::timeout(timeout, ask.once()).await {
                Ok(Ok(answer)) if (200..300).contains(&answer.status) => Ok(answer),
                Ok(Ok(answer)) => Err(anyhow!("status {}", answer.status)),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(anyhow!("no answer within {timeout:?}")),
            };
            Done {
                at_ms,
                took: start.elapsed(),
                result,
            }
        });
    }

    fn note(&mut self, done: Result<Done, tokio::task::JoinError>) -> Result<()> {
        let done = done.context("a request's task died")?;
        match done.result {
            Ok(answer) => {
                self.summary.ok += 1;
                if self.summary.ok == 1 {
                    say("ready\n")?;
                }
                if self.samples.len() < MAX_SAMPLES {
                    self.samples.push(done.took);
                }
                let host = answer.hostname().unwrap_or_default().to_owned();
                *self.summary.hosts.entry(host).or_default() += 1;
            }
            Err(error) => self.failed(done.at_ms, format!("{error:#}")),
        }
        Ok(())
    }

    fn failed(&mut self, at_ms: u64, error: String) {
        self.summary.failed += 1;
        if self.summary.errors.len() < MAX_FAILURES {
            self.summary.errors.push(Failure { at_ms, error });
        }
    }

    /// The summary so far as one line.
    fn json(&mut self) -> Result<String> {
        self.samples.sort_unstable();
        let summary = &mut self.summary;
        summary.ran_ms = self.ran_ms.unwrap_or_else(|| millis(self.start));
        summary.unfinished = summary.sent - summary.ok - summary.failed;
        summary.latency_p50_ms = percentile(&self.samples, 50);
        summary.latency_p99_ms = percentile(&self.samples, 99);
        summary.latency_max_ms = percentile(&self.samples, 100);
        Ok(serde_json::to_string(summary)? + "\n")
    }
}

/// The `percent`th percentile of sorted samples, in milliseconds; zero of none.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted
        .get(rank)
        .map_or(0.0, |sample| sample.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let samples: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        for (percent, ms) in [(50, 100.0), (99, 198.0), (100, 200.0)] {
            assert!(
                (percentile(&samples, percent) - ms).abs() < 1e-9,
                "{percent}"
            );
        }
        assert!(percentile(&[], 99).abs() < 1e-9);
    }
}
