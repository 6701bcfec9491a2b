//! What the workloads of a world have in common, kept once.

use std::sync::Arc;

use super::{Location, Template};
use crate::intern::{Pool, Sweep};

/// What the workloads of a world have in common.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: Pool<str>,
    templates: Pool<Template>,
    locations: Pool<Location>,
    sweep: Sweep,
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
    use crate::intern::SWEEP_AT_LEAST;

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
