//! When engines look at their clocks: one thread waits for all of them, so that theirs sleep without a timeout.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::time::Instant;

/// Wakes one engine, every few seconds. A runtime's own timer would be looked at, and given to the kernel
/// as a timeout, each time the engine's thread has nothing to do: after every small message.
pub(crate) struct Alarm {
    waker: Waker,
    /// When it rings; in the past, it has rung.
    at: Instant,
}

/// All alarms of the process.
static ALARMS: Mutex<Alarms> = Mutex::new(Alarms {
    calls: BinaryHeap::new(),
    kept: false,
});
/// One is to ring before all others.
static SOONER: Condvar = Condvar::new();

struct Alarms {
    calls: BinaryHeap<Call>,
    /// The thread runs.
    kept: bool,
}

/// One that is set. It outlives its engine, and then wakes nobody.
struct Call {
    at: Instant,
    waker: Waker,
}

/// An alarm may ring so much later, and many ring together.
const SLACK: Duration = Duration::from_millis(10);

/// It waits, and calls wakers.
const STACK: usize = 128 << 10;

// === impl Alarm ===

impl Alarm {
    /// Wakes `waker` when it rings. Not set yet. Fails where the system has no thread for the first one.
    pub(crate) fn new(waker: Waker) -> io::Result<Self> {
        let mut alarms = ALARMS.lock();
        if !alarms.kept {
            let keeper = thread::Builder::new().name("hbone-alarms".into());
            keeper.stack_size(STACK).spawn(keep)?;
            alarms.kept = true;
        }
        let at = Instant::now();
        Ok(Self { waker, at })
    }

    /// When it rings.
    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// Has it ring at `at`, or earlier where it was to ring earlier anyway: it is set again then.
    pub(crate) fn set(&mut self, at: Instant) {
        if at >= self.at && self.at > Instant::now() {
            return;
        }
        self.at = at;
        let waker = self.waker.clone();
        let mut alarms = ALARMS.lock();
        let sooner = alarms.calls.peek().is_none_or(|first| at < first.at);
        alarms.calls.push(Call { at, waker });
        if sooner {
            SOONER.notify_one();
        }
    }
}

/// Rings all alarms when it is time, for ever.
fn keep() {
    let mut alarms = ALARMS.lock();
    loop {
        match alarms.calls.peek() {
            None => SOONER.wait(&mut alarms),
            Some(first) if first.at > Instant::now() => {
                let until = first.at.into_std() + SLACK;
                SOONER.wait_until(&mut alarms, until);
            }
            Some(_) => {
                if let Some(call) = alarms.calls.pop() {
                    MutexGuard::unlocked(&mut alarms, || call.ring());
                }
            }
        }
    }
}

// === impl Call ===

impl Call {
    /// Wakes. A waker that panics harms itself: all the others' time depends on this thread.
    fn ring(self) {
        if catch_unwind(AssertUnwindSafe(|| self.waker.wake())).is_err() {
            tracing::error!("a waker panicked when its time had come");
        }
    }
}

/// The greatest is the one that rings first.
impl Ord for Call {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Call {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Call {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Call {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use tokio::sync::Notify;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_millis(5);

    struct Bell(Notify);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    struct Broken;

    impl Wake for Broken {
        fn wake(self: Arc<Self>) {
            panic!("a waker of a test");
        }
    }

    fn alarm() -> (Alarm, Arc<Bell>) {
        let bell = Arc::new(Bell(Notify::new()));
        (Alarm::new(bell.clone().into()).unwrap(), bell)
    }

    #[tokio::test]
    async fn rings_when_it_is_time_and_each_time_it_is_set() {
        let (mut alarm, bell) = alarm();
        for _ in 0..3 {
            let at = Instant::now() + SOON;
            alarm.set(at);
            assert_eq!(alarm.at(), at);
            bell.0.notified().await;
            assert!(Instant::now() >= at);
        }
        alarm.set(Instant::now() - SOON);
        bell.0.notified().await;
    }

    #[tokio::test]
    async fn the_soonest_rings_first_whoever_was_set_before() {
        let (mut late, mut soon) = (alarm(), alarm());
        let at = Instant::now() + 4 * SOON;
        late.0.set(Instant::now() + LONG);
        late.0.set(at);
        // Rings at the time before.
        late.0.set(Instant::now() + LONG);
        assert_eq!(late.0.at(), at);
        soon.0.set(Instant::now() + SOON);
        soon.1.0.notified().await;
        late.1.0.notified().await;
        assert!(Instant::now() >= at);
    }

    #[tokio::test]
    async fn a_waker_that_panics_takes_nobody_else_with_it() {
        let mut broken = Alarm::new(Arc::new(Broken).into()).unwrap();
        let (mut alarm, bell) = alarm();
        broken.set(Instant::now());
        alarm.set(Instant::now() + SOON);
        bell.0.notified().await;
    }
}
