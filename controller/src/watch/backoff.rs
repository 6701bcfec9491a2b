//! How long to wait before the API server is asked again.

use std::time::Duration;

/// Soon enough that a connection that broke costs nothing ...
const FIRST: Duration = Duration::from_millis(200);
/// ... and no longer than this, so that a server that is back is found at once by people's measure. A dozen watches of
/// two replicas make a few calls in that time: no load even for a server in trouble.
const LAST: Duration = Duration::from_secs(15);

/// Doubles from failure to failure.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// The pause after one more failure: between half and all of what is due, so that watches do not come in step; and
    /// not less than the server asked for.
    pub(super) fn pause(&mut self, wanted: Option<Duration>) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(LAST);
        let pause = due.mul_f64(0.5 + 0.5 * fastrand::f64());
        pause.max(wanted.unwrap_or_default())
    }
}
