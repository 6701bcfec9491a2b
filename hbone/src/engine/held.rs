//! Bytes that an application has not taken yet, counted against the thread's budget.

use std::cell::Cell;
use std::io::IoSlice;

use crate::limits::BUDGET;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// What one stream holds. Empty, it has no memory; and it is a pointer, because it almost always is.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<Box<Backlog>>);

#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// What of it is gone already.
    at: usize,
}

/// Whether windows may grow.
pub(crate) fn may_grow() -> bool {
    HELD.get() < BUDGET / 2
}

/// Whether new streams are welcome.
pub(crate) fn has_room() -> bool {
    HELD.get() < BUDGET
}

// === impl Held ===

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Appends all of `slices` but the first `skip` bytes.
    pub(crate) fn push(&mut self, slices: &[IoSlice<'_>], mut skip: usize) {
        for slice in slices {
            let from = skip.min(slice.len());
            skip -= from;
            let rest = &slice[from..];
            if rest.is_empty() {
                continue;
            }
            let backlog = self.0.get_or_insert_default();
            backlog.bytes.extend_from_slice(rest);
            HELD.set(HELD.get() + rest.len());
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Some(backlog) => &backlog.bytes[backlog.at..],
            None => &[],
        }
    }

    /// Forgets the first `n` bytes.
    pub(crate) fn consume(&mut self, n: usize) {
        let Some(backlog) = &mut self.0 else { return };
        backlog.at += n;
        release(n);
        if backlog.at == backlog.bytes.len() {
            self.0 = None;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        release(self.bytes().len());
    }
}

/// A pipe's bytes may be let go of on another thread than its engine's, or by one that is ending.
fn release(n: usize) {
    let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(n)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_and_the_budget_with_them() {
        let mut held = Held::default();
        held.push(&[IoSlice::new(b"abc"), IoSlice::new(b"def")], 4);
        assert_eq!((held.bytes(), HELD.get()), (&b"ef"[..], 2));
        held.consume(1);
        held.push(&[IoSlice::new(b"g")], 0);
        assert_eq!((held.bytes(), HELD.get()), (&b"fg"[..], 2));
        held.consume(2);
        assert!(held.is_empty() && HELD.get() == 0);
        held.push(&[IoSlice::new(&[0; BUDGET])], 0);
        assert!(!may_grow() && !has_room());
        drop(held);
        assert!(may_grow() && HELD.get() == 0);
    }
}
