//! Two clocks in one: the wall's, which a certificate's life is measured on, and a steady one for delays.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine.
    System(Instant),
    /// A beginning, and a hand that somebody moves: for tests.
    Hand(SystemTime, watch::Receiver<Duration>),
}

// === impl Clock ===

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self::System(Instant::now())
    }

    /// Stands at `start` until the returned hand is moved.
    pub fn by_hand(start: SystemTime) -> (Self, watch::Sender<Duration>) {
        let (hand, seen) = watch::channel(Duration::ZERO);
        (Self::Hand(start, seen), hand)
    }

    /// The time of day.
    pub(super) fn wall(&self) -> SystemTime {
        match self {
            Self::System(_) => SystemTime::now(),
            Self::Hand(start, hand) => *start + *hand.borrow(),
        }
    }

    /// Since the clock was made; never goes back.
    pub(super) fn elapsed(&self) -> Duration {
        match self {
            Self::System(begun) => begun.elapsed(),
            Self::Hand(_, hand) => *hand.borrow(),
        }
    }

    /// Returns once `elapsed` has reached `at`.
    pub(super) async fn reach(self, at: Duration) {
        match self {
            Self::System(begun) => tokio::time::sleep_until(begun + at).await,
            Self::Hand(_, mut hand) => {
                if hand.wait_for(|elapsed| *elapsed >= at).await.is_err() {
                    // Nobody moves the hand any more.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
