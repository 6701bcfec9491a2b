//! Connections that have not proved whose they are: a budget of their own, in which the oldest makes room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// So long a peer may take to prove itself before another has its place: more than a handshake takes on a busy machine.
/// Whoever wants all places for peers that say nothing has to open as many in that time.
const FAIR_CHANCE: Duration = Duration::from_millis(500);

/// One core's, over all of its listeners. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Unproven(Rc<Queue>);

#[derive(Debug)]
struct Queue {
    most: usize,
    next: Cell<u64>,
    /// The oldest first.
    waiting: RefCell<BTreeMap<u64, (Instant, oneshot::Sender<()>)>>,
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

    /// A place for a newcomer, of whom nothing is known. If there is no other the oldest goes, and makes room; but none is
    /// there where all have just come: of a crowd of honest peers nobody would be served if each pushed out another.
    pub fn enter(&self) -> Option<Ticket> {
        let now = Instant::now();
        let mut waiting = self.0.waiting.borrow_mut();
        if waiting.len() >= self.0.most.max(1) {
            let oldest = waiting.first_entry()?;
            if now.duration_since(oldest.get().0) < FAIR_CHANCE {
                return None;
            }
            oldest.remove();
        }
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let (held, gone) = oneshot::channel();
        waiting.insert(number, (now, held));
        Some(Ticket {
            queue: Rc::clone(&self.0),
            number,
            gone,
        })
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

    #[tokio::test(start_paused = true)]
    async fn the_oldest_makes_room_once_it_had_its_chance() {
        let unproven = Unproven::new(2);
        let mut tickets = [unproven.enter().unwrap(), unproven.enter().unwrap()];
        assert!(unproven.enter().is_none(), "all have just come");
        tokio::time::advance(FAIR_CHANCE).await;
        let third = unproven.enter().unwrap();
        tickets[0].pushed_out().await;
        // One that has proved itself made room by that.
        drop(third);
        let _fourth = unproven.enter().unwrap();
        assert!(tickets[1].gone.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let _fifth = unproven.enter().unwrap();
        tickets[1].pushed_out().await;
        assert!(unproven.enter().is_none());
    }
}
