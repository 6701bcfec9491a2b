//! How much a peer may ask of us that moves no byte: a credit that time and bytes refill.

use std::time::{Duration, Instant};

use crate::limits::{CONTROL_BURST, CONTROL_RATE, RESET_BURST, RESET_RATE};

/// What both kinds of floods have left on one connection.
#[derive(Debug)]
pub(crate) struct Floods {
    control: Credit,
    resets: Credit,
}

/// A peer asked for more than its credit: which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flooded(pub(crate) &'static str);

/// Tokens up to a burst, refilled at a rate per second.
#[derive(Debug)]
struct Credit {
    left: u32,
    burst: u32,
    rate: u32,
    refilled: Instant,
}

// === impl Floods ===

impl Floods {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            control: Credit::new(CONTROL_BURST, CONTROL_RATE, now),
            resets: Credit::new(RESET_BURST, RESET_RATE, now),
        }
    }

    /// A frame that moves nothing.
    pub(crate) fn control(&mut self, now: Instant) -> Result<(), Flooded> {
        self.control
            .spend(now)
            .then_some(())
            .ok_or(Flooded("too many control frames"))
    }

    /// A DATA frame with bytes, either way: traffic that needs control frames.
    pub(crate) fn moved(&mut self) {
        self.control.left = (self.control.left + 2).min(self.control.burst);
    }

    /// A stream that was opened and came to nothing before we could answer.
    pub(crate) fn reset(&mut self, now: Instant) -> Result<(), Flooded> {
        self.resets
            .spend(now)
            .then_some(())
            .ok_or(Flooded("too many streams opened and reset"))
    }
}

// === impl Credit ===

impl Credit {
    fn new(burst: u32, rate: u32, now: Instant) -> Self {
        Self {
            left: burst,
            burst,
            rate,
            refilled: now,
        }
    }

    fn spend(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            let per_token = Duration::from_secs(1) / self.rate;
            let since = now.saturating_duration_since(self.refilled);
            let tokens = since.as_nanos() / per_token.as_nanos();
            if tokens > 0 {
                self.left = u32::try_from(tokens).unwrap_or(u32::MAX).min(self.burst);
                self.refilled = now;
            }
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_time_refills_it() {
        let start = Instant::now();
        let mut floods = Floods::new(start);
        for _ in 0..RESET_BURST {
            floods.reset(start).unwrap();
        }
        assert!(floods.reset(start).is_err());
        let later = start + Duration::from_secs(1);
        for _ in 0..RESET_RATE {
            floods.reset(later).unwrap();
        }
        assert!(floods.reset(later).is_err());
    }

    #[test]
    fn bytes_pay_for_control_frames() {
        let start = Instant::now();
        let mut floods = Floods::new(start);
        for _ in 0..CONTROL_BURST {
            floods.control(start).unwrap();
        }
        assert!(floods.control(start).is_err());
        floods.moved();
        floods.control(start).unwrap();
        floods.control(start).unwrap();
        assert!(floods.control(start).is_err());
    }
}
