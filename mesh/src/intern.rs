//! Values that many hold in common, kept once: texts, and whatever else is the same on many workloads.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::workload::{Location, Template};

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

/// What the workloads of a world have in common.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: Pool<str>,
    templates: Pool<Template>,
    locations: Pool<Location>,
    sweep: Sweep,
}

/// Fewer values than this are not worth a sweep.
const SWEEP_AT_LEAST: usize = 1024;

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

// === impl Interner ===

impl Interner {
    /// The text, shared.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.share(text)
    }

    pub(crate) fn template(&mut self, template: Template) -> Arc<Template> {
        self.templates.share(template)
    }

    pub(crate) fn location(&mut self, location: Location) -> Arc<Location> {
        self.locations.share(location)
    }

    /// Drops what nobody holds, now and then.
    pub(crate) fn tidy(&mut self) {
        if self.sweep.is_due(self.len()) {
            // In this order: templates and locations hold texts.
            self.templates.drop_unheld();
            self.locations.drop_unheld();
            self.texts.drop_unheld();
            self.sweep.done(self.len());
        }
    }

    fn len(&self) -> usize {
        self.texts.len() + self.templates.len() + self.locations.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_shared_and_what_is_not_goes() {
        let mut interner = Interner::default();
        let held = interner.text("held");
        for number in 0..10 * SWEEP_AT_LEAST {
            let one = interner.text(&number.to_string());
            assert!(Arc::ptr_eq(&one, &interner.text(&number.to_string())));
            assert!(Arc::ptr_eq(&held, &interner.text("held")));
            drop(one);
            interner.tidy();
            assert!(interner.len() <= SWEEP_AT_LEAST);
        }
    }
}
