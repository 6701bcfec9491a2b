//! Whose turn it is: streams that begin to speak go before those that had more to say than a turn allows.

use std::collections::VecDeque;

use crate::session::Key;

/// Streams that begin to speak served in a row, while one that had more to say waits.
const FRESH_IN_A_ROW: usize = 8;

/// The streams of one connection that have something to do; each stands in it once.
///
/// A small message thus waits for the turn that is being taken and for its like, not for all that
/// others have to send: the idea of RFC 8290 (FQ-CoDel) §4.1, with turns for packets.
#[derive(Debug, Default)]
pub(super) struct Queue {
    fresh: VecDeque<Key>,
    /// Those that have more after a full turn.
    long: VecDeque<Key>,
    /// Fresh ones served since a long one was.
    in_a_row: usize,
}

// === impl Queue ===

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.long.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push_fresh(&mut self, key: Key) {
        self.fresh.push_back(key);
    }

    pub(super) fn push_long(&mut self, key: Key) {
        self.long.push_back(key);
    }

    pub(super) fn pop(&mut self) -> Option<Key> {
        if (self.in_a_row < FRESH_IN_A_ROW || self.long.is_empty())
            && let Some(key) = self.fresh.pop_front()
        {
            self.in_a_row += 1;
            return Some(key);
        }
        self.in_a_row = 0;
        self.long.pop_front()
    }

    pub(super) fn get(&self, at: usize) -> Option<Key> {
        let long = || self.long.get(at - self.fresh.len());
        self.fresh.get(at).or_else(long).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::from_bits(n)
    }

    #[test]
    fn who_begins_to_speak_goes_first() {
        let mut queue = Queue::default();
        queue.push_long(key(1));
        queue.push_fresh(key(2));
        queue.push_fresh(key(3));
        assert_eq!((queue.get(0), queue.get(2)), (Some(key(2)), Some(key(1))));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [2, 3, 1].map(key));
        assert!(queue.is_empty());
    }

    #[test]
    fn who_has_much_to_say_is_not_kept_waiting_for_ever() {
        let mut queue = Queue::default();
        queue.push_long(key(0));
        for n in 1..100 {
            queue.push_fresh(key(n));
            if queue.pop() == Some(key(0)) {
                return assert!(n as usize <= FRESH_IN_A_ROW + 1);
            }
        }
        panic!("served only fresh ones");
    }
}
