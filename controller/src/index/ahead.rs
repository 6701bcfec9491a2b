//! Changes that are ahead of another kind's watch are set aside until that watch has come as far.
//!
//! Each kind comes on a watch of its own, of which one may be late. A route that names a new Service may be told of before
//! the Service; a Service that no route names any more may be gone before the route's last change is told of. Taken in at
//! once, both would be a route to nothing; and a pod before its namespace would be one that nobody wants in the mesh. Such
//! changes wait until both watches are as far as each other. What was known before stays in force meanwhile, for
//! [`MAX_TURNS_SET_ASIDE`] at most: the Service may really not exist, and a quiet watch says how far it is once a minute.

use std::collections::BTreeMap;

use super::State;
use super::kinds::Watched;
use super::names::Key;

/// A change is set aside for so many turns, of which the first may be nearly over: see [`super::Input::Turn`].
const MAX_TURNS_SET_ASIDE: u8 = 2;

/// The changes of one kind that are set aside: the newest of each object.
#[derive(Debug)]
pub(super) struct Ahead<T> {
    changes: BTreeMap<Key, Change<T>>,
}

/// An object, there or gone.
#[derive(Debug)]
struct Change<T> {
    object: Option<T>,
    version: String,
    /// How many turns it has waited.
    turns: u8,
}

// === impl Ahead ===

// By hand: objects need no default.
impl<T> Default for Ahead<T> {
    fn default() -> Self {
        Self {
            changes: BTreeMap::new(),
        }
    }
}

impl<T> Ahead<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.changes.keys()
    }

    fn turn(&mut self) {
        for change in self.changes.values_mut() {
            change.turns = change.turns.saturating_add(1);
        }
    }
}

// === impl State ===

impl State {
    /// Takes one object in, there or gone as of `version`; or sets it aside.
    pub(super) fn put<T: Watched>(&mut self, key: &Key, version: &str, mut object: Option<T>) {
        let table = T::table_mut(self);
        table.see(key);
        let waiting = table.ahead.changes.remove(key);
        let turns = waiting.as_ref().map_or(0, |waiting| waiting.turns);
        if let Some(now) = &mut object {
            if let Some(waiting) = waiting.and_then(|waiting| waiting.object) {
                now.inherit(&waiting);
            }
            if let Some(before) = T::table(self).get(key) {
                now.inherit(before);
            }
        }
        let change = Change {
            object,
            version: version.to_owned(),
            turns,
        };
        self.take_in_or_wait(key, change);
    }

    /// Takes in what has waited long enough.
    pub(super) fn settle_ahead<T: Watched>(&mut self) {
        // Also where nothing waits any more: what did may have been overtaken.
        self.positions.nothing_set_aside(T::API.plural);
        let changes = std::mem::take(&mut T::table_mut(self).ahead.changes);
        for (key, change) in changes {
            self.take_in_or_wait(&key, change);
        }
    }

    /// A turn has passed.
    pub(super) fn turn<T: Watched>(&mut self) {
        T::table_mut(self).ahead.turn();
    }

    fn take_in_or_wait<T: Watched>(&mut self, key: &Key, change: Change<T>) {
        // Before anything was told nothing can stay in force.
        if self.told && change.turns < MAX_TURNS_SET_ASIDE && self.is_ahead(key, &change) {
            self.positions.set_aside(T::API.plural, &change.version);
            let table = T::table_mut(self);
            table.ahead.changes.insert(key.clone(), change);
        } else {
            self.take_in(key, change.object);
        }
    }

    fn is_ahead<T: Watched>(&self, key: &Key, change: &Change<T>) -> bool {
        let (positions, own) = (&self.positions, T::API.plural);
        let others = T::waits_for(self, key, change.object.as_ref()).iter();
        let mut others = others.map(|other| other.api().plural);
        others.any(|other| positions.may_lack(other, &change.version) || positions.lags(own, other))
    }
}
