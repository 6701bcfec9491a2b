//! One type of one stream: what the client has, and which differences it is told next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::delta::{Batch, Delta, Deltas};
use super::{Hold, WILDCARD};
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::xds::{Encoded, Resources, View};

/// What is not told although the client has something else, until its hold ends: by name, what the client has.
#[derive(Clone, Debug, Default)]
struct Held {
    /// Names that the client came with and that no view of this stream ever had.
    unseen: BTreeMap<Arc<str>, Encoded>,
    /// Names that went while it was connected.
    removals: BTreeMap<Arc<str>, Encoded>,
    updates: BTreeMap<Arc<str>, Encoded>,
}

/// One type of one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client has, or was sent and refused; of names in `held` what it would have without the hold.
    told: Resources,
    /// The edition of the view that `told` is, when it is exactly one.
    edition: Option<u64>,
    held: Held,
    /// The view up to which changes of single names are in `due`.
    compared: Option<View>,
    /// Single names that must be compared.
    due: BTreeSet<Arc<str>>,
    /// Names just asked for: answered even if they do not exist.
    asked: BTreeSet<Arc<str>>,
    /// The nonce that must come back before anything else of this type is sent.
    pub(super) in_flight: Option<u64>,
    /// An answer is due even if there is nothing in it.
    pub(super) owed: bool,
    /// What the client was told to have when it was last told all.
    pub(super) known_as_of: Option<Arc<str>>,
    /// The client came with something.
    pub(super) resumed: bool,
}

/// What goes out next.
#[derive(Debug)]
pub(super) enum Next {
    /// The same for every stream that has what this one has.
    Shared(Arc<Delta>),
    /// For this stream alone; `more` of the same view follows.
    Own { batch: Batch, more: bool },
}

// === impl Subscription ===

impl Subscription {
    /// The first request of a type: no names mean all of them, and what the client still has is not sent again.
    pub(super) fn first(request: &DeltaDiscoveryRequest) -> Self {
        let told: Resources = request
            .initial_resource_versions
            .iter()
            .map(|(name, version)| (Arc::from(name.as_str()), Encoded::known(version)))
            .collect();
        let resumed = !told.is_empty();
        let known_as_of = Some(request.known_as_of.as_str()).filter(|token| !token.is_empty());
        let mut subscription = Self {
            wildcard: request.resource_names_subscribe.is_empty()
                && request.resource_names_unsubscribe.is_empty(),
            // Nothing is the empty view.
            edition: (!resumed).then(|| View::default().edition()),
            told,
            owed: true,
            known_as_of: known_as_of.map(Arc::from),
            resumed,
            ..Self::default()
        };
        for name in &request.resource_names_subscribe {
            subscription.subscribe(name);
        }
        for name in &request.resource_names_unsubscribe {
            subscription.unsubscribe(name);
        }
        subscription
    }

    /// A later request: a name asked for again is sent again.
    pub(super) fn change(&mut self, request: &DeltaDiscoveryRequest) {
        for name in &request.resource_names_subscribe {
            if self.told.remove(name.as_str()).is_some() {
                self.edition = None;
            }
            self.held.forget(name);
            self.subscribe(name);
        }
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(name);
        }
    }

    /// Names that were asked for one by one.
    pub(super) fn names(&self) -> usize {
        self.names.len()
    }

    fn subscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = true;
            self.owed = true;
        } else {
            let name: Arc<str> = name.into();
            self.asked.insert(Arc::clone(&name));
            self.names.insert(name);
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            let names = &self.names;
            self.told = self
                .told
                .iter()
                .filter(|(name, _)| names.contains(*name))
                .map(|(name, encoded)| (Arc::clone(name), encoded.clone()))
                .collect();
            self.edition = None;
            self.compared = None;
        } else {
            self.names.remove(name);
            self.asked.remove(name);
            self.due.remove(name);
            if !self.wildcard {
                self.told.remove(name);
                self.edition = None;
            }
        }
    }

    /// Decides what is said next so that the client has what `now` has, and counts it as told.
    pub(super) fn next(&mut self, now: &View, hold: Hold, max: usize, deltas: &Deltas) -> Next {
        if let Some(delta) = self.shared(now, hold, max, deltas) {
            return Next::Shared(delta);
        }
        let mut batch = Batch::new(max);
        let whole = self.answer(now, hold, &mut batch)
            && self.release(now, hold, &mut batch)
            && match self.wildcard {
                true => self.differences(now, hold, &mut batch),
                false => self.named(now, hold, &mut batch, deltas),
            };
        Next::Own {
            batch,
            more: !whole,
        }
    }

    /// Whether a name would be updated (or also removed) on the way to `now`. What is held does not count.
    pub(super) fn unsaid(&self, now: &View, removals_too: bool) -> bool {
        // Whoever asks for single names knows what it needs first.
        self.wildcard
            && self.edition != Some(now.edition())
            && self.told.diff(now).any(|difference| match difference {
                DiffItem::Remove(..) => removals_too,
                DiffItem::Add(..) | DiffItem::Update { .. } => true,
            })
    }

    /// Whether a removal or an update waits for the end of a hold.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The delta that other streams get as well, when this one stands exactly where they do.
    fn shared(
        &mut self,
        now: &View,
        hold: Hold,
        max: usize,
        deltas: &Deltas,
    ) -> Option<Arc<Delta>> {
        let plain = self.wildcard && self.asked.is_empty() && self.held.is_empty();
        let edition = self.edition.filter(|_| plain && hold == Hold::Nothing)?;
        // A type that stands still asks nobody: most do, on every stream, whenever another type changes.
        if edition == now.edition() {
            return None;
        }
        let delta = deltas.between(edition, &self.told, now, max)?;
        self.stand_at(now);
        Some(delta)
    }

    /// Sharing the view's structure makes the next comparison cost the differences only.
    fn stand_at(&mut self, now: &View) {
        self.told = now.resources().clone();
        self.edition = Some(now.edition());
    }

    /// Names just asked for. False: the batch is full.
    fn answer(&mut self, now: &View, hold: Hold, batch: &mut Batch) -> bool {
        while let Some(name) = self.asked.pop_first() {
            if batch.is_full() {
                self.asked.insert(name);
                return false;
            }
            let told = self.told.get(&name).cloned();
            match (told, now.get(&name)) {
                (None, None) if !self.held.has(&name) => batch.remove(&name),
                (told, new) => self.tell(&name, told.as_ref(), new, hold, batch),
            }
            self.set(&name, now.get(&name));
        }
        true
    }

    /// What is held no longer. False: the batch is full.
    fn release(&mut self, now: &View, hold: Hold, batch: &mut Batch) -> bool {
        while let Some((name, had)) = self.held.pop(hold) {
            if batch.is_full() {
                self.held.put_back(hold, name, had);
                return false;
            }
            self.tell(&name, Some(&had), now.get(&name), hold, batch);
            self.set(&name, now.get(&name));
        }
        true
    }

    /// Everything that is different. False: the batch is full.
    fn differences(&mut self, now: &View, hold: Hold, batch: &mut Batch) -> bool {
        if self.edition == Some(now.edition()) {
            return true;
        }
        let before = self.told.clone();
        let mut done: Vec<(&Arc<str>, Option<&Encoded>)> = Vec::new();
        let mut whole = true;
        for difference in before.diff(now) {
            if batch.is_full() {
                whole = false;
                break;
            }
            let (name, old, new) = match difference {
                DiffItem::Add(name, new) => (name, None, Some(new)),
                DiffItem::Update {
                    old: (_, old),
                    new: (name, new),
                } => (name, Some(old), Some(new)),
                DiffItem::Remove(name, old) => (name, Some(old), None),
            };
            self.tell(name, old, new, hold, batch);
            done.push((name, new));
        }
        if whole {
            self.stand_at(now);
        } else {
            for (name, new) in done {
                self.set(name, new);
            }
        }
        whole
    }

    /// What is different of the names that were asked for: the cost is that of the changes, not of the names.
    fn named(&mut self, now: &View, hold: Hold, batch: &mut Batch, deltas: &Deltas) -> bool {
        match self.compared.replace(now.clone()) {
            Some(before) if before.edition() == now.edition() => {}
            Some(before) => {
                const FEW: usize = 4096;
                match deltas.between(before.edition(), &before, now, FEW) {
                    Some(delta) => {
                        let changed = delta.names.iter();
                        let asked = changed.filter(|name| self.names.contains(*name));
                        self.due.extend(asked.cloned());
                    }
                    None => self.due.clone_from(&self.names),
                }
            }
            None => self.due.clone_from(&self.names),
        }
        while let Some(name) = self.due.pop_first() {
            if batch.is_full() {
                self.due.insert(name);
                return false;
            }
            let told = self.told.get(&name).cloned();
            if told.as_ref() != now.get(&name) {
                self.tell(&name, told.as_ref(), now.get(&name), hold, batch);
                self.set(&name, now.get(&name));
            }
        }
        true
    }

    /// One name: says it, holds it, or finds that the client has it already.
    fn tell(
        &mut self,
        name: &Arc<str>,
        told: Option<&Encoded>,
        new: Option<&Encoded>,
        hold: Hold,
        batch: &mut Batch,
    ) {
        let had = self.held.take(name).or_else(|| told.cloned());
        match (had, new) {
            (had, Some(new)) if had.as_ref() == Some(new) => {}
            (Some(had), Some(_)) if hold == Hold::Known => {
                self.held.updates.insert(Arc::clone(name), had);
            }
            (_, Some(new)) => batch.update(name, new),
            (Some(had), None) if had.is_unseen() && hold >= Hold::Unseen => {
                self.held.unseen.insert(Arc::clone(name), had);
            }
            (Some(had), None) if hold >= Hold::Removals => {
                self.held.removals.insert(Arc::clone(name), had);
            }
            (Some(_), None) => batch.remove(name),
            (None, None) => {}
        }
    }

    fn set(&mut self, name: &Arc<str>, new: Option<&Encoded>) {
        match new {
            Some(new) => self.told.insert(Arc::clone(name), new.clone()),
            None => self.told.remove(name),
        };
        self.edition = None;
    }
}

// === impl Held ===

impl Held {
    /// One that this hold does not cover.
    fn pop(&mut self, hold: Hold) -> Option<(Arc<str>, Encoded)> {
        self.uncovered(hold).find_map(BTreeMap::pop_first)
    }

    fn put_back(&mut self, hold: Hold, name: Arc<str>, had: Encoded) {
        if let Some(map) = self.uncovered(hold).next() {
            map.insert(name, had);
        }
    }

    fn uncovered(&mut self, hold: Hold) -> impl Iterator<Item = &mut BTreeMap<Arc<str>, Encoded>> {
        let Self {
            unseen,
            removals,
            updates,
        } = self;
        let all = [
            (Hold::Known, updates),
            (Hold::Removals, removals),
            (Hold::Unseen, unseen),
        ];
        all.into_iter()
            .filter(move |(covers, _)| hold < *covers)
            .map(|(_, map)| map)
    }

    fn take(&mut self, name: &str) -> Option<Encoded> {
        let Self {
            unseen,
            removals,
            updates,
        } = self;
        [updates, removals, unseen]
            .into_iter()
            .find_map(|map| map.remove(name))
    }

    fn has(&self, name: &str) -> bool {
        self.maps().any(|map| map.contains_key(name))
    }

    fn forget(&mut self, name: &str) {
        drop(self.take(name));
    }

    fn is_empty(&self) -> bool {
        self.maps().all(BTreeMap::is_empty)
    }

    fn maps(&self) -> impl Iterator<Item = &BTreeMap<Arc<str>, Encoded>> {
        [&self.updates, &self.removals, &self.unseen].into_iter()
    }
}

// === impl Next ===

impl Next {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Shared(delta) => delta.is_empty(),
            Self::Own { batch, .. } => batch.is_empty(),
        }
    }
}
