//! What many objects have in common, kept once: texts, what pods of one owner are, what conditions say.

use std::sync::Arc;

use mesh::intern::{Pool, Sweep};

use super::condition::Said;
use super::names::Key;
use super::pods::Template;

/// Owned by the index; objects take their share when they come in.
#[derive(Debug, Default)]
pub(super) struct Common {
    texts: Pool<str>,
    templates: Pool<Template>,
    said: Pool<Said>,
    sweep: Sweep,
}

// === impl Common ===

impl Common {
    /// Makes a text the one that others have.
    pub(super) fn text(&mut self, text: &mut Arc<str>) {
        *text = self.texts.share(Arc::clone(text));
    }

    /// A key's namespace is that of others.
    pub(super) fn key(&mut self, key: &Key) -> Key {
        Key::within(self.texts.share(&*key.namespace), &key.name)
    }

    /// What a pod has in common with others of its owner.
    pub(super) fn template(&mut self, template: &Arc<Template>) -> Arc<Template> {
        if let Some(known) = self.templates.get(template) {
            return known;
        }
        let mut new = Template::clone(template);
        new.share(self);
        self.templates.share(new)
    }

    /// What a condition says.
    pub(super) fn said(&mut self, said: &Arc<Said>) -> Arc<Said> {
        self.said.share(Arc::clone(said))
    }

    /// Drops what nobody holds, now and then.
    pub(super) fn tidy(&mut self) {
        if self.sweep.is_due(self.len()) {
            // In this order: templates hold texts.
            self.templates.drop_unheld();
            self.said.drop_unheld();
            self.texts.drop_unheld();
            self.sweep.done(self.len());
        }
    }

    fn len(&self) -> usize {
        self.texts.len() + self.templates.len() + self.said.len()
    }
}
