//! Finds objects of a kind by what they say, so that the cost of a change does not grow with the cluster.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::names::Key;
use super::tables::SecondaryIndex;

/// Objects by something that they say.
#[derive(Debug)]
pub(super) struct Lookup<Q>(BTreeMap<Q, Keys>);

/// Nearly always one: a set of its own for each would cost more than the objects.
#[derive(Debug)]
#[allow(
    clippy::box_collection,
    reason = "where there is one, it needs two words"
)]
enum Keys {
    One(Key),
    Many(Box<BTreeSet<Key>>),
}

/// An object that says something by which it is found.
pub(super) trait Says<Q> {
    fn says(&self, key: &Key) -> impl Iterator<Item = Q>;
}

// === impl Lookup ===

impl<Q> Default for Lookup<Q> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Q: Ord> Lookup<Q> {
    /// The objects that say so, in the order of their keys.
    pub(super) fn get<B>(&self, said: &B) -> impl Iterator<Item = &Key> + use<'_, Q, B>
    where
        Q: Borrow<B>,
        B: Ord + ?Sized,
    {
        let (one, many) = match self.0.get(said) {
            None => (None, None),
            Some(Keys::One(key)) => (Some(key), None),
            Some(Keys::Many(keys)) => (None, Some(keys.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// How many say so.
    pub(super) fn count(&self, said: &Q) -> usize {
        match self.0.get(said) {
            None => 0,
            Some(Keys::One(_)) => 1,
            Some(Keys::Many(keys)) => keys.len(),
        }
    }

    pub(super) fn insert(&mut self, said: Q, key: &Key) {
        match self.0.get_mut(&said) {
            None => {
                self.0.insert(said, Keys::One(key.clone()));
            }
            Some(Keys::One(one)) if one == key => {}
            Some(keys @ Keys::One(_)) => {
                let mut many = BTreeSet::from([key.clone()]);
                if let Keys::One(one) = keys {
                    many.insert(one.clone());
                }
                *keys = Keys::Many(many.into());
            }
            Some(Keys::Many(keys)) => {
                keys.insert(key.clone());
            }
        }
    }

    pub(super) fn take(&mut self, said: &Q, key: &Key) {
        let empty = match self.0.get_mut(said) {
            None => false,
            Some(Keys::One(one)) => one == key,
            Some(Keys::Many(keys)) => {
                keys.remove(key);
                keys.is_empty()
            }
        };
        if empty {
            self.0.remove(said);
        }
    }

    /// To be kept for long: what comes in order leaves a tree's nodes half empty.
    pub(super) fn pack(&mut self) {
        for keys in self.0.values_mut() {
            if let Keys::Many(keys) = keys {
                **keys = std::mem::take(&mut **keys).into_iter().collect();
            }
        }
        self.0 = std::mem::take(&mut self.0).into_iter().collect();
    }
}

impl<Q, T> SecondaryIndex<T> for Lookup<Q>
where
    Q: Ord + Debug + Send + Sync,
    T: Says<Q>,
{
    fn add(&mut self, key: &Key, object: &T) {
        for said in object.says(key) {
            self.insert(said, key);
        }
    }

    fn remove(&mut self, key: &Key, object: &T) {
        for said in object.says(key) {
            self.take(&said, key);
        }
    }

    fn pack(&mut self) {
        Lookup::pack(self);
    }
}
