//! What a request met on its way: the rule of a route, and its backend.

use std::sync::Arc;

use mesh::route::{Filter, RouteName, Rule};

/// The rule that a request met, and the backend that was chosen for it.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    pub(crate) route: RouteName,
    pub(crate) rule: Arc<Rule>,
    /// Its place among the rule's.
    pub(crate) backend: Option<usize>,
}

// === impl Routed ===

impl Routed {
    /// The rule's filters, then those of the chosen backend.
    pub(crate) fn filters(&self) -> impl Iterator<Item = &Filter> {
        let backend = self.backend.and_then(|index| self.rule.backends.get(index));
        self.rule.filters.iter().chain(
            backend
                .map(|backend| &backend.filters[..])
                .unwrap_or_default(),
        )
    }
}
