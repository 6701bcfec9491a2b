//! Writes status and Events: the index says what should be, this keeps trying until it is or is no longer wanted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::index::changes::{How, Notice, Target, Write};
use crate::metrics::Metrics;

/// Whose fields ours are, in every object we write to.
pub const FIELD_MANAGER: &str = "ambit.mesh/controller";
/// Writes at once: enough for a namespace to be enrolled quickly, few enough for any API server.
const AT_ONCE: usize = 16;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the writer is told.
#[derive(Debug)]
pub enum Order {
    /// Write this to that object, or (`None`) no longer try.
    Write(Target, Option<Box<Write>>),
    /// Tell people, where there is no status to write.
    Notice(Notice),
}

/// Writes.
pub struct Writer {
    client: Client,
    recorder: Recorder,
    metrics: Metrics,
    wanted: BTreeMap<Target, Write>,
    running: HashSet<Target>,
    retries: HashMap<Target, (Instant, Duration)>,
    tasks: JoinSet<(Target, Write, Outcome)>,
}

/// What became of a write.
enum Outcome {
    Done,
    /// The object is gone, or not the one it was; the watch will say so.
    Moot,
    Failed(kube::Error),
}

// === impl Writer ===

impl Writer {
    /// Writes and tells as this pod.
    pub fn new(client: Client, pod: &str, metrics: Metrics) -> Self {
        let reporter = Reporter {
            controller: "ambit-controller".to_owned(),
            instance: Some(pod.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            metrics,
            wanted: BTreeMap::new(),
            running: HashSet::new(),
            retries: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Runs until nobody orders any more.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            self.start();
            let next = self.retries.values().map(|(at, _)| *at).min();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.order(order),
                    None => return,
                },
                Some(Ok((target, write, outcome))) = self.tasks.join_next() => self.ended(target, write, &outcome),
                () = wait => {}
            }
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Write(target, write) => {
                self.retries.remove(&target);
                match write {
                    Some(write) => self.wanted.insert(target, *write),
                    None => self.wanted.remove(&target),
                };
            }
            Order::Notice(notice) => self.tell(vec![notice]),
        }
    }

    /// Starts what is wanted, is not running and need not wait.
    fn start(&mut self) {
        let now = Instant::now();
        while self.running.len() < AT_ONCE {
            let due = |target: &Target| self.retries.get(target).is_none_or(|(at, _)| *at <= now);
            let next = self
                .wanted
                .keys()
                .find(|target| !self.running.contains(*target) && due(target));
            let Some(target) = next.cloned() else { return };
            let Some(write) = self.wanted.remove(&target) else {
                return;
            };
            self.running.insert(target.clone());
            let client = self.client.clone();
            self.tasks.spawn(async move {
                let outcome = attempt(client, &target, &write).await;
                (target, write, outcome)
            });
        }
    }

    fn ended(&mut self, target: Target, write: Write, outcome: &Outcome) {
        self.running.remove(&target);
        match outcome {
            Outcome::Done => {
                self.metrics.wrote("done");
                self.retries.remove(&target);
                tracing::debug!(kind = ?target.kind, object = %target.key, "status written");
                self.tell(write.notices);
            }
            Outcome::Moot => {
                self.metrics.wrote("moot");
                self.retries.remove(&target);
            }
            Outcome::Failed(error) => {
                self.metrics.wrote("failed");
                let pause = self
                    .retries
                    .get(&target)
                    .map_or(FIRST_RETRY, |(_, pause)| (*pause * 2).min(LAST_RETRY));
                tracing::warn!(kind = ?target.kind, object = %target.key, %error, ?pause, "status cannot be written");
                self.retries
                    .insert(target.clone(), (Instant::now() + pause, pause));
                // What was ordered in the meantime is newer.
                self.wanted.entry(target).or_insert(write);
            }
        }
    }

    /// Events are for people: one that is lost is not tried again.
    fn tell(&self, notices: Vec<Notice>) {
        for notice in notices {
            if notice.warning {
                let Target { kind, key } = &notice.target;
                tracing::warn!(?kind, object = %key, reason = notice.reason, "{}", notice.note);
            }
            let recorder = self.recorder.clone();
            tokio::spawn(async move {
                let (event, object) = event(&notice);
                if let Err(error) = recorder.publish(&event, &object).await {
                    tracing::warn!(object = %notice.target.key, %error, "an Event cannot be published");
                }
            });
        }
    }
}

async fn attempt(client: Client, target: &Target, write: &Write) -> Outcome {
    let api = api(client, target);
    let name = &target.key.name;
    let written = match write.how {
        How::Apply => {
            let how = PatchParams::apply(FIELD_MANAGER).force();
            api.patch_status(name, &how, &Patch::Apply(&write.body))
                .await
        }
        How::Merge => {
            let how = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..Default::default()
            };
            api.patch_status(name, &how, &Patch::Merge(&write.body))
                .await
        }
    };
    match written {
        Ok(_) => Outcome::Done,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Outcome::Moot,
        Err(error) => Outcome::Failed(error),
    }
}

fn api(client: Client, target: &Target) -> Api<DynamicObject> {
    let resource = target.kind.api().resource();
    if target.key.namespace.is_empty() {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, &target.key.namespace, &resource)
    }
}

fn event(notice: &Notice) -> (Event, ObjectReference) {
    let api = notice.target.kind.api();
    let key = &notice.target.key;
    let object = ObjectReference {
        api_version: Some(api.api_version()),
        kind: Some(api.kind.to_owned()),
        name: Some(key.name.to_string()),
        namespace: (!key.namespace.is_empty()).then(|| key.namespace.to_string()),
        uid: Some(notice.uid.to_string()),
        ..Default::default()
    };
    // The API server takes no longer notes.
    let note = notice.note.chars().take(1000).collect();
    let event = Event {
        type_: if notice.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: notice.reason.clone(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    (event, object)
}
