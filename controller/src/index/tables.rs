//! The parts of the cluster's objects that matter here, by key, with the sets of what must be looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::names::Key;

/// Objects of one kind.
#[derive(Debug)]
pub(super) struct Table<S>(BTreeMap<Key, S>);

/// What must be computed again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) namespaces: BTreeSet<Arc<str>>,
    pub(super) classes: BTreeSet<Arc<str>>,
    pub(super) gateways: BTreeSet<Key>,
    pub(super) services: BTreeSet<Key>,
    pub(super) slices: BTreeSet<Key>,
    pub(super) pods: BTreeSet<Key>,
    pub(super) routes: BTreeSet<Key>,
}

// === impl Table ===

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S> Table<S> {
    pub(super) fn get(&self, key: &Key) -> Option<&S> {
        self.0.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts what is there now, and gives what was.
    pub(super) fn put(&mut self, key: Key, value: Option<S>) -> Option<S> {
        match value {
            Some(value) => self.0.insert(key, value),
            None => self.0.remove(&key),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &S)> {
        self.0.iter()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// The objects of one namespace.
    pub(super) fn within<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a S)> {
        let first = Key::new(namespace, "");
        self.0
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| &*key.namespace == namespace)
    }
}
