//! DECISION: which objects of a namespace bring how much of what every proxy remembers, where a namespace's whole is bounded?
//!
//! In the order of their names, each what those before it have left, so that each replica comes to the same answer. Whoever
//! writes more than the bound takes from their own namespace alone. A change costs at most as many steps as the bound,
//! however many objects there are beyond it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::names::Key;

/// What the objects of a kind bring, by namespace; of each namespace no more than `BOUND` is taken.
#[derive(Debug, Default)]
pub(super) struct Shares<const BOUND: usize>(HashMap<Arc<str>, Share>);

/// What the objects of one namespace bring, by name; those that bring nothing are left out.
#[derive(Debug, Default)]
struct Share {
    counts: BTreeMap<Box<str>, usize>,
    cut: Option<Cut>,
}

/// The first object of which not everything is taken; of those behind it nothing is.
#[derive(Debug)]
struct Cut {
    name: Box<str>,
    taken: usize,
}

// === impl Shares ===

impl<const BOUND: usize> Shares<BOUND> {
    /// An object brings so much now.
    pub(super) fn set(&mut self, key: &Key, count: usize) {
        if count == 0 {
            return self.unset(key);
        }
        let share = self.0.entry(key.namespace.clone()).or_default();
        share.counts.insert(key.name.clone(), count);
        share.settle(key, BOUND);
    }

    /// An object brings nothing, or is gone.
    pub(super) fn unset(&mut self, key: &Key) {
        let Some(share) = self.0.get_mut(&key.namespace) else {
            return;
        };
        if share.counts.remove(&key.name).is_some() {
            share.settle(key, BOUND);
        }
        if share.counts.is_empty() {
            self.0.remove(&key.namespace);
        }
    }

    /// How much of what an object brings is taken at most.
    pub(super) fn allowance(&self, key: &Key) -> usize {
        let share = self.0.get(&key.namespace);
        match share.and_then(|share| share.cut.as_ref()) {
            None => usize::MAX,
            Some(cut) if key.name < cut.name => usize::MAX,
            Some(cut) if key.name == cut.name => cut.taken,
            Some(_) => 0,
        }
    }

    /// The objects of which more or less is taken since this one brings so much instead of so much.
    pub(super) fn contested(&self, key: &Key, was: usize, is: usize) -> Vec<Key> {
        let Some(share) = self.0.get(&key.namespace).filter(|_| was != is) else {
            return Vec::new();
        };
        let mut before = 0;
        let ahead = (Bound::Unbounded, Bound::Excluded(&*key.name));
        for (_, count) in share.counts.range::<str, _>(ahead) {
            before += count;
            if before >= BOUND {
                return Vec::new();
            }
        }
        let (mut less, mut more) = (before + was.min(is), before + was.max(is));
        let mut contested = Vec::new();
        let behind = (Bound::Excluded(&*key.name), Bound::Unbounded);
        for (name, count) in share.counts.range::<str, _>(behind) {
            if less >= BOUND {
                break;
            }
            let taken = |gone: usize| BOUND.saturating_sub(gone).min(*count);
            if taken(less) != taken(more) {
                let namespace = key.namespace.clone();
                contested.push(Key::within(namespace, name));
            }
            less += count;
            more += count;
        }
        contested
    }
}

impl Share {
    /// Finds the cut anew, if this object has to do with it.
    fn settle(&mut self, changed: &Key, bound: usize) {
        if self.cut.as_ref().is_some_and(|cut| cut.name < changed.name) {
            return;
        }
        let mut left = bound;
        // Each brings something: the walk is as short as the bound.
        let cut = self.counts.iter().find(|(_, count)| {
            let over = **count > left;
            if !over {
                left -= **count;
            }
            over
        });
        self.cut = cut.map(|(name, _)| Cut {
            name: name.clone(),
            taken: left,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    #[test]
    fn the_first_by_name_have_their_part_and_the_rest_what_is_left() {
        let mut shares = Shares::<10>::default();
        for (name, count) in [("c", 4), ("a", 4), ("b", 4), ("d", 1)] {
            shares.set(&key(name), count);
        }
        let allowances =
            |shares: &Shares<10>| ["a", "b", "c", "d"].map(|n| shares.allowance(&key(n)));
        assert_eq!(allowances(&shares), [usize::MAX, usize::MAX, 2, 0]);
        assert_eq!(shares.allowance(&Key::new("till", "z")), usize::MAX);
        shares.unset(&key("a"));
        assert_eq!(allowances(&shares), [usize::MAX; 4]);
        // One alone can be too much, too.
        shares.set(&key("a"), 11);
        assert_eq!(allowances(&shares), [10, 0, 0, 0]);
    }

    #[test]
    fn only_those_are_contested_of_which_more_or_less_is_taken() {
        let mut shares = Shares::<10>::default();
        for number in 0..1000 {
            shares.set(&key(&format!("s{number:03}")), 4);
        }
        let contested = |shares: &mut Shares<10>, name: &str, is: usize| {
            shares.set(&key(name), is);
            shares.contested(&key(name), 4, is)
        };
        assert_eq!(contested(&mut shares, "s000", 3), [key("s002")]);
        shares.set(&key("s000"), 4);
        assert_eq!(
            contested(&mut shares, "s001", 0),
            [key("s002"), key("s003")]
        );
        shares.set(&key("s001"), 4);
        assert!(contested(&mut shares, "s500", 400).is_empty());
        assert!(contested(&mut shares, "s002", 3).is_empty());
    }
}
