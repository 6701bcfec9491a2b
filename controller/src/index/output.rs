//! What has been told of the index's state, so that only differences go out.

mod published;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::published::Published;
use super::changes::{Changes, Notice, PodPlacement, Resources, Target, Write};
use super::kinds::Kind;
use super::names::Key;
use crate::index::desired::{Entry, Item, Wanted, Writer};

/// The index's side of everybody who acts on it.
#[derive(Debug, Default)]
pub(super) struct Output {
    published: Published,
    /// How Kubernetes should be, where it is not.
    desired: BTreeMap<Item, Arc<Entry>>,
    /// How many statuses stand there.
    outstanding: usize,
    changes: Changes,
}

// === impl Output ===

impl Output {
    /// What became different since the last time.
    pub(super) fn take_changes(&mut self) -> Changes {
        let changes = std::mem::take(&mut self.changes);
        // Nearly everything, as at first.
        if changes.resources.len() >= self.published.len() {
            self.published.pack();
        }
        changes
    }

    /// How many statuses are not as they should be.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// The objects whose status is not as it should be.
    pub(super) fn outstanding_targets(&self) -> impl Iterator<Item = &Target> {
        self.desired.keys().map_while(|item| match item {
            Item::Status(target) => Some(target),
            _ => None,
        })
    }

    /// An object is the source of these resources, and of no others.
    pub(super) fn publish(&mut self, kind: Kind, key: &Key, now: Resources) {
        self.published
            .replace(kind, key, now, &mut self.changes.resources);
    }

    /// An object's status should be written so; `None`: it is as it should be.
    pub(super) fn want(&mut self, kind: Kind, key: &Key, write: Option<Write>, writer: Writer) {
        let item = Item::Status(Target::new(kind, key));
        let entry = |wanted| Entry { wanted, writer };
        self.desire(item, write.map(Wanted::Status).map(entry));
    }

    /// These are the Events that an object has as long as it is what it is.
    pub(super) fn events(&mut self, target: Target, notices: Vec<Notice>) {
        let wanted = (!notices.is_empty()).then_some(Wanted::Events(notices));
        self.desire(Item::Events(target), wanted.map(Entry::leader));
    }

    /// Puts an entry into the table of desired state, or takes it out.
    pub(super) fn desire(&mut self, item: Item, entry: Option<Entry>) {
        let status = usize::from(matches!(item, Item::Status(_)));
        let before = self.desired.get(&item);
        match entry {
            None => {
                if self.desired.remove(&item).is_some() {
                    self.outstanding -= status;
                    self.changes.desired.push((item, None));
                }
            }
            Some(entry) if before.is_some_and(|before| before.asks_the_same(&entry)) => {}
            Some(entry) => {
                let entry = Arc::new(entry);
                let before = self.desired.insert(item.clone(), entry.clone());
                if before.is_none() {
                    self.outstanding += status;
                }
                self.changes.desired.push((item, Some(entry)));
            }
        }
    }

    /// Where a pod runs.
    pub(super) fn place(&mut self, key: &Key, now: Option<PodPlacement>) {
        let now = now.map(Arc::new);
        let Some(before) = self.published.place(Kind::Pod, key, now.as_ref()) else {
            return;
        };
        let told = &mut self.changes.placements;
        told.extend(before.map(|before| (before.uid.clone(), None)));
        told.extend(now.map(|now| (now.uid.clone(), Some(now))));
    }
}
