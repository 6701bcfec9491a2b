//! Bytes that applications have not taken yet, counted for whom they are held: who has too many of them gives back what
//! has lain longest.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::ready::Ready;
use crate::Credentials;
use crate::limits::{BUDGET, GROWING_PART, STALLED, WELCOME_PART};
use crate::session::Key;

thread_local! {
    static HERE: RefCell<Thread> = RefCell::default();
}

/// All that one thread holds.
#[derive(Default)]
struct Thread {
    bytes: Arc<AtomicUsize>,
    /// By where their credentials are, which an account keeps there.
    accounts: HashMap<usize, Weak<Account>>,
}

/// What one thread holds for all connections, dialled and accepted, in the name of the same credentials. Only this thread
/// takes the lock, but for a pipe that is let go of on another one.
pub(crate) struct Account {
    credentials: Credentials,
    /// Of all accounts of the thread.
    of_all: Arc<AtomicUsize>,
    line: Mutex<Line>,
}

/// The streams with bytes that are not taken; first who has taken nothing for longest.
#[derive(Default)]
struct Line {
    next: u64,
    streams: BTreeMap<u64, Stalled>,
    /// Of all of them.
    bytes: usize,
}

/// One stream in the line.
struct Stalled {
    since: Instant,
    bytes: usize,
    ready: Arc<Ready>,
    key: Key,
}

/// What one stream holds. Empty, it has no memory; and it is a pointer, because it almost always is.
#[derive(Default)]
pub(crate) struct Held(Option<Box<Backlog>>);

struct Backlog {
    bytes: Vec<u8>,
    /// What of it is gone already.
    at: usize,
    account: Arc<Account>,
    /// In the account's line. Who has lost it is given up, and counts no more.
    place: u64,
}

/// For whom bytes are held, and who is told when they are given up.
pub(crate) struct Holder<'a> {
    pub(crate) account: &'a Arc<Account>,
    pub(crate) ready: &'a Arc<Ready>,
    pub(crate) key: Key,
}

// === impl Account ===

impl Account {
    /// This thread's account of these credentials.
    pub(crate) fn of(credentials: &Credentials) -> Arc<Self> {
        HERE.with_borrow_mut(|here| {
            let at = credentials.place();
            if let Some(account) = here.accounts.get(&at).and_then(Weak::upgrade) {
                return account;
            }
            here.accounts
                .retain(|_, account| account.strong_count() > 0);
            let account = Arc::new(Self {
                credentials: credentials.clone(),
                of_all: here.bytes.clone(),
                line: Mutex::default(),
            });
            here.accounts.insert(at, Arc::downgrade(&account));
            account
        })
    }

    /// Whether windows may grow.
    pub(crate) fn may_grow(&self) -> bool {
        self.line.lock().bytes < self.free() / GROWING_PART
    }

    /// Whether new streams are welcome; makes room for them where it can.
    pub(crate) fn has_room(&self) -> bool {
        let mut line = self.line.lock();
        self.reclaim(&mut line);
        line.bytes < self.free() / WELCOME_PART
    }

    /// What is left for all accounts of the thread. Who has less than this may have more: alone it gets half, and however
    /// many take what they can, the next one finds room.
    fn free(&self) -> usize {
        BUDGET.saturating_sub(self.of_all.load(Ordering::Relaxed))
    }

    /// Gives streams up, the longest stalled first: where new ones are not welcome those that take nothing at all, where
    /// there is no room whoever it is.
    fn reclaim(&self, line: &mut Line) {
        while line.bytes >= self.free() / WELCOME_PART
            && let Some((&place, first)) = line.streams.first_key_value()
            && (line.bytes > self.free() || first.since.elapsed() >= STALLED)
        {
            let Some(stream) = line.streams.remove(&place) else {
                return;
            };
            self.uncount(line, stream.bytes);
            stream.ready.push(stream.key);
        }
    }

    /// A stream's application begins to leave bytes; its place in the line.
    fn enter(&self, ready: &Arc<Ready>, key: Key) -> u64 {
        let mut line = self.line.lock();
        line.insert(Stalled {
            since: Instant::now(),
            bytes: 0,
            ready: ready.clone(),
            key,
        })
    }

    fn add(&self, place: u64, n: usize) {
        let mut line = self.line.lock();
        let Some(stream) = line.streams.get_mut(&place) else {
            return;
        };
        stream.bytes += n;
        line.bytes += n;
        self.of_all.fetch_add(n, Ordering::Relaxed);
        self.reclaim(&mut line);
    }

    /// An application took `n` bytes: behind all others again. Its new place.
    fn take(&self, place: u64, n: usize) -> u64 {
        let mut line = self.line.lock();
        let Some(mut stream) = line.streams.remove(&place) else {
            return place;
        };
        stream.bytes -= n;
        stream.since = Instant::now();
        self.uncount(&mut line, n);
        line.insert(stream)
    }

    /// Nothing is held for a stream any more.
    fn leave(&self, place: u64) {
        let mut line = self.line.lock();
        if let Some(stream) = line.streams.remove(&place) {
            self.uncount(&mut line, stream.bytes);
        }
    }

    fn uncount(&self, line: &mut Line, n: usize) {
        line.bytes -= n;
        self.of_all.fetch_sub(n, Ordering::Relaxed);
    }

    fn has_given_up(&self, place: u64) -> bool {
        !self.line.lock().streams.contains_key(&place)
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("credentials", &self.credentials)
            .field("bytes", &self.line.lock().bytes)
            .finish_non_exhaustive()
    }
}

// === impl Line ===

impl Line {
    fn insert(&mut self, stream: Stalled) -> u64 {
        let place = self.next;
        self.next += 1;
        self.streams.insert(place, stream);
        place
    }
}

// === impl Held ===

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether its stream must be reset, because the bytes take room that others need.
    pub(crate) fn is_given_up(&self) -> bool {
        let backlog = self.0.as_ref();
        backlog.is_some_and(|backlog| backlog.account.has_given_up(backlog.place))
    }

    /// Appends all of `slices` but the first `skip` bytes.
    pub(crate) fn push(&mut self, holder: &Holder<'_>, slices: &[IoSlice<'_>], mut skip: usize) {
        let mut pushed = 0;
        for slice in slices {
            let from = skip.min(slice.len());
            skip -= from;
            let rest = &slice[from..];
            if rest.is_empty() {
                continue;
            }
            let backlog = self.0.get_or_insert_with(|| {
                Box::new(Backlog {
                    bytes: Vec::new(),
                    at: 0,
                    account: holder.account.clone(),
                    place: holder.account.enter(holder.ready, holder.key),
                })
            });
            backlog.bytes.extend_from_slice(rest);
            pushed += rest.len();
        }
        if let Some(backlog) = &self.0 {
            backlog.account.add(backlog.place, pushed);
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Some(backlog) => &backlog.bytes[backlog.at..],
            None => &[],
        }
    }

    /// Forgets the first `n` bytes, which the application took.
    pub(crate) fn consume(&mut self, n: usize) {
        let Some(backlog) = &mut self.0 else { return };
        backlog.at += n;
        if backlog.at == backlog.bytes.len() {
            self.0 = None;
        } else if n > 0 {
            backlog.place = backlog.account.take(backlog.place, n);
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.account.leave(self.place);
    }
}

#[cfg(test)]
mod tests;
