//! How much a peer may ask of us that moves no byte: a credit that time and bytes refill.

use std::time::{Duration, Instant};

use crate::limits::{CONTROL_BURST, CONTROL_RATE, RESET_BURST, RESET_RATE};

/// What both kinds of floods have left on one connection.
#[derive(Debug)]
pub(crate) struct Floods {
    clock: fn() -> Instant,
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
    /// `clock` is looked at only when a credit is used up.
    pub(crate) fn new(clock: fn() -> Instant) -> Self {
        let now = clock();
        Self {
            clock,
            control: Credit::new(CONTROL_BURST, CONTROL_RATE, now),
            resets: Credit::new(RESET_BURST, RESET_RATE, now),
        }
    }

    /// A frame that moves nothing.
    pub(crate) fn control(&mut self) -> Result<(), Flooded> {
        self.control
            .spend(self.clock)
            .then_some(())
            .ok_or(Flooded("too many control frames"))
    }

    /// A DATA frame with bytes, either way: traffic that needs control frames.
    pub(crate) fn moved(&mut self) {
        self.control.left = (self.control.left + 2).min(self.control.burst);
    }

    /// A stream that was opened and came to nothing before we could answer.
    pub(crate) fn reset(&mut self) -> Result<(), Flooded> {
        self.resets
            .spend(self.clock)
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

    fn spend(&mut self, clock: fn() -> Instant) -> bool {
        if self.left == 0 {
            let now = clock();
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
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    fn now() -> Instant {
        NOW.get().unwrap_or_else(|| {
            NOW.set(Some(Instant::now()));
            now()
        })
    }

    #[test]
    fn a_burst_passes_and_time_refills_it() {
        let mut floods = Floods::new(now);
        for _ in 0..RESET_BURST {
            floods.reset().unwrap();
        }
        assert!(floods.reset().is_err());
        NOW.set(Some(now() + Duration::from_secs(1)));
        for _ in 0..RESET_RATE {
            floods.reset().unwrap();
        }
        assert!(floods.reset().is_err());
    }

    #[test]
    fn time_counts_however_often_one_asks() {
        let mut floods = Floods::new(now);
        while floods.reset().is_ok() {}
        let mut passed = 0;
        for _ in 0..1000 {
            NOW.set(Some(now() + Duration::from_millis(1)));
            passed += u32::from(floods.reset().is_ok());
        }
        assert_eq!(passed, RESET_RATE);
    }

    #[test]
    fn bytes_pay_for_control_frames() {
        let mut floods = Floods::new(now);
        for _ in 0..CONTROL_BURST {
            floods.control().unwrap();
        }
        assert!(floods.control().is_err());
        floods.moved();
        floods.control().unwrap();
        floods.control().unwrap();
        assert!(floods.control().is_err());
    }
}
