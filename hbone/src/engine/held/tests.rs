use std::task::Waker;
use std::time::Duration;

use super::*;
use crate::tls::lab::Ca;

/// A workload with streams of some engine.
struct Pod {
    account: Arc<Account>,
    ready: Arc<Ready>,
}

impl Pod {
    fn new(ca: &Ca) -> Self {
        let identity = ca.identity("spiffe://cluster.local/ns/shop/sa/web");
        let (_writer, credentials) = crate::credentials(identity);
        Self {
            account: Account::of(&credentials),
            ready: Arc::default(),
        }
    }

    fn push(&self, to: &mut Held, stream: u64, bytes: &[u8]) {
        let holder = Holder {
            account: &self.account,
            ready: &self.ready,
            key: Key::from_bits(stream),
        };
        to.push(&holder, &[IoSlice::new(bytes)], 0);
    }

    /// Another stream, for which so much is held.
    fn holds(&self, stream: u64, bytes: usize) -> Held {
        let mut held = Held::default();
        self.push(&mut held, stream, &vec![0; bytes]);
        held
    }

    fn bytes(&self) -> usize {
        self.account.line.lock().bytes
    }

    /// Streams whose engine is told to look at them.
    fn told(&self) -> Vec<u64> {
        let mut keys = Vec::new();
        self.ready.take(Waker::noop(), &mut keys);
        keys
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_leave_in_order_and_the_count_with_them() {
    let pod = Pod::new(&Ca::new());
    let holder = Holder {
        account: &pod.account,
        ready: &pod.ready,
        key: Key::from_bits(1),
    };
    let mut held = Held::default();
    held.push(&holder, &[IoSlice::new(b"abc"), IoSlice::new(b"def")], 4);
    assert_eq!((held.bytes(), pod.bytes()), (&b"ef"[..], 2));
    held.consume(1);
    pod.push(&mut held, 1, b"g");
    assert_eq!((held.bytes(), pod.bytes()), (&b"fg"[..], 2));
    held.consume(2);
    assert!(held.is_empty() && pod.bytes() == 0);
    let held = pod.holds(1, BUDGET / 4);
    assert!(!pod.account.may_grow() && !pod.account.has_room());
    drop(held);
    assert!(pod.account.may_grow() && pod.account.has_room());
    assert_eq!(pod.account.free(), BUDGET);
}

#[tokio::test(start_paused = true)]
async fn who_holds_all_it_may_takes_no_room_from_others() {
    let ca = Ca::new();
    let (greedy, other, third) = (Pod::new(&ca), Pod::new(&ca), Pod::new(&ca));
    let _held = greedy.holds(1, BUDGET / 2);
    assert!(!greedy.account.has_room());
    assert!(other.account.has_room());
    let _more = other.holds(1, BUDGET / 8);
    assert!(!other.account.has_room());
    assert!(third.account.has_room());
}

#[tokio::test(start_paused = true)]
async fn whoever_took_nothing_for_longest_is_given_up_first() {
    let pod = Pod::new(&Ca::new());
    let part = BUDGET / 16;
    let mut streams: Vec<Held> = (0..4).map(|n| pod.holds(n, part)).collect();
    assert!(!pod.account.has_room());
    tokio::time::advance(STALLED - Duration::from_secs(1)).await;
    // The first one is slow, but takes something.
    streams[0].consume(1);
    pod.push(&mut streams[0], 0, b"x");
    assert!(!pod.account.has_room());
    assert_eq!(pod.told(), [0; 0]);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(pod.account.has_room());
    assert_eq!(pod.told(), [1]);
    let given_up: Vec<bool> = streams.iter().map(Held::is_given_up).collect();
    assert_eq!(given_up, [false, true, false, false]);
    // What is given up is counted no more, not even when it goes.
    assert_eq!(pod.bytes(), 3 * part);
    streams.remove(1);
    assert_eq!(pod.bytes(), 3 * part);
}

#[tokio::test(start_paused = true)]
async fn beyond_what_may_ever_be_held_nobody_waits() {
    let pod = Pod::new(&Ca::new());
    let part = BUDGET / 32;
    let streams: Vec<Held> = (0..20).map(|n| pod.holds(n, part)).collect();
    assert_eq!(pod.bytes(), BUDGET / 2);
    assert_eq!(pod.told(), [0, 1, 2, 3]);
    assert_eq!(streams.iter().filter(|held| held.is_given_up()).count(), 4);
}
