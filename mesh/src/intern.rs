//! Texts, templates and locations that many workloads have in common, kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::workload::{Location, Template};

/// Values that are handed out again for as long as somebody holds them.
///
/// Owned by the one who writes the world; readers hold what it hands out and never see it.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: HashSet<Arc<str>>,
    templates: HashSet<Arc<Template>>,
    locations: HashSet<Arc<Location>>,
    /// At this many values those that nobody holds any more are dropped.
    sweep_at: usize,
}

/// Fewer values than this are not worth a sweep.
const SWEEP_AT_LEAST: usize = 1024;

impl Interner {
    /// The text, shared.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new = Arc::from(text);
        self.texts.insert(Arc::clone(&new));
        new
    }

    pub(crate) fn template(&mut self, template: Template) -> Arc<Template> {
        shared(&mut self.templates, template)
    }

    pub(crate) fn location(&mut self, location: Location) -> Arc<Location> {
        shared(&mut self.locations, location)
    }

    /// Drops what nobody holds, once there may be as much of it as of what is held: a constant cost per value made.
    pub(crate) fn tidy(&mut self) {
        if self.len() < self.sweep_at.max(SWEEP_AT_LEAST) {
            return;
        }
        // In this order: templates and locations hold texts.
        self.templates.retain(|one| Arc::strong_count(one) > 1);
        self.locations.retain(|one| Arc::strong_count(one) > 1);
        self.texts.retain(|one| Arc::strong_count(one) > 1);
        self.sweep_at = 2 * self.len();
    }

    fn len(&self) -> usize {
        self.texts.len() + self.templates.len() + self.locations.len()
    }
}

fn shared<T: Hash + Eq>(all: &mut HashSet<Arc<T>>, one: T) -> Arc<T> {
    if let Some(known) = all.get(&one) {
        return Arc::clone(known);
    }
    let new = Arc::new(one);
    all.insert(Arc::clone(&new));
    new
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
