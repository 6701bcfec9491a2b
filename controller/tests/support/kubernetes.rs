//! A scripted Kubernetes: an API server in memory behind a `kube::Client`, whose answers a test may spoil.
//!
//! It keeps objects as the real one does as far as callers can tell: one version counter for everything, `uid`,
//! `generation`, status as a subresource, finalizers, pages that belong to one version, watches from a version with
//! bookmarks every minute, merge patches and server-side apply, preconditions. No admission, no validation, no garbage
//! collection by owner. Everything that waits waits on tokio's clock: with paused time a test is over at once.
//!
//! A test file takes it with `#[path = "support/kubernetes.rs"] mod kubernetes;`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "each test file uses its part"
)]

#[path = "kubernetes/apply.rs"]
mod apply;
#[path = "kubernetes/asked.rs"]
mod asked;
#[path = "kubernetes/serve.rs"]
mod serve;
#[path = "kubernetes/store.rs"]
mod store;
#[path = "kubernetes/watching.rs"]
mod watching;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use self::store::Store;

/// How long a test waits for something on its own clock before it fails and says what was called.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The API server, and what a test may do to it.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    frozen: watch::Sender<bool>,
}

struct State {
    store: Store,
    rules: Vec<Rule>,
    calls: Vec<Call>,
    watches: Vec<watching::Watch>,
}

/// One call, as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// `GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `DELETE`.
    pub verb: &'static str,
    /// Without the query.
    pub path: String,
    /// The parameters, decoded.
    pub query: Vec<(String, String)>,
    /// What the caller wants for an answer.
    pub accept: String,
    /// What came with it, or null.
    pub body: Value,
    /// On tokio's clock.
    pub at: Instant,
    /// How it stands.
    pub end: End,
}

/// How a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No answer yet.
    Open,
    /// The head of the answer was sent.
    Answered(u16),
    /// The caller no longer waits.
    GivenUp,
}

/// What happens to calls that match.
#[derive(Debug, Clone)]
struct Rule {
    verb: String,
    path: String,
    times: Option<usize>,
    fault: Fault,
}

/// How an answer is spoilt.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Never answered, and nothing done.
    Hang,
    /// Done, but the answer never comes.
    LoseAnswer,
    /// Done and answered so much later.
    Delay(Duration),
    /// Head at once, and then no byte of the body; for a watch: silence.
    Stall,
    /// Refused with this status and reason.
    Refuse(u16, &'static str),
    /// 429 with this many seconds in `Retry-After`, and a body that is no `Status`.
    Busy(u64),
    /// The connection ends without an answer.
    Cut,
    /// This object is the answer, whatever was asked.
    Answer(Value),
}

// === impl Cluster ===

impl Cluster {
    /// Empty, with the usual kinds and those of the Gateway API.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Mutex::new(State {
                store: Store::default(),
                rules: Vec::new(),
                calls: Vec::new(),
                watches: Vec::new(),
            })),
            changed: watch::Sender::new(0),
            frozen: watch::Sender::new(false),
        }
    }

    /// A client of this API server. Needs a runtime.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.service(), "default")
    }

    /// What a client talks to, for those who put layers around it.
    pub fn service(&self) -> serve::Server {
        serve::Server::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    // --- objects, as somebody else changes them ---

    /// Creates or replaces this object, status and all; as it is then.
    pub fn put(&self, object: Value) -> Value {
        let put = self.lock().store.put(object);
        self.tell();
        put
    }

    /// Edits an object that is there; as it is then.
    pub fn edit(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        with: impl FnOnce(&mut Value),
    ) -> Value {
        let mut object = self
            .get(plural, namespace, name)
            .unwrap_or_else(|| panic!("no {plural} {namespace}/{name}"));
        with(&mut object);
        self.put(object)
    }

    /// Deletes an object, at once or, if it has finalizers, when they are gone.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.lock().store.remove(plural, namespace, name);
        self.tell();
    }

    /// The object, if it is there.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().store.get(plural, namespace, name).cloned()
    }

    /// All objects of a kind, by namespace and name.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.lock().store.all(plural)
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.lock().store.version()
    }

    /// Lets the version counter move on, as it does when something else is written that nobody here watches.
    pub fn pass(&self) -> u64 {
        self.lock().store.pass()
    }

    /// Forgets the past: watches and pages of older versions are answered 410.
    pub fn compact(&self) {
        self.lock().store.compact();
    }

    /// Installs a kind, or takes it away (404).
    pub fn install(&self, plural: &str, installed: bool) {
        self.lock().store.install(plural, installed);
    }

    // --- faults ---

    /// Spoils all calls that match: `verb` as in [`Call`] or `*`, `path` with `*` for any characters.
    pub fn spoil(&self, verb: &str, path: &str, fault: Fault) {
        self.rule(verb, path, None, fault);
    }

    /// As [`Self::spoil`], only so many times.
    pub fn spoil_times(&self, times: usize, verb: &str, path: &str, fault: Fault) {
        self.rule(verb, path, Some(times), fault);
    }

    fn rule(&self, verb: &str, path: &str, times: Option<usize>, fault: Fault) {
        self.lock().rules.push(Rule {
            verb: verb.to_owned(),
            path: path.to_owned(),
            times,
            fault,
        });
    }

    /// Takes all rules away. What hangs goes on hanging.
    pub fn heal(&self) {
        self.lock().rules.clear();
    }

    /// Stops the process: no call and no watch is answered before [`Self::thaw`], and then all of them.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Lets the process go on.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// The watches that are open say nothing more, for ever, as behind a dead connection.
    pub fn silence(&self) {
        self.lock().watches.iter_mut().for_each(|one| one.silence());
    }

    /// The watches that are open end.
    pub fn cut(&self) {
        self.lock().watches.clear();
    }

    // --- what was called ---

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Those that match, as in [`Self::spoil`].
    pub fn called(&self, verb: &str, path: &str) -> Vec<Call> {
        let matches = |call: &Call| matches(verb, call.verb) && matches(path, &call.path);
        self.lock()
            .calls
            .iter()
            .filter(|call| matches(call))
            .cloned()
            .collect()
    }

    /// Calls that wait for an answer.
    pub fn in_flight(&self, verb: &str, path: &str) -> usize {
        let open = |call: &&Call| call.end == End::Open;
        self.called(verb, path).iter().filter(open).count()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        // Those that are open keep their place in the list.
        let mut state = self.lock();
        let kept = state
            .calls
            .iter()
            .rposition(|call| call.end == End::Open)
            .map_or(0, |at| at + 1);
        if kept == 0 {
            state.calls.clear();
        } else {
            panic!("a call is open: {:?}", state.calls[kept - 1]);
        }
    }

    /// Waits until it is so; it is looked at again whenever a call begins or ends or an object changes.
    pub async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if so(self) {
                    return;
                }
                let _ = changed.changed().await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let calls = self.calls();
            let last = calls.iter().rev().take(20).rev();
            let last: Vec<String> = last
                .map(|call| {
                    format!(
                        "{} {} {:?} {:?}",
                        call.verb, call.path, call.query, call.end
                    )
                })
                .collect();
            panic!(
                "never: {what}; {} calls, the last:\n{}",
                calls.len(),
                last.join("\n")
            );
        }
    }

    /// Passes on to the watches what has happened since.
    fn tell(&self) {
        {
            let State { store, watches, .. } = &mut *self.lock();
            watches.retain_mut(|watch| watch.tell(store));
        }
        self.touch();
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// The first rule that matches and is not used up.
    fn fault(&mut self, verb: &str, path: &str) -> Option<Fault> {
        let rule = self.rules.iter_mut().find(|rule| {
            matches(&rule.verb, verb) && matches(&rule.path, path) && rule.times != Some(0)
        })?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        Some(rule.fault.clone())
    }
}

/// Whether `text` is what `pattern` says, in which `*` is any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| matches(rest, &text[at..]))
        }),
    }
}
