//! Values that many hold in common, kept once: texts, and whatever else is the same on many workloads.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Values of one type that are handed out again for as long as somebody holds them.
///
/// Owned by the one who writes; readers hold what it hands out and never see it.
#[derive(Debug)]
pub struct Pool<T: ?Sized>(HashSet<Arc<T>>);

/// When pools are worth a look at what nobody holds any more: a constant cost per value made.
#[derive(Debug, Default)]
pub struct Sweep {
    /// At this many values.
    at: usize,
}

/// Fewer values than this are not worth a sweep.
pub(crate) const SWEEP_AT_LEAST: usize = 1024;

// === impl Pool ===

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    /// The value, shared.
    pub fn share<B: Borrow<T> + Into<Arc<T>>>(&mut self, one: B) -> Arc<T> {
        if let Some(known) = self.get(one.borrow()) {
            return known;
        }
        let new = one.into();
        self.0.insert(Arc::clone(&new));
        new
    }

    /// The value, if it has been shared.
    pub fn get(&self, one: &T) -> Option<Arc<T>> {
        self.0.get(one).map(Arc::clone)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops what nobody else holds. Pools whose values hold those of others come before them.
    pub fn drop_unheld(&mut self) {
        self.0.retain(|one| Arc::strong_count(one) > 1);
    }
}

// === impl Sweep ===

impl Sweep {
    /// Whether there may be as much of what nobody holds as of what is held.
    pub fn is_due(&self, values: usize) -> bool {
        values >= self.at.max(SWEEP_AT_LEAST)
    }

    /// So many were held.
    pub fn done(&mut self, held: usize) {
        self.at = 2 * held;
    }
}
