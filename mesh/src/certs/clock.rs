//! Two clocks in one: the wall's, which a certificate's life is measured on, and a steady one for delays.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine.
    System(Instant),
    /// A beginning, and how far a test has moved it on since.
    Manual(SystemTime, watch::Receiver<Duration>),
}

// === impl Clock ===

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self::System(Instant::now())
    }

    /// Stands at `start` until the returned sender moves it on.
    pub fn manual(start: SystemTime) -> (Self, watch::Sender<Duration>) {
        let (moved, seen) = watch::channel(Duration::ZERO);
        (Self::Manual(start, seen), moved)
    }

    /// The time of day.
    pub(super) fn wall(&self) -> SystemTime {
        match self {
            Self::System(_) => SystemTime::now(),
            Self::Manual(start, passed) => *start + *passed.borrow(),
        }
    }

    /// Since the clock was made; never goes back.
    pub(super) fn elapsed(&self) -> Duration {
        match self {
            Self::System(begun) => begun.elapsed(),
            Self::Manual(_, passed) => *passed.borrow(),
        }
    }

    /// Returns once `elapsed` has reached `at`.
    pub(super) async fn reach(self, at: Duration) {
        match self {
            Self::System(begun) => tokio::time::sleep_until(begun + at).await,
            Self::Manual(_, mut passed) => {
                if passed.wait_for(|elapsed| *elapsed >= at).await.is_err() {
                    // Nobody moves it any more.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
