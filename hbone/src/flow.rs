//! Flow-control windows (RFC 9113 §5.2, §6.9): what may be sent, and what the peer has been granted.

use crate::frame;
use crate::limits::{INITIAL_WINDOW, LARGEST_WINDOW};

/// The largest window there is.
const MOST: i64 = frame::MAX_WINDOW as i64;

/// What the peer lets us send; a SETTINGS change may take it below zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendWindow(i64);

/// The window grew beyond 2^31-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

/// What we let the peer send on one stream, and what became of it.
///
/// `granted + held` is at most the target, [`INITIAL_WINDOW`] doubled so often: window goes back only
/// for bytes that the application took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiveWindow {
    /// What it may still send.
    granted: u32,
    /// Received, and not taken by the application yet.
    held: u32,
    doubled: u8,
    /// Quarters of the target given back since it was doubled, while the application kept up.
    quarters: u8,
}

/// The peer sent more than it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// The connection's receive window: returned on receipt, so that a stream whose reader stalls never
/// takes it from the others. Memory is bounded by the stream windows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiptWindow {
    size: u32,
    granted: u32,
}

// === impl SendWindow ===

impl SendWindow {
    pub(crate) fn new(size: u32) -> Self {
        Self(i64::from(size))
    }

    pub(crate) fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub(crate) fn take(&mut self, n: usize) {
        self.0 -= i64::try_from(n).unwrap_or(MOST);
    }

    /// By WINDOW_UPDATE, or by a change of the initial window.
    pub(crate) fn shift(&mut self, by: i64) -> Result<(), Overflow> {
        let to = self.0 + by;
        if to > MOST {
            return Err(Overflow);
        }
        self.0 = to;
        Ok(())
    }
}

// === impl ReceiveWindow ===

impl ReceiveWindow {
    pub(crate) fn new() -> Self {
        Self {
            granted: INITIAL_WINDOW,
            held: 0,
            doubled: 0,
            quarters: 0,
        }
    }

    /// A DATA frame begins.
    pub(crate) fn receive(&mut self, n: u32) -> Result<(), Overrun> {
        self.granted = self.granted.checked_sub(n).ok_or(Overrun)?;
        self.held += n;
        Ok(())
    }

    /// The application took `n` bytes; how much window to give back now, in steps of a quarter.
    ///
    /// A stream whose application keeps up has its window doubled with every window it moves: it has
    /// much to say, and a sender that paces itself must see more than it needs. When memory is short it
    /// shrinks back by giving less.
    pub(crate) fn take(&mut self, n: u32, may_grow: bool) -> Option<u32> {
        self.held = self.held.saturating_sub(n);
        if !may_grow {
            (self.doubled, self.quarters) = (0, 0);
        }
        let target = self.target();
        let give = target.checked_sub(self.granted + self.held)?;
        if give < target / 4 {
            return None;
        }
        if may_grow && self.held == 0 {
            self.keeps_up(give);
        }
        let give = self.target() - (self.granted + self.held);
        self.granted += give;
        Some(give)
    }

    fn target(&self) -> u32 {
        INITIAL_WINDOW << self.doubled
    }

    /// The application has taken everything, `give` bytes of it since it last had.
    fn keeps_up(&mut self, give: u32) {
        self.quarters += u8::try_from(give / (self.target() / 4)).unwrap_or(4);
        if self.quarters >= 4 && self.target() < LARGEST_WINDOW {
            (self.doubled, self.quarters) = (self.doubled + 1, 0);
        }
        self.quarters = self.quarters.min(4);
    }
}

// === impl ReceiptWindow ===

impl ReceiptWindow {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            size,
            granted: size,
        }
    }

    /// A DATA frame begins, on whichever stream; how much to give back now.
    pub(crate) fn receive(&mut self, n: u32) -> Result<Option<u32>, Overrun> {
        self.granted = self.granted.checked_sub(n).ok_or(Overrun)?;
        let give = self.size - self.granted;
        if give < self.size / 4 {
            return Ok(None);
        }
        self.granted = self.size;
        Ok(Some(give))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_window_may_go_below_zero_and_never_over_the_top() {
        let mut window = SendWindow::new(10);
        window.take(10);
        window.shift(-5).unwrap();
        assert_eq!(window.room(), 0);
        window.shift(6).unwrap();
        assert_eq!(window.room(), 1);
        assert_eq!(window.shift(MOST), Err(Overflow));
        window.shift(MOST - 1).unwrap();
        assert_eq!(window.room(), usize::try_from(MOST).unwrap());
    }

    #[test]
    fn more_than_was_granted_is_an_overrun() {
        let mut window = ReceiveWindow::new();
        window.receive(INITIAL_WINDOW).unwrap();
        assert_eq!(window.receive(1), Err(Overrun));
    }

    #[test]
    fn window_returns_in_quarters_as_it_is_taken() {
        let mut window = ReceiveWindow::new();
        window.receive(INITIAL_WINDOW / 2).unwrap();
        assert_eq!(window.take(INITIAL_WINDOW / 4 - 1, true), None);
        assert_eq!(window.take(1, true), Some(INITIAL_WINDOW / 4));
        assert_eq!(
            window.take(INITIAL_WINDOW / 4, true),
            Some(INITIAL_WINDOW / 4)
        );
    }

    #[test]
    fn a_window_doubles_to_its_cap_while_the_application_keeps_up() {
        let mut window = ReceiveWindow::new();
        let mut full = INITIAL_WINDOW;
        while full < LARGEST_WINDOW {
            window.receive(full).unwrap();
            assert_eq!(window.take(full, true), Some(full * 2));
            full *= 2;
        }
        window.receive(full).unwrap();
        assert_eq!(window.take(full, true), Some(full));
    }

    #[test]
    fn a_window_doubles_with_every_window_that_was_moved_in_small_pieces() {
        let mut window = ReceiveWindow::new();
        let mut given = 0;
        while given <= INITIAL_WINDOW {
            window.receive(1 << 10).unwrap();
            given += window.take(1 << 10, true).unwrap_or(0);
        }
        // The last of four quarters came with as much again.
        assert_eq!(given, 2 * INITIAL_WINDOW);
    }

    #[test]
    fn a_window_stays_while_bytes_lie_about() {
        let mut window = ReceiveWindow::new();
        window.receive(1).unwrap();
        let mut given = 0;
        for _ in 0..100 {
            window.receive(INITIAL_WINDOW / 8).unwrap();
            given += window.take(INITIAL_WINDOW / 8, true).unwrap_or(0);
            assert!(window.granted <= INITIAL_WINDOW);
        }
        assert!(given > 10 * INITIAL_WINDOW);
    }

    #[test]
    fn a_window_shrinks_by_giving_less_when_memory_is_short() {
        let mut window = ReceiveWindow::new();
        window.receive(INITIAL_WINDOW).unwrap();
        window.take(INITIAL_WINDOW, true);
        // 512 KiB granted; a quarter back at the smaller size only once it is used up.
        window.receive(INITIAL_WINDOW).unwrap();
        assert_eq!(window.take(INITIAL_WINDOW, false), None);
        window.receive(INITIAL_WINDOW).unwrap();
        assert_eq!(window.take(INITIAL_WINDOW, false), Some(INITIAL_WINDOW));
    }

    #[test]
    fn a_stalled_reader_gets_no_window() {
        let mut window = ReceiveWindow::new();
        window.receive(INITIAL_WINDOW).unwrap();
        assert_eq!(window.take(0, true), None);
    }

    #[test]
    fn the_connection_window_returns_on_receipt() {
        let mut window = ReceiptWindow::new(400);
        assert_eq!(window.receive(99), Ok(None));
        assert_eq!(window.receive(1), Ok(Some(100)));
        assert_eq!(window.receive(401), Err(Overrun));
    }
}
