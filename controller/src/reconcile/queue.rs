//! What is to be reconciled next: a work queue with the contract of kube-runtime's scheduler, and fairness besides.
//!
//! * A key is never run twice at once. One that is asked for while it runs is run again afterwards.
//! * A key that is asked for often before it runs is run once: whoever runs it reads what is wanted then.
//! * One that failed waits, twice as long from failure to failure, with jitter; a change of what is wanted ends the wait.
//! * Keys stand in lanes, which have their turns one after another, and lanes belong to namespaces. A namespace may have no
//!   more running in all its lanes than there are places free, a lane half of what its namespace has left: whatever a
//!   namespace's calls do, half of the places stay for others, and while those of one lane hang, its other lanes go on.
//!   Of 64 places the seventh namespace whose calls all hang gets the last one, and so does the sixth such lane of the
//!   first; those after it wait until a call ends, which its deadline sees to.
//!
//! Pure: it is told the time, and runs nothing.

use std::collections::hash_map::{Entry, HashMap};
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// The first wait after a failure.
pub const FIRST_RETRY: Duration = Duration::from_millis(200);
/// The longest: people who mended something wait no longer than this, and a thousand that fail cost 3 calls a second.
pub const LAST_RETRY: Duration = Duration::from_secs(300);
/// What a nudge waits, so that several that come together are one.
const NUDGE: Duration = Duration::from_millis(100);

/// What is queued.
pub trait Work: Clone + Eq + Hash {
    /// Those that share a lane wait for one another.
    type Lane: Clone + Eq + Hash;

    /// Whose lanes are bounded together.
    type Namespace: Clone + Eq + Hash;

    /// Where it stands.
    fn lane(&self) -> Self::Lane;

    /// Whose it is. All that stand in a lane are the same namespace's.
    fn namespace(&self) -> Self::Namespace;
}

/// What comes after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing, unless it is asked for again.
    Forget,
    /// Once more, to see that it is still so.
    Again(Duration),
    /// It failed: once more after the back-off, and not before this.
    Retry {
        /// What the server asked for, or nothing.
        at_least: Duration,
    },
    /// It was refused, and will be as long as it is the same: once more after the longest wait.
    Refused,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<W: Work> {
    places: usize,
    running: usize,
    slots: HashMap<W, Slot>,
    lanes: HashMap<W::Lane, Lane<W>>,
    /// How many run of each namespace, if any.
    namespaces: HashMap<W::Namespace, usize>,
    /// Lanes that have something ready, in the order of their turns.
    turns: VecDeque<W::Lane>,
    timers: BTreeMap<(Instant, u64), W>,
    sequence: u64,
}

#[derive(Debug)]
struct Slot {
    state: State,
    failures: u32,
    /// The server said: not before this.
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At this place in its lane.
    Ready {
        place: u64,
    },
    Waiting {
        timer: (Instant, u64),
    },
    Running {
        again: bool,
    },
}

#[derive(Debug)]
struct Lane<W: Work> {
    namespace: W::Namespace,
    ready: BTreeMap<u64, W>,
    running: usize,
}

// === impl Queue ===

impl<W: Work> Queue<W> {
    /// Runs so many at once.
    pub fn new(places: usize) -> Self {
        Self {
            places,
            running: 0,
            slots: HashMap::new(),
            lanes: HashMap::new(),
            namespaces: HashMap::new(),
            turns: VecDeque::new(),
            timers: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// What is wanted of it is new: now, whatever it waits for; unless the server said when.
    pub fn request(&mut self, work: W) {
        match self.slots.get_mut(&work) {
            None => self.enqueue(work, 0),
            Some(slot) => {
                slot.failures = 0;
                match slot.state {
                    State::Running { .. } => slot.state = State::Running { again: true },
                    State::Waiting { timer } => {
                        let not_before = slot.not_before;
                        self.timers.remove(&timer);
                        match not_before {
                            Some(at) => self.wait(work, at, 0, not_before),
                            None => self.enqueue(work, 0),
                        }
                    }
                    State::Ready { .. } => {}
                }
            }
        }
    }

    /// Something happened to it: soon, unless it fails and waits for that.
    pub fn nudge(&mut self, work: W, now: Instant) {
        match self.slots.get_mut(&work) {
            None => self.wait(work, now + NUDGE, 0, None),
            Some(slot) => match slot.state {
                State::Running { .. } => slot.state = State::Running { again: true },
                State::Waiting { timer } if slot.failures == 0 && timer.0 > now + NUDGE => {
                    self.timers.remove(&timer);
                    self.wait(work, now + NUDGE, 0, None);
                }
                State::Waiting { .. } | State::Ready { .. } => {}
            },
        }
    }

    /// Nothing is wanted of it any more. If it runs, it ends its run.
    pub fn remove(&mut self, work: &W) {
        let Some(slot) = self.slots.get_mut(work) else {
            return;
        };
        match slot.state {
            State::Running { .. } => {
                slot.state = State::Running { again: false };
                return;
            }
            State::Waiting { timer } => drop(self.timers.remove(&timer)),
            State::Ready { place } => {
                if let Some(lane) = self.lanes.get_mut(&work.lane()) {
                    lane.ready.remove(&place);
                }
            }
        }
        self.slots.remove(work);
        self.tidy(&work.lane());
    }

    /// The next to be run, if there is one and a place for it. Whoever takes it says when it has [`Self::finished`].
    pub fn next(&mut self, now: Instant) -> Option<W> {
        self.ripen(now);
        let free = self.places.saturating_sub(self.running);
        for at in 0..self.turns.len() {
            if free == 0 {
                break;
            }
            let lane = self.turns.get(at).and_then(|name| self.lanes.get_mut(name));
            let Some(lane) = lane else {
                continue;
            };
            let of_namespace = self.namespaces.get(&lane.namespace).copied();
            let of_namespace = of_namespace.unwrap_or(0);
            if !has_place(free, of_namespace, lane.running) {
                continue;
            }
            let Some((_, work)) = lane.ready.pop_first() else {
                continue;
            };
            lane.running += 1;
            let more = !lane.ready.is_empty();
            self.namespaces
                .insert(lane.namespace.clone(), of_namespace + 1);
            self.running += 1;
            if let Some(name) = self.turns.remove(at).filter(|_| more) {
                self.turns.push_back(name);
            }
            if let Some(slot) = self.slots.get_mut(&work) {
                slot.state = State::Running { again: false };
            }
            return Some(work);
        }
        None
    }

    /// When something that waits is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// A run has ended. `jitter` is between 0 and 1. Says how long it waits now, if it does.
    pub fn finished(
        &mut self,
        work: &W,
        then: Then,
        now: Instant,
        jitter: f64,
    ) -> Option<Duration> {
        let slot = self.slots.remove(work)?;
        let State::Running { again } = slot.state else {
            self.slots.insert(work.clone(), slot);
            return None;
        };
        self.running -= 1;
        if let Some(lane) = self.lanes.get_mut(&work.lane()) {
            lane.running -= 1;
        }
        if let Entry::Occupied(mut running) = self.namespaces.entry(work.namespace()) {
            *running.get_mut() -= 1;
            if *running.get() == 0 {
                running.remove();
            }
        }
        let not_before = match then {
            Then::Retry { at_least } if !at_least.is_zero() => Some(now + at_least),
            _ => None,
        };
        let waits = if again {
            match not_before {
                Some(at) => self.wait(work.clone(), at, 0, not_before),
                None => self.request(work.clone()),
            }
            None
        } else {
            let spread = |due: Duration| due.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
            let (wait, failures) = match then {
                Then::Forget => (None, 0),
                Then::Again(after) => (Some(spread(after)), 0),
                Then::Retry { at_least } => {
                    let wait = spread(back_off(slot.failures)).max(at_least);
                    (Some(wait), slot.failures.saturating_add(1))
                }
                Then::Refused => (Some(spread(LAST_RETRY)), slot.failures.saturating_add(1)),
            };
            if let Some(wait) = wait {
                self.wait(work.clone(), now + wait, failures, not_before);
            }
            wait
        };
        self.tidy(&work.lane());
        waits
    }

    fn wait(&mut self, work: W, until: Instant, failures: u32, not_before: Option<Instant>) {
        self.sequence += 1;
        let timer = (until, self.sequence);
        self.timers.insert(timer, work.clone());
        let slot = Slot {
            state: State::Waiting { timer },
            failures,
            not_before,
        };
        self.slots.insert(work, slot);
    }

    /// What has waited long enough is ready.
    fn ripen(&mut self, now: Instant) {
        while let Some(first) = self.timers.first_entry() {
            if first.key().0 > now {
                return;
            }
            let work = first.remove();
            let failures = self.slots.get(&work).map_or(0, |slot| slot.failures);
            self.enqueue(work, failures);
        }
    }

    /// At the end of its lane.
    fn enqueue(&mut self, work: W, failures: u32) {
        self.sequence += 1;
        let place = self.sequence;
        let name = work.lane();
        let lane = self.lanes.entry(name.clone()).or_insert_with(|| Lane {
            namespace: work.namespace(),
            ready: BTreeMap::new(),
            running: 0,
        });
        if lane.ready.is_empty() {
            self.turns.push_back(name);
        }
        lane.ready.insert(place, work.clone());
        let slot = Slot {
            state: State::Ready { place },
            failures,
            not_before: None,
        };
        self.slots.insert(work, slot);
    }

    /// A lane without anything is forgotten.
    fn tidy(&mut self, name: &W::Lane) {
        let Some(lane) = self.lanes.get(name).filter(|lane| lane.ready.is_empty()) else {
            return;
        };
        let idle = lane.running == 0;
        self.turns.retain(|turn| turn != name);
        if idle {
            self.lanes.remove(name);
        }
    }
}

/// Whether one more may run of a lane that has so many running, of a namespace that has so many, where so many places are free.
fn has_place(free: usize, of_namespace: usize, of_lane: usize) -> bool {
    let share = (free + of_namespace).div_ceil(2);
    of_namespace + of_lane < share
}

fn back_off(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX);
    FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY)
}

#[cfg(test)]
mod tests;
