//! The log of the test's process, kept to be asked.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

use super::net::PATIENCE;

#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
}

#[derive(Clone)]
struct Writer(Arc<Lines>);

static LOG: OnceLock<Arc<Lines>> = OnceLock::new();

/// Begins to keep the log, once per process.
pub(crate) fn keep() {
    lines();
}

fn lines() -> &'static Arc<Lines> {
    LOG.get_or_init(|| {
        let lines = Arc::new(Lines::default());
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter("info,ztunnel=debug")
            .with_writer(Writer(lines.clone()))
            .init();
        lines
    })
}

/// Waits for a line of the access log that `wanted` accepts.
pub(crate) fn access(what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    line(what, |line| line["target"] == "access" && wanted(line))
}

/// Waits for a line that `wanted` accepts.
pub(crate) fn line(what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let log = lines();
    let deadline = Instant::now() + PATIENCE;
    let mut lines = log.lines.lock();
    loop {
        let found = lines.iter().find(|line| wanted(line));
        if let Some(line) = found {
            return line.clone();
        }
        if log.more.wait_until(&mut lines, deadline).timed_out() {
            panic!("no line of the log: {what}\n{}", dump_of(&lines));
        }
    }
}

/// The last lines, for a test that fails.
pub(crate) fn dump() -> String {
    dump_of(&lines().lines.lock())
}

fn dump_of(lines: &[Value]) -> String {
    let last = lines.len().saturating_sub(60);
    lines[last..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(line) = serde_json::from_slice(bytes) {
            self.0.lines.lock().push(line);
            self.0.more.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Writer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
