//! DECISION: what is to be taken away although the table does not speak of it: a leader before this one made it.
//!
//! The index wants roots taken away where it has seen that they are no longer needed. One that started since has seen
//! nothing; the ConfigMap is there all the same. What runs for a Gateway needs none of this: the index finds it by its owner.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::index::desired::{DesiredState, Entry, Item, Wanted};

/// Namespaces in which roots have been seen.
#[derive(Debug, Default)]
pub(super) struct Strays(BTreeSet<Arc<str>>);

// === impl Strays ===

impl Strays {
    /// Whether it is news that there are roots, ours or not, in this namespace.
    pub(super) fn seen(&mut self, namespace: &Arc<str>) -> bool {
        self.0.insert(namespace.clone())
    }

    /// There are none of ours any more.
    pub(super) fn gone(&mut self, namespace: &Arc<str>) {
        self.0.remove(namespace);
    }

    /// The table, and what it does not speak of. An empty one is of an index that does not know yet what there is: the
    /// mesh's own namespace always has roots.
    pub(super) fn complete(&self, mut table: DesiredState) -> DesiredState {
        if table.is_empty() {
            return table;
        }
        for namespace in &self.0 {
            let item = Item::Roots(namespace.clone());
            if !table.contains_key(&item) {
                table.insert(item, Arc::new(Entry::leader(Wanted::NoRoots)));
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_table_that_is_there_does_not_speak_of_is_a_stray() {
        let mut strays = Strays::default();
        assert!(strays.seen(&"old".into()) && strays.seen(&"used".into()));
        assert!(!strays.seen(&"old".into()));
        assert!(strays.complete(DesiredState::default()).is_empty());
        let used = Item::Roots("used".into());
        let entry = Arc::new(Entry::leader(Wanted::Roots));
        let table = strays.complete(DesiredState::unit(used.clone(), entry));
        assert_eq!(table[&used].wanted, Wanted::Roots);
        assert_eq!(table[&Item::Roots("old".into())].wanted, Wanted::NoRoots);
        assert_eq!(table.len(), 2);
        strays.gone(&"old".into());
        assert_eq!(
            strays
                .complete(table.without(&Item::Roots("old".into())))
                .len(),
            1
        );
    }
}
