//! The objects of one kind, by key, with what must be looked at again and what finds them by something else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;

use super::ahead::Ahead;
use super::names::{Key, Named};

/// Objects of one kind.
#[derive(Debug)]
pub(super) struct Table<T: super::kinds::Stored> {
    objects: BTreeMap<Key, Arc<T>>,
    /// Changes that the objects do not show yet.
    pub(super) ahead: Ahead<T>,
    dirty: BTreeSet<Key>,
    lookup: T::Lookup,
    /// What was there when the list began that goes on, and was not told of since: at its end it is gone.
    unseen: BTreeSet<Key>,
    /// A list has ended once.
    listed: bool,
}

/// Finds objects of a kind by what they say; kept by their table.
pub(super) trait SecondaryIndex<T>: Debug + Default + Send + Sync {
    /// The object has come.
    fn add(&mut self, key: &Key, object: &T);
    /// The object has gone: exactly what was added.
    fn remove(&mut self, key: &Key, object: &T);
    /// A whole list has come.
    fn pack(&mut self) {}
}

// === impl Table ===

impl<T: super::kinds::Stored> Default for Table<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            ahead: Ahead::default(),
            dirty: BTreeSet::new(),
            lookup: T::Lookup::default(),
            unseen: BTreeSet::new(),
            listed: false,
        }
    }
}

impl<T: super::kinds::Stored> Table<T> {
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<T>> {
        self.objects.get(key)
    }

    /// The key that the table holds, which all share.
    pub(super) fn key(&self, key: &Key) -> Option<&Key> {
        self.objects.get_key_value(key).map(|(known, _)| known)
    }

    /// An object by its name, which costs no allocation.
    pub(super) fn named(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.objects.get(&(namespace, name) as &dyn Named)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Puts what is there now, and gives what was.
    pub(super) fn put(&mut self, key: &Key, now: Option<&Arc<T>>) -> Option<Arc<T>> {
        let before = match now {
            Some(now) => self.objects.insert(key.clone(), now.clone()),
            None => self.objects.remove(key),
        };
        if let Some(before) = &before {
            self.lookup.remove(key, before);
        }
        if let Some(now) = now {
            self.lookup.add(key, now);
        }
        before
    }

    /// The objects of one namespace.
    pub(super) fn within<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<T>)> {
        let first = (namespace, "");
        let first: Bound<&dyn Named> = Bound::Included(&first);
        self.objects
            .range::<dyn Named + '_, _>((first, Bound::Unbounded))
            .take_while(move |(key, _)| &*key.namespace == namespace)
    }

    /// What finds the objects by something else than their key.
    pub(super) fn lookup(&self) -> &T::Lookup {
        &self.lookup
    }

    /// It must be looked at again.
    pub(super) fn mark(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    /// They must be looked at again.
    pub(super) fn mark_each(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.dirty.extend(keys);
    }

    /// All objects of a namespace must be looked at again.
    pub(super) fn mark_within(&mut self, namespace: &str) {
        let keys: Vec<Key> = self.within(namespace).map(|(key, _)| key.clone()).collect();
        self.mark_each(keys);
    }

    /// Everything must be looked at again.
    pub(super) fn mark_all(&mut self) {
        self.dirty.extend(self.objects.keys().cloned());
    }

    /// What must be looked at again, once.
    pub(super) fn take_marked(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        let there = self.objects.keys().chain(self.ahead.keys());
        self.unseen = there.cloned().collect();
    }

    /// It is in the list, or was told of while it went on.
    pub(super) fn see(&mut self, key: &Key) {
        self.unseen.remove(key);
    }

    /// The list has ended: these were there before it, and are not in it.
    pub(super) fn end(&mut self) -> BTreeSet<Key> {
        self.listed = true;
        // A list comes in order, which leaves a tree's nodes half empty.
        self.objects = std::mem::take(&mut self.objects).into_iter().collect();
        self.lookup.pack();
        std::mem::take(&mut self.unseen)
    }

    /// There is no list, because there is no such kind. What is known from before stays: an API server that starts may
    /// not know its kinds yet.
    pub(super) fn absent(&mut self) {
        self.listed = true;
    }

    /// Whether a list has ended once.
    pub(super) fn listed(&self) -> bool {
        self.listed
    }
}

// === impl SecondaryIndex ===

impl<T> SecondaryIndex<T> for () {
    fn add(&mut self, _key: &Key, _object: &T) {}

    fn remove(&mut self, _key: &Key, _object: &T) {}
}
