//! Tells people, by Events: each once, however many replicas tell it and however often.
//!
//! An Event's name comes from what it says of which object. The second one of a name is refused by the API server (409),
//! so that whoever becomes leader tells everything that holds, and repeats nothing.
//!
//! Each namespace has a budget of its own: somebody whose objects flip all the time spends his own.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::Instant;

use super::outcome::Outcome;
use crate::index::changes::{Notice, Target};
use crate::rate::{Bucket, Rate};
use crate::text::one_line;

/// The API server takes no longer notes.
const MAX_NOTE: usize = 1024;
/// No longer part of an object's name stands in the name of its Events: the whole must be shorter than 253.
const MAX_NAME: usize = 200;
/// Events that a namespace may have: its pods are enrolled together.
const EVENTS_OF_NAMESPACE: Rate = Rate {
    burst: 100,
    per_second: 2,
};
/// Namespaces whose budgets are kept before those that are whole are forgotten.
const MAX_BUDGETS: usize = 1024;
/// Notices that may wait in all. More than this is no news to anybody.
const MAX_BACKLOG: usize = 4096;
/// Notices that may wait about one object: the last ones say how it is.
const MAX_PER_OBJECT: usize = 8;
/// Where Events on objects without a namespace are put.
const DEFAULT_NAMESPACE: &str = "default";

/// Something to be told once, because it has just become so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) notice: Notice,
    /// What sets it apart from the same at another time.
    pub(super) occasion: Arc<str>,
}

/// What waits to be told, by object.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: HashMap<Target, VecDeque<Told>>,
    total: usize,
}

/// How many Events each namespace may have.
#[derive(Debug, Default)]
pub(super) struct Budgets(HashMap<Arc<str>, Bucket>);

/// Publishes one Event.
pub(super) async fn publish(client: &Client, instance: &str, told: &Told) -> Outcome {
    let notice = &told.notice;
    let namespace = &notice.target.key.namespace;
    let namespace = if namespace.is_empty() {
        DEFAULT_NAMESPACE
    } else {
        namespace
    };
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let event = event(namespace, instance, told);
    match events.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Done,
        created => created.into(),
    }
}

fn event(namespace: &str, instance: &str, told: &Told) -> Event {
    let notice = &told.notice;
    let api = notice.target.kind.api();
    let key = &notice.target.key;
    let regarding = ObjectReference {
        api_version: Some(api.api_version()),
        kind: Some(api.kind.to_owned()),
        name: Some(key.name.to_string()),
        namespace: (!key.namespace.is_empty()).then(|| key.namespace.to_string()),
        uid: Some(notice.uid.to_string()),
        ..ObjectReference::default()
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name(told)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.clone()),
        note: Some(one_line(&notice.note, MAX_NOTE)),
        action: Some("Reconcile".to_owned()),
        regarding: Some(regarding),
        event_time: Some(MicroTime(jiff::Timestamp::now())),
        reporting_controller: Some("ambit.mesh/controller".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// The same for the same, whoever tells it.
fn name(told: &Told) -> String {
    let Told { notice, occasion } = told;
    let parts = [&*notice.uid, &notice.reason, &notice.note, occasion];
    // No part has a NUL in it: nothing that is different looks the same.
    let hash = digest(&SHA256, parts.join("\0").as_bytes());
    let of: String = notice.target.key.name.chars().take(MAX_NAME).collect();
    let mut name = of
        .trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
        .to_owned();
    name.push('.');
    for byte in hash.as_ref().iter().take(8) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

// === impl Told ===

impl Told {
    /// Something that holds, whenever it is told.
    pub(super) fn standing(notice: Notice) -> Self {
        Self {
            notice,
            occasion: "".into(),
        }
    }
}

// === impl Backlog ===

impl Backlog {
    /// Lets it wait; too much is left out, and the oldest of an object first.
    pub(super) fn push(&mut self, told: Told) -> bool {
        let waiting = self.waiting.entry(told.notice.target.clone()).or_default();
        if waiting.contains(&told) {
            return true;
        }
        if waiting.len() >= MAX_PER_OBJECT {
            waiting.pop_front();
            self.total -= 1;
        }
        if self.total >= MAX_BACKLOG {
            if waiting.is_empty() {
                self.waiting.remove(&told.notice.target);
            }
            return false;
        }
        waiting.push_back(told);
        self.total += 1;
        true
    }

    /// Takes the next about an object.
    pub(super) fn pop(&mut self, target: &Target) -> Option<Told> {
        let waiting = self.waiting.get_mut(target)?;
        let told = waiting.pop_front();
        self.total -= usize::from(told.is_some());
        if waiting.is_empty() {
            self.waiting.remove(target);
        }
        told
    }

    /// Whether something waits about it.
    pub(super) fn has(&self, target: &Target) -> bool {
        self.waiting.contains_key(target)
    }
}

// === impl Budgets ===

impl Budgets {
    /// Takes `count` from a namespace's budget, or says how long until it has enough.
    pub(super) fn take(
        &mut self,
        namespace: &Arc<str>,
        count: usize,
        now: Instant,
    ) -> Result<(), Duration> {
        if self.0.len() >= MAX_BUDGETS {
            self.0.retain(|_, budget| !budget.is_full(now));
        }
        let budget = self.0.entry(namespace.clone());
        let budget = budget.or_insert_with(|| Bucket::new(EVENTS_OF_NAMESPACE, now));
        budget.take_many(count, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::changes::Kind;
    use crate::index::names::Key;

    fn told(name: &str, note: &str, occasion: &str) -> Told {
        let target = Target {
            kind: Kind::Pod,
            key: Key::new("shop", name),
        };
        let notice = Notice {
            target,
            uid: "u1".into(),
            warning: true,
            reason: "Why".to_owned(),
            note: note.to_owned(),
        };
        Told {
            notice,
            occasion: occasion.into(),
        }
    }

    #[test]
    fn the_same_has_the_same_name_and_another_has_another() {
        let one = name(&told("a", "note", ""));
        assert_eq!(one, name(&told("a", "note", "")));
        assert!(one.starts_with("a.") && one.len() == 18, "{one}");
        for other in [told("a", "other", ""), told("a", "note", "later")] {
            assert_ne!(one, name(&other));
        }
        let long = name(&told(&format!("{}.x", "a".repeat(199)), "note", ""));
        assert!(long.len() < 253 && !long.contains(".."), "{long}");
    }

    #[test]
    fn a_note_is_one_line_of_at_most_a_kibibyte() {
        let note = |note: &str| event("shop", "pod", &told("a", note, "")).note;
        assert_eq!(note("forged\nline").as_deref(), Some("forged\\nline"));
        let long = note(&"x".repeat(5000)).map(|note| note.len());
        assert_eq!(long, Some(MAX_NOTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_spends_its_own_budget() {
        let mut budgets = Budgets::default();
        let now = Instant::now();
        let (red, blue): (Arc<str>, Arc<str>) = ("red".into(), "blue".into());
        for _ in 0..100 {
            assert_eq!(budgets.take(&red, 1, now), Ok(()));
        }
        let wait = budgets.take(&red, 1, now).expect_err("it is spent");
        assert_eq!(wait.as_millis(), 501);
        assert_eq!(budgets.take(&blue, 1, now), Ok(()));
        assert_eq!(budgets.take(&red, 1, now + wait), Ok(()));
        assert!(budgets.take(&red, 1, now + wait).is_err());
    }

    #[test]
    fn the_last_words_about_an_object_are_kept_and_the_rest_is_bounded() {
        let mut backlog = Backlog::default();
        for note in 0..20 {
            assert!(backlog.push(told("a", &note.to_string(), "")));
        }
        assert!(backlog.push(told("a", "19", "")), "waits already");
        let target = told("a", "", "").notice.target;
        let kept: Vec<String> = std::iter::from_fn(|| backlog.pop(&target))
            .map(|told| told.notice.note)
            .collect();
        assert_eq!(kept, ["12", "13", "14", "15", "16", "17", "18", "19"]);
        assert!(!backlog.has(&target));
        for name in 0..MAX_BACKLOG {
            assert!(backlog.push(told(&name.to_string(), "", "")));
        }
        assert!(!backlog.push(told("one more", "", "")));
        assert!(backlog.pop(&told("0", "", "").notice.target).is_some());
        assert!(backlog.push(told("one more", "", "")));
    }
}
