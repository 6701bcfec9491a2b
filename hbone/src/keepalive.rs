//! Whether the peer still lives, and whether anybody still uses the connection to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Asks the peer every interval whether it lives.
pub(crate) struct Keepalive {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    state: State,
    interval: Duration,
    timeout: Duration,
}

/// What the timer stands for.
enum State {
    /// The next question.
    Waiting,
    /// The end of patience with the last one.
    Asked,
}

/// How much a connection is used.
pub(crate) struct Usage {
    streams: AtomicUsize,
    /// When the last stream ended, in milliseconds after `start`.
    idle_since: AtomicU64,
    start: Instant,
}

/// One stream's use of its connection, until dropped.
pub(crate) struct InUse(Arc<Usage>);

// === impl Keepalive ===

impl Keepalive {
    pub(crate) fn new(pings: PingPong, interval: Duration, timeout: Duration) -> Self {
        let timer = Box::pin(sleep(interval));
        Self {
            pings,
            timer,
            state: State::Waiting,
            interval,
            timeout,
        }
    }

    /// Ready when the peer is dead.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.state {
                State::Waiting => {
                    std::task::ready!(self.timer.as_mut().poll(cx));
                    if self.pings.send_ping(Ping::opaque()).is_err() {
                        // The connection has ended already and says so itself.
                        return Poll::Pending;
                    }
                    self.enter(State::Asked, self.timeout);
                }
                State::Asked => match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => self.enter(State::Waiting, self.interval),
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                },
            }
        }
    }

    fn enter(&mut self, state: State, wait: Duration) {
        self.state = state;
        self.timer.as_mut().reset(Instant::now() + wait);
    }
}

// === impl Usage ===

impl Usage {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            start: Instant::now(),
        })
    }

    /// Counts one more stream.
    pub(crate) fn take(self: &Arc<Self>) -> InUse {
        self.streams.fetch_add(1, Ordering::Relaxed);
        InUse(self.clone())
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// When the connection will have been unused for `limit`, as far as can be said now.
    fn idle_at(&self, limit: Duration) -> Instant {
        if self.streams() > 0 {
            return Instant::now() + limit;
        }
        self.start + Duration::from_millis(self.idle_since.load(Ordering::Relaxed)) + limit
    }
}

/// Ready when a connection has been unused for a while.
pub(crate) struct IdleEnd {
    usage: Arc<Usage>,
    timer: Pin<Box<Sleep>>,
    limit: Duration,
}

// === impl IdleEnd ===

impl IdleEnd {
    pub(crate) fn new(usage: Arc<Usage>, limit: Duration) -> Self {
        let timer = Box::pin(sleep_until(usage.idle_at(limit)));
        Self {
            usage,
            timer,
            limit,
        }
    }

    /// Ready once per idle period; costs nothing while streams come and go.
    pub(crate) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(self.timer.as_mut().poll(cx));
            let at = self.usage.idle_at(self.limit);
            if at <= Instant::now() {
                self.timer.as_mut().reset(Instant::now() + self.limit);
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(at);
        }
    }
}

// === impl InUse ===

impl Drop for InUse {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(now, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
