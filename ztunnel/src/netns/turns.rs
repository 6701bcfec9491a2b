//! Who is visited next: namespaces take turns, and none has more than its share of the threads. Pure.

use std::collections::{HashMap, VecDeque};

use super::NetnsId;

/// What waits, by namespace.
#[derive(Debug)]
pub(super) struct Turns<T> {
    most_in_one: usize,
    most_waiting: usize,
    namespaces: HashMap<NetnsId, Namespace<T>>,
    /// The namespaces of which something waits that may begin; each once.
    turns: VecDeque<NetnsId>,
}

#[derive(Debug)]
struct Namespace<T> {
    waiting: VecDeque<T>,
    inside: usize,
}

/// As much waits for this namespace as may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

// === impl Turns ===

impl<T> Turns<T> {
    /// At most `most_in_one` at once in one namespace, while at most `most_waiting` wait for it.
    pub(super) fn new(most_in_one: usize, most_waiting: usize) -> Self {
        Self {
            most_in_one,
            most_waiting,
            namespaces: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    /// One more visit waits.
    pub(super) fn push(&mut self, id: NetnsId, visit: T) -> Result<(), Full> {
        let namespace = self.namespaces.entry(id).or_insert_with(|| Namespace {
            waiting: VecDeque::new(),
            inside: 0,
        });
        if namespace.waiting.len() >= self.most_waiting {
            return Err(Full);
        }
        if namespace.waiting.is_empty() && namespace.inside < self.most_in_one {
            self.turns.push_back(id);
        }
        namespace.waiting.push_back(visit);
        Ok(())
    }

    /// The next visit, which begins now.
    pub(super) fn next(&mut self) -> Option<(NetnsId, T)> {
        let id = self.turns.pop_front()?;
        let namespace = self.namespaces.get_mut(&id)?;
        let visit = namespace.waiting.pop_front()?;
        namespace.inside += 1;
        if !namespace.waiting.is_empty() && namespace.inside < self.most_in_one {
            self.turns.push_back(id);
        }
        Some((id, visit))
    }

    /// A visit is over.
    pub(super) fn done(&mut self, id: NetnsId) {
        let Some(namespace) = self.namespaces.get_mut(&id) else {
            return;
        };
        let was_full = namespace.inside >= self.most_in_one;
        namespace.inside -= 1;
        if namespace.waiting.is_empty() {
            if namespace.inside == 0 {
                self.namespaces.remove(&id);
            }
        } else if was_full {
            self.turns.push_back(id);
        }
    }

    /// Whether something could begin at once.
    pub(super) fn may_begin(&self) -> bool {
        !self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ino: u64) -> NetnsId {
        NetnsId { dev: 1, ino }
    }

    fn next(turns: &mut Turns<u32>) -> Option<(u64, u32)> {
        turns.next().map(|(id, visit)| (id.ino, visit))
    }

    #[test]
    fn namespaces_take_turns_however_much_one_has() {
        let mut turns = Turns::new(2, 100);
        for visit in 0..50 {
            turns.push(id(1), visit).unwrap();
        }
        turns.push(id(2), 0).unwrap();
        turns.push(id(3), 0).unwrap();
        let began: Vec<_> = std::iter::from_fn(|| next(&mut turns)).collect();
        // Two of the first, and no more until one of them is over.
        assert_eq!(began, [(1, 0), (2, 0), (3, 0), (1, 1)]);
        assert!(!turns.may_begin());
        turns.done(id(1));
        assert_eq!(next(&mut turns), Some((1, 2)));
        assert_eq!(next(&mut turns), None);
        // What waits for one takes no place from another.
        turns.push(id(2), 1).unwrap();
        assert_eq!(next(&mut turns), Some((2, 1)));
    }

    #[test]
    fn what_waits_for_a_namespace_is_bounded_and_a_namespace_that_is_done_is_forgotten() {
        let mut turns = Turns::new(1, 2);
        for visit in 0..2 {
            turns.push(id(1), visit).unwrap();
        }
        assert_eq!(turns.push(id(1), 2), Err(Full));
        turns.push(id(2), 0).unwrap();
        for expected in [(1, 0), (2, 0)] {
            assert_eq!(next(&mut turns), Some(expected));
        }
        turns.push(id(1), 2).unwrap();
        for expected in [(1, 1), (1, 2)] {
            turns.done(id(1));
            assert_eq!(next(&mut turns), Some(expected));
        }
        turns.done(id(1));
        turns.done(id(2));
        assert!(turns.namespaces.is_empty() && turns.turns.is_empty());
    }
}
