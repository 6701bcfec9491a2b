//! The threads that visit namespaces: few, shared by turns, and none of them lost for ever to a visit that hangs.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::NetnsId;
use super::turns::Turns;

/// A visit. It brings its thread back home, or says that the thread cannot be used any more.
pub(super) type Visit = Box<dyn FnOnce() -> Back + Send>;

/// What a visit leaves behind.
pub(super) struct Back {
    /// Run when the next visit may begin.
    pub(super) report: Box<dyn FnOnce() + Send>,
    /// The thread is where it came from.
    pub(super) home: bool,
}

/// Bounds of the threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Threads that visit, as long as none hangs.
    pub(super) threads: usize,
    /// Threads beside them, for those that hang.
    pub(super) replacements: usize,
    /// A visit that takes so long hangs: others need not wait for it.
    pub(super) hangs_after: Duration,
    /// Visits to one namespace at once: one that hangs, or that everybody dials from, leaves the others theirs.
    pub(super) in_one: usize,
    /// Visits that wait for one namespace.
    pub(super) waiting: usize,
}

/// The threads, and what waits for them.
pub(super) struct Visitors {
    limits: Limits,
    state: Mutex<State>,
    /// Something may begin.
    work: Condvar,
    /// Something may begin, and no thread is free.
    shortage: Condvar,
}

struct State {
    turns: Turns<Visit>,
    /// When each thread's visit began.
    busy: HashMap<u64, Instant>,
    threads: usize,
    /// Threads that wait, and that nobody has woken.
    idle: usize,
    next: u64,
    /// The thread runs that looks for visits that hang.
    watched: bool,
}

/// Why a visit does not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoVisit {
    #[error("too many visits wait for this network namespace")]
    TooMany,
    #[error("no thread to visit network namespaces: {0}")]
    NoThread(#[from] io::Error),
}

// === impl Visitors ===

impl Visitors {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            turns: Turns::new(limits.in_one, limits.waiting),
            busy: HashMap::new(),
            threads: 0,
            idle: 0,
            next: 0,
            watched: false,
        };
        Arc::new(Self {
            limits,
            state: Mutex::new(state),
            work: Condvar::new(),
            shortage: Condvar::new(),
        })
    }

    /// Has somebody visit `id` when it is that namespace's turn.
    pub(super) fn submit(self: &Arc<Self>, id: NetnsId, visit: Visit) -> Result<(), NoVisit> {
        let mut state = self.state.lock();
        if state.threads == 0 {
            self.grow(&mut state)?;
        }
        let pushed = state.turns.push(id, visit);
        pushed.map_err(|_| NoVisit::TooMany)?;
        if !state.turns.may_begin() || self.wake(&mut state) {
            return Ok(());
        }
        if let Err(error) = self.grow(&mut state) {
            tracing::warn!(%error, "no more threads for visits to network namespaces");
        }
        if state.threads >= self.limits.threads {
            self.watch(&mut state);
        }
        Ok(())
    }

    /// Wakes one thread that has nothing to do. It counts as busy from here on: whoever comes before it has woken needs
    /// another.
    fn wake(&self, state: &mut State) -> bool {
        let is_idle = state.idle > 0;
        if is_idle {
            state.idle -= 1;
            self.work.notify_one();
        }
        is_idle
    }

    /// One more thread, where there may be one.
    fn grow(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if state.threads >= self.allowed(state) {
            return Ok(());
        }
        let (visitors, number) = (self.clone(), state.next);
        let thread = thread::Builder::new().name("netns".into());
        thread.spawn(move || visitors.visit(number))?;
        state.next += 1;
        state.threads += 1;
        Ok(())
    }

    /// Threads that there may be now.
    fn allowed(&self, state: &State) -> usize {
        let hang = |began: &&Instant| began.elapsed() >= self.limits.hangs_after;
        let hanging = state.busy.values().filter(hang).count();
        self.limits.threads + hanging.min(self.limits.replacements)
    }

    /// One thread's life.
    fn visit(self: &Arc<Self>, number: u64) {
        let mut state = self.state.lock();
        loop {
            if let Some((id, visit)) = state.turns.next() {
                state.busy.insert(number, Instant::now());
                drop(state);
                let back = catch_unwind(AssertUnwindSafe(visit));
                state = self.state.lock();
                state.busy.remove(&number);
                state.turns.done(id);
                if state.turns.may_begin() {
                    // This thread comes for one, too.
                    self.wake(&mut state);
                }
                // Whose panic it was has been told by the panic hook; where its thread is now nobody knows.
                let Ok(Back { report, home }) = back else {
                    break;
                };
                drop(state);
                report();
                state = self.state.lock();
                if !home {
                    break;
                }
            } else if state.threads > self.allowed(&state) {
                // It was there for one that hung.
                break;
            } else {
                state.idle += 1;
                self.work.wait(&mut state);
            }
        }
        state.threads -= 1;
        // What waited for this thread. Without another, the next visit tries again.
        if state.turns.may_begin() && !self.wake(&mut state) {
            let _ = self.grow(&mut state);
        }
        self.shortage.notify_one();
    }

    /// Sees to it that somebody looks for visits that hang.
    fn watch(self: &Arc<Self>, state: &mut State) {
        if state.watched {
            self.shortage.notify_one();
            return;
        }
        let visitors = self.clone();
        let thread = thread::Builder::new().name("netns-watch".into());
        // Without it the next visit tries again.
        state.watched = thread.spawn(move || visitors.keep_watch()).is_ok();
    }

    /// Replaces threads whose visits hang while something waits, for ever.
    fn keep_watch(self: &Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            if !state.turns.may_begin() || state.idle > 0 {
                self.shortage.wait(&mut state);
                continue;
            }
            if let Err(error) = self.grow(&mut state) {
                tracing::error!(%error, "no thread for visits that wait behind others that hang");
            }
            let soonest = state
                .busy
                .values()
                .map(|began| *began + self.limits.hangs_after);
            let until = soonest.filter(|at| *at > Instant::now()).min();
            let until = until.unwrap_or_else(|| Instant::now() + self.limits.hangs_after);
            self.shortage.wait_until(&mut state, until);
        }
    }

    /// How many threads there are.
    #[cfg(test)]
    fn threads(&self) -> usize {
        self.state.lock().threads
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMITS: Limits = Limits {
        threads: 4,
        replacements: 4,
        hangs_after: Duration::from_millis(50),
        in_one: 2,
        waiting: 1000,
    };

    fn id(ino: u64) -> NetnsId {
        NetnsId { dev: 1, ino }
    }

    fn back() -> Back {
        Back {
            report: Box::new(|| ()),
            home: true,
        }
    }

    /// A visit that hangs until the returned sender is dropped.
    fn hangs(visitors: &Arc<Visitors>, ino: u64) -> mpsc::Sender<()> {
        let (end, ends) = mpsc::channel::<()>();
        let visit = Box::new(move || {
            let _ = ends.recv();
            back()
        });
        visitors.submit(id(ino), visit).unwrap();
        end
    }

    /// Waits for a visit of its own.
    fn is_served(visitors: &Arc<Visitors>, ino: u64) {
        let (tell, told) = mpsc::channel();
        let visit = Box::new(move || {
            tell.send(()).unwrap();
            back()
        });
        visitors.submit(id(ino), visit).unwrap();
        told.recv_timeout(Duration::from_secs(30)).expect("served");
    }

    #[test]
    fn a_burst_of_visits_is_no_burst_of_threads() {
        let visitors = Visitors::new(Limits {
            hangs_after: Duration::from_secs(3600),
            ..LIMITS
        });
        let (tell, told) = mpsc::channel();
        // All of them are there before one is over.
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for number in 0..1000 {
            let (tell, gate) = (tell.clone(), gate.clone());
            let visit = Box::new(move || {
                drop(gate.lock());
                Back {
                    report: Box::new(move || tell.send(number).unwrap()),
                    home: true,
                }
            });
            visitors.submit(id(1 + number % 100), visit).unwrap();
            assert!(visitors.threads() <= LIMITS.threads);
        }
        drop((tell, closed));
        assert_eq!(told.iter().count(), 1000);
        assert!(visitors.threads() <= LIMITS.threads);
    }

    #[test]
    fn visits_that_hang_leave_the_others_theirs_and_make_no_more_threads_than_may_be() {
        let visitors = Visitors::new(LIMITS);
        // All that hang in one namespace are two.
        let mut held: Vec<_> = (0..110).map(|_| hangs(&visitors, 1)).collect();
        is_served(&visitors, 1000);
        // Others that hang are replaced.
        held.extend((2..5).map(|ino| hangs(&visitors, ino)));
        for ino in 0..10 {
            is_served(&visitors, 1000 + ino);
        }
        assert!(visitors.threads() <= LIMITS.threads + LIMITS.replacements);
        // However many: nobody is served any more, until one of them ends.
        held.extend((5..110).map(|ino| hangs(&visitors, ino)));
        let all = LIMITS.threads + LIMITS.replacements;
        let begun = Instant::now();
        while visitors.threads() < all {
            assert!(begun.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
        drop(held);
        is_served(&visitors, 1000);
        assert!(visitors.threads() <= all);
    }

    #[test]
    fn a_visit_that_panics_or_does_not_come_home_costs_its_thread_and_nobody_elses_turn() {
        let visitors = Visitors::new(LIMITS);
        for _ in 0..20 {
            let lost = || Back {
                home: false,
                ..back()
            };
            visitors.submit(id(1), Box::new(lost)).unwrap();
            visitors
                .submit(id(1), Box::new(|| panic!("a visit of a test")))
                .unwrap();
        }
        is_served(&visitors, 1);
        is_served(&visitors, 2);
    }

    #[test]
    fn too_many_that_wait_for_one_namespace_are_refused_and_others_are_not() {
        let visitors = Visitors::new(Limits {
            waiting: 1,
            hangs_after: Duration::from_secs(3600),
            ..LIMITS
        });
        let mut held = Vec::new();
        for inside in 1..=2 {
            held.push(hangs(&visitors, 1));
            while visitors.state.lock().busy.len() < inside {
                thread::yield_now();
            }
        }
        let _waits = hangs(&visitors, 1);
        let refused = visitors.submit(id(1), Box::new(back));
        assert!(matches!(refused, Err(NoVisit::TooMany)));
        is_served(&visitors, 2);
    }
}
