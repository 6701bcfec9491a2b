//! What a waypoint of the tests has logged.

use std::io;
use std::sync::Arc;

use tokio::sync::{Mutex, Notify};

/// Lines from any thread.
#[derive(Clone, Default)]
pub struct Log(pub(super) Arc<Lines>);

#[derive(Default)]
pub struct Lines(pub(super) Mutex<Vec<u8>>, pub(super) Notify);

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0
            .0
            .try_lock()
            .expect("one thread")
            .extend_from_slice(line);
        self.0.1.notify_waiters();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> tracing_subscriber::fmt::MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
