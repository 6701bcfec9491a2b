//! Connections that have not proved whose they are: a budget of their own, in which the oldest makes room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::oneshot;

/// One core's, over all of its listeners. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Unproven(Rc<Queue>);

#[derive(Debug)]
struct Queue {
    most: usize,
    next: Cell<u64>,
    /// The oldest first.
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    queue: Rc<Queue>,
    number: u64,
    gone: oneshot::Receiver<()>,
}

// === impl Unproven ===

impl Unproven {
    /// Room for `most`.
    pub fn new(most: usize) -> Self {
        Self(Rc::new(Queue {
            most,
            next: Cell::new(0),
            waiting: RefCell::default(),
        }))
    }

    /// A place for a newcomer, of whom nothing is known: always, and the oldest goes if there is no other.
    pub fn enter(&self) -> Ticket {
        let mut waiting = self.0.waiting.borrow_mut();
        while waiting.len() >= self.0.most.max(1) {
            waiting.pop_first();
        }
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let (held, gone) = oneshot::channel();
        waiting.insert(number, held);
        Ticket {
            queue: Rc::clone(&self.0),
            number,
            gone,
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits until a newcomer has the place.
    pub async fn pushed_out(&mut self) {
        // Nothing is ever sent: the other half is dropped.
        let _ = (&mut self.gone).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.waiting.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room() {
        let unproven = Unproven::new(2);
        let mut tickets = [unproven.enter(), unproven.enter()];
        let third = unproven.enter();
        tickets[0].pushed_out().await;
        // One that has proved itself made room by that.
        drop(third);
        let _fourth = unproven.enter();
        assert!(tickets[1].gone.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let _fifth = unproven.enter();
        tickets[1].pushed_out().await;
    }
}
