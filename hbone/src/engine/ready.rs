//! Which streams have something to do: their wakers push keys to a list and wake the one task.

use std::sync::Arc;
use std::task::{Wake, Waker};

use parking_lot::Mutex;

use crate::session::Key;

/// The list of one connection. Nobody but its own thread uses it, and the alarms' every few seconds.
#[derive(Debug, Default)]
pub(crate) struct Ready(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    keys: Vec<u64>,
    task: Option<Waker>,
    /// The task has been woken and has not run since.
    woken: bool,
}

/// What wakes the task on behalf of one stream.
struct OfStream {
    ready: Arc<Ready>,
    key: u64,
}

// === impl Ready ===

impl Ready {
    /// Something is to be done for the connection itself.
    pub(crate) fn wake(&self) {
        self.0.lock().wake();
    }

    /// Something is to be done for a stream.
    pub(crate) fn push(&self, key: Key) {
        let mut list = self.0.lock();
        list.keys.push(key.to_bits());
        list.wake();
    }

    /// Begins a turn of the task: who wakes it from now on. The streams to look at go to `into`.
    pub(crate) fn take(&self, task: &Waker, into: &mut Vec<u64>) {
        let mut list = self.0.lock();
        list.woken = false;
        into.clear();
        std::mem::swap(&mut list.keys, into);
        if list
            .task
            .as_ref()
            .is_none_or(|known| !known.will_wake(task))
        {
            list.task = Some(task.clone());
        }
    }

    /// What a socket wakes when it becomes ready.
    pub(crate) fn waker(self: &Arc<Self>, key: Key) -> Waker {
        Waker::from(Arc::new(OfStream {
            ready: self.clone(),
            key: key.to_bits(),
        }))
    }
}

// === impl List ===

impl List {
    fn wake(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }
}

// === impl OfStream ===

impl Wake for OfStream {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(Key::from_bits(self.key));
    }
}
