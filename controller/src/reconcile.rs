//! Brings Kubernetes to what the table of desired state says, object by object, for as long as it takes.
//!
//! ```text
//!  table ──▶ what differs ──▶ Queue ──▶ one try of one object, with a deadline ──▶ Outcome ──▶ Queue
//!  lease ──▶ what this replica may write ─┘
//!  watches of what was made ──▶ nudges ───┘
//! ```
//!
//! Level-triggered: a try reads what is wanted when it starts, and whoever becomes leader begins with the whole table.
//! One task owns all of this and never waits for a call: whatever the API server does, it goes on reading the table.

mod accepted;
mod attempt;
mod class;
mod complaints;
mod events;
mod gate;
pub mod outcome;
pub mod queue;
pub(crate) mod roots;
pub mod seen;
mod status;
mod strays;
pub mod waypoint;
mod work;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

pub use self::accepted::name as accepted_name;
use self::attempt::{Try, attempt};
pub(crate) use self::class::classes;
use self::complaints::Complaints;
use self::events::{Backlog, Budgets, Told};
use self::outcome::{Failure, Outcome};
use self::queue::{Queue, Then, Work as _};
use self::seen::Seen;
use self::strays::Strays;
use self::work::{Work, WorkKind};
use crate::index::changes::{Kind, Notice, Target, Write};
use crate::index::desired::{DesiredState, Entry, Item, Wanted, Writer};
use crate::lease::{Term, fenced};
use crate::metrics::Metrics;
use crate::text::one_line;
use crate::waypoint::render::Mesh;

/// Whose fields ours are, in every object we write to.
pub const FIELD_MANAGER: &str = "ambit.mesh/controller";
/// Tries at once: few enough for any API server. A namespace gets half of them at most, and its pods half of that, which
/// is enough to enrol it quickly.
const PLACES: usize = 64;
/// A status that was written and is not seen after so long was overwritten, or the watch lags: it is written again.
const CONFIRM: Duration = Duration::from_secs(30);
/// How often what stays wanted is looked at, even if nothing changed: watches tell sooner.
const RESYNC: Duration = Duration::from_secs(300);
/// The same for roots, which whoever may write ConfigMaps in his namespace can rewrite.
const RESYNC_ROOTS: Duration = Duration::from_secs(60);
/// A note that is logged is no longer than this.
const MAX_LOGGED: usize = 1024;

/// What all tries have in common.
#[derive(Clone)]
pub struct Settings {
    /// Writes without asking who leads.
    pub client: Client,
    /// This replica's pod: it stands in Events.
    pub instance: String,
    /// The controller's namespace.
    pub namespace: String,
    /// What waypoints have in common.
    pub mesh: Mesh,
    /// The roots, PEM. Others are written as soon as each namespace's are looked at again.
    pub roots: watch::Receiver<String>,
    /// The file of revocation lists, which is published beside the roots, as it is then.
    pub revocations: Option<PathBuf>,
}

/// What a reconciler reads.
pub struct Inputs {
    /// The table.
    pub desired: watch::Receiver<DesiredState>,
    /// Whether this replica writes what is the leader's to write.
    pub term: Term,
    /// What happened to things that were made.
    pub seen: mpsc::Receiver<Seen>,
    /// What people are to be told beside the table: it holds, and whoever tells it again tells nothing new.
    pub notices: mpsc::Receiver<Notice>,
}

/// Reconciles.
pub struct Reconciler {
    settings: Arc<Settings>,
    /// Writes only while this replica leads.
    leader: Client,
    term: Term,
    leads: bool,
    /// As the index published it.
    published: DesiredState,
    strays: Strays,
    /// Both.
    table: DesiredState,
    queue: Queue<Work>,
    tries: JoinSet<(Try, Outcome)>,
    running: HashMap<Id, Work>,
    /// When an entry of the table was first tried: a second try writes the same, and people are told once.
    first_tried: HashMap<Item, Timestamp>,
    backlog: Backlog,
    budgets: Budgets,
    complaints: Complaints,
    metrics: Metrics,
}

// === impl Reconciler ===

impl Reconciler {
    /// Knows of nothing that is wanted yet.
    pub fn new(settings: Settings, term: Term, metrics: Metrics) -> Self {
        Self {
            leader: fenced(settings.client.clone(), term.clone()),
            leads: term.leads(),
            term,
            settings: Arc::new(settings),
            published: DesiredState::default(),
            strays: Strays::default(),
            table: DesiredState::default(),
            queue: Queue::new(PLACES),
            tries: JoinSet::new(),
            running: HashMap::new(),
            first_tried: HashMap::new(),
            backlog: Backlog::default(),
            budgets: Budgets::default(),
            complaints: Complaints::default(),
            metrics,
        }
    }

    /// Runs until nobody publishes a table any more.
    pub async fn run(mut self, mut inputs: Inputs) {
        self.take_table(inputs.desired.borrow_and_update().clone());
        loop {
            self.take_term();
            self.start();
            let due = self.queue.next_due();
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = inputs.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_table(inputs.desired.borrow_and_update().clone());
                }
                Some(ended) = self.tries.join_next_with_id() => self.ended(ended),
                () = inputs.term.changed() => {}
                Some(seen) = inputs.seen.recv() => self.nudge(seen),
                Some(notice) = inputs.notices.recv() => self.publish(Told::standing(notice)),
                () = wait => {}
            }
        }
    }

    fn take_table(&mut self, published: DesiredState) {
        let table = self.strays.complete(published.clone());
        self.published = published;
        for difference in self.table.diff(&table) {
            if let DiffItem::Remove(item, _) | DiffItem::Update { new: (item, _), .. } = &difference
            {
                self.first_tried.remove(*item);
            }
            match difference {
                DiffItem::Remove(item, _) => self.queue.remove(&Work::Item(item.clone())),
                DiffItem::Add(item, entry)
                | DiffItem::Update {
                    new: (item, entry), ..
                } => {
                    let work = Work::Item(item.clone());
                    if may_write(self.leads, entry) {
                        self.queue.request(work);
                    } else {
                        self.queue.remove(&work);
                    }
                }
            }
        }
        self.table = table;
    }

    /// Begins with everything when this replica begins to lead, and leaves it when it ceases to.
    fn take_term(&mut self) {
        let leads = self.term.leads();
        if std::mem::replace(&mut self.leads, leads) == leads {
            return;
        }
        let items = self.table.iter();
        for (item, _) in items.filter(|(_, entry)| entry.writer == Writer::Leader) {
            let work = Work::Item(item.clone());
            if leads {
                self.queue.request(work);
            } else {
                self.queue.remove(&work);
            }
        }
    }

    fn nudge(&mut self, seen: Seen) {
        let item = match seen {
            Seen::Child(gateway) => {
                // Roots go once nothing runs there any more.
                let roots = Item::Roots(gateway.namespace.clone());
                let unwanted = |entry: &Arc<Entry>| entry.wanted == Wanted::NoRoots;
                if self.table.get(&roots).is_some_and(unwanted) {
                    self.nudge_item(roots);
                }
                Item::Waypoint(gateway)
            }
            Seen::Roots(namespace) => {
                if self.strays.seen(&namespace) {
                    self.take_table(self.published.clone());
                }
                Item::Roots(namespace)
            }
        };
        self.nudge_item(item);
    }

    fn nudge_item(&mut self, item: Item) {
        let entry = self.table.get(&item);
        if entry.is_some_and(|entry| may_write(self.leads, entry)) {
            self.queue.nudge(Work::Item(item), Instant::now());
        }
    }

    /// Starts what has its turn.
    fn start(&mut self) {
        let now = Instant::now();
        while let Some(work) = self.queue.next(now) {
            let (what, client) = match self.prepare(&work, now) {
                Ok(prepared) => prepared,
                Err(then) => {
                    self.queue.finished(&work, then, now, 1.0);
                    continue;
                }
            };
            let settings = self.settings.clone();
            let handle = self.tries.spawn(async move {
                let outcome = attempt(&client, &settings, &what).await;
                (what, outcome)
            });
            self.running.insert(handle.id(), work);
        }
    }

    /// What is to be tried, as it is wanted now; or what is to be done instead.
    fn prepare(&mut self, work: &Work, now: Instant) -> Result<(Try, Client), Then> {
        let again = |wait| Then::Again(wait);
        match work {
            Work::Item(item) => {
                let entry = self.table.get(item);
                let entry = entry.filter(|entry| may_write(self.leads, entry));
                let entry = entry.cloned().ok_or(Then::Forget)?;
                if let Wanted::Events(notices) = &entry.wanted {
                    let namespace = &work.lane().namespace;
                    self.budgets
                        .take(namespace, notices.len(), now)
                        .map_err(again)?;
                }
                let client = match entry.writer {
                    Writer::Leader => self.leader.clone(),
                    Writer::ThisReplica => self.settings.client.clone(),
                };
                let first = self.first_tried.entry(item.clone());
                let at = *first.or_insert_with(Timestamp::now);
                Ok((Try::Entry(item.clone(), entry, at), client))
            }
            Work::Tell(target) => {
                if !self.backlog.has(target) {
                    return Err(Then::Forget);
                }
                self.budgets
                    .take(&target.key.namespace, 1, now)
                    .map_err(again)?;
                let told = self.backlog.pop(target).ok_or(Then::Forget)?;
                Ok((Try::Tell(told), self.settings.client.clone()))
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, (Try, Outcome)), JoinError>) {
        let now = Instant::now();
        let jitter = fastrand::f64();
        let (id, result) = match ended {
            Ok((id, result)) => (id, Some(result)),
            Err(error) => {
                tracing::error!(%error, "a reconcile task panicked");
                (error.id(), None)
            }
        };
        let Some(work) = self.running.remove(&id) else {
            return;
        };
        let then = match result {
            None => Then::Refused,
            Some((what, outcome)) => self.judge(&work, what, &outcome),
        };
        let wait = self.queue.finished(&work, then, now, jitter);
        tracing::trace!(?work, ?then, ?wait, "tried");
    }

    /// What a try's outcome means: who is told, and what comes next.
    fn judge(&mut self, work: &Work, what: Try, outcome: &Outcome) -> Then {
        self.metrics.wrote(outcome.word());
        if let Outcome::Failed(failure) = outcome {
            self.complaints.about(work, failure);
        }
        match what {
            Try::Entry(item, entry, at) => {
                match outcome {
                    Outcome::Done => self.tell_written(&entry, at),
                    Outcome::Moot => {}
                    Outcome::Failed(failure) => self.tell_failed(&item, &entry, failure),
                }
                if let (Item::Roots(namespace), Wanted::NoRoots, Outcome::Done) =
                    (&item, &entry.wanted, outcome)
                {
                    self.strays.gone(namespace);
                    self.take_table(self.published.clone());
                }
                let wanted = self.table.get(&item);
                if wanted.is_some_and(|entry| may_write(self.leads, entry)) {
                    outcome.then(resync(&entry.wanted))
                } else {
                    Then::Forget
                }
            }
            Try::Tell(told) => {
                // Events are for people: one that cannot be made now is not made later.
                let more = self.backlog.has(&told.notice.target);
                match outcome {
                    Outcome::Failed(_) if more => outcome.then(None),
                    _ if more => Then::Again(Duration::ZERO),
                    _ => Then::Forget,
                }
            }
        }
    }

    /// What people are told when a status is written.
    fn tell_written(&mut self, entry: &Entry, at: Timestamp) {
        let Wanted::Status(write) = &entry.wanted else {
            return;
        };
        // The patch has the time in it.
        let occasion: Arc<str> = write.patch(at).to_string().into();
        for notice in &write.notices {
            self.tell(Told {
                notice: notice.clone(),
                occasion: occasion.clone(),
            });
        }
    }

    /// What cannot be done and its owner can mend is told on the object.
    fn tell_failed(&mut self, item: &Item, entry: &Entry, failure: &Failure) {
        let (target, uid, reason) = match (item, &entry.wanted) {
            (Item::Status(target), Wanted::Status(write)) => {
                if !matches!(failure, Failure::Refused(_)) {
                    return;
                }
                (target.clone(), uid(write), "StatusRefused")
            }
            (Item::Waypoint(key), Wanted::Waypoint(plan)) => {
                let target = Target {
                    kind: Kind::Gateway,
                    key: key.clone(),
                };
                (target, plan.uid.clone(), "DeploymentFailed")
            }
            _ => return,
        };
        if failure.concerns_the_object() {
            self.tell(Told::standing(Notice {
                target,
                uid,
                warning: true,
                reason: reason.to_owned(),
                note: failure.to_string(),
            }));
        }
    }

    fn tell(&mut self, told: Told) {
        log(&told.notice);
        self.publish(told);
    }

    /// As an Event, when its namespace may have one.
    fn publish(&mut self, told: Told) {
        let target = told.notice.target.clone();
        if self.backlog.push(told) {
            self.queue.request(Work::Tell(target));
        }
    }
}

/// Whether an entry is this replica's to write.
fn may_write(leads: bool, entry: &Entry) -> bool {
    leads || entry.writer == Writer::ThisReplica
}

/// When what is as wanted is looked at again.
fn resync(wanted: &Wanted) -> Option<Duration> {
    match wanted {
        Wanted::Events(_) => None,
        Wanted::Status(_) | Wanted::Class | Wanted::Gate { .. } => Some(CONFIRM),
        Wanted::Roots => Some(RESYNC_ROOTS),
        Wanted::Waypoint(_) | Wanted::NoWaypoint { .. } | Wanted::NoRoots | Wanted::Accepted(_) => {
            Some(RESYNC)
        }
    }
}

fn uid(write: &Write) -> Arc<str> {
    let uid = write.body["metadata"]["uid"].as_str();
    uid.unwrap_or_default().into()
}

fn log(notice: &Notice) {
    if notice.warning {
        let Target { kind, key } = &notice.target;
        // Others may have written it: quoted, it is one line.
        let note = one_line(&notice.note, MAX_LOGGED);
        tracing::warn!(?kind, object = %key, reason = notice.reason, note, "published as an Event");
    }
}
