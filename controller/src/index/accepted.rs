//! The last accepted generation of each route and Gateway: what was accepted stays in force when a later generation is
//! refused, after any restart and on every replica alike. It is kept in a ConfigMap per namespace, in the system's
//! namespace, where no tenant writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::changes::{Notice, Target};
use super::kinds::{ApiKind, Kind, WatchScope, Watched};
use super::names::{ACCEPTED_IN, ACCEPTED_PREFIX, Key};
use super::output::Output;
use super::{Settings, State};
use crate::gateway_api;
use crate::index::desired::{Entry, Item, Wanted};

/// What the entries of one namespace may take together: a ConfigMap holds 1 MiB, its names and managed fields included.
const MAX_BYTES: usize = 768 << 10;
/// So many objects that have no room are told of it, the first by name: Events of all are in the mesh's own budget.
const MAX_NOTICES: usize = 10;
/// A key of a ConfigMap has no more.
const MAX_NAME: usize = 253;

/// A generation that was accepted.
#[derive(Debug, PartialEq)]
pub(super) struct Accepted<T> {
    pub(super) generation: i64,
    pub(super) spec: Arc<T>,
    /// The spec as it is kept.
    raw: Arc<Value>,
}

/// What a namespace's ConfigMap says now, by object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    lines: BTreeMap<String, String>,
    /// The ConfigMap's resource version.
    version: String,
}

/// What the ConfigMaps should say, by namespace and object.
#[derive(Debug, Default)]
pub(super) struct ToKeep {
    lines: BTreeMap<Arc<str>, BTreeMap<String, Line>>,
    /// ConfigMaps, at their versions, with lines of objects of these kinds that the watches may not have told of yet.
    unseen: BTreeMap<Key, (String, BTreeSet<Kind>)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Line {
    target: Target,
    uid: Arc<str>,
    text: String,
}

// === impl Accepted ===

// By hand: what is shared need not be cloneable itself.
impl<T> Clone for Accepted<T> {
    fn clone(&self) -> Self {
        Self {
            generation: self.generation,
            spec: self.spec.clone(),
            raw: self.raw.clone(),
        }
    }
}

impl<T: DeserializeOwned> Accepted<T> {
    pub(super) fn new(generation: i64, spec: T, raw: &Value) -> Self {
        Self {
            generation,
            spec: Arc::new(spec),
            raw: Arc::new(raw.clone()),
        }
    }

    /// `None`: it is another object's of the same name, or cannot be read by this version.
    fn read(text: &str, uid: &str) -> Option<Self> {
        let mut line: Value = serde_json::from_str(text).ok()?;
        if line["uid"] != *uid {
            return None;
        }
        let raw = line["spec"].take();
        let spec = gateway_api::read(&raw).ok()?;
        Some(Self::new(line["generation"].as_i64()?, spec, &raw))
    }

    fn line(&self, uid: &str) -> String {
        json!({"uid": uid, "generation": self.generation, "spec": *self.raw}).to_string()
    }
}

// === impl Kept ===

impl Watched for Kept {
    type Object = DynamicObject;
    const API: ApiKind = ApiKind::core("ConfigMap", "configmaps");

    fn scope(settings: &Settings) -> WatchScope {
        WatchScope {
            namespace: Some(settings.system_namespace.clone()),
            labels: Some(ACCEPTED_IN.to_owned()),
            ..WatchScope::default()
        }
    }

    fn parse(object: &DynamicObject) -> Option<Self> {
        let data = object.data["data"].as_object().into_iter().flatten();
        let text =
            |(name, text): (&String, &Value)| Some((name.clone(), text.as_str()?.to_owned()));
        Some(Self {
            lines: data.filter_map(text).collect(),
            version: object.metadata.resource_version.clone().unwrap_or_default(),
        })
    }

    fn touch(state: &mut State, key: &Key, _before: Option<&Self>, _now: Option<&Self>) {
        if let Some(namespace) = key.name.strip_prefix(ACCEPTED_PREFIX) {
            state.tables.http_routes.mark_within(namespace);
            state.tables.gateways.mark_within(namespace);
        }
    }

    fn derive(state: &mut State, key: &Key, output: &mut Output) {
        let Some(namespace) = key.name.strip_prefix(ACCEPTED_PREFIX) else {
            return;
        };
        let unseen = state.unseen_lines(key, namespace);
        let (fits, not) = state.to_keep.choose(namespace, unseen);
        let there = state.tables.accepted.get(key).is_some();
        let wanted = !state.leaving && (there || !fits.is_empty());
        let item = Item::Accepted(namespace.into());
        output.desire(item, wanted.then(|| Entry::leader(Wanted::Accepted(fits))));
        let told = Target::new(Kind::ConfigMap, key);
        output.events(told, if state.leaving { Vec::new() } else { not });
    }
}

// === impl ToKeep ===

impl ToKeep {
    /// What is kept for one object; whether that is news.
    fn put(&mut self, key: &Key, name: String, line: Option<Line>) -> bool {
        let lines = self.lines.entry(key.namespace.clone()).or_default();
        let changed = lines.get(&name) != line.as_ref();
        match line {
            Some(line) => lines.insert(name, line),
            None => lines.remove(&name),
        };
        if lines.is_empty() {
            self.lines.remove(&key.namespace);
        }
        changed
    }

    /// What fits into the namespace's ConfigMap beside what is left there, in the order of its names, and what people are
    /// told of the rest.
    fn choose(
        &self,
        namespace: &str,
        left: BTreeMap<String, String>,
    ) -> (BTreeMap<String, String>, Vec<Notice>) {
        let size = |(name, text): (&String, &String)| name.len() + text.len();
        let mut bytes: usize = left.iter().map(size).sum();
        let (mut fits, mut not) = (left, Vec::new());
        for (name, line) in self.lines.get(namespace).into_iter().flatten() {
            let size = name.len() + line.text.len();
            if name.len() <= MAX_NAME && bytes + size <= MAX_BYTES {
                bytes += size;
                fits.insert(name.clone(), line.text.clone());
                continue;
            }
            if not.len() == MAX_NOTICES {
                continue;
            }
            not.push(Notice {
                target: line.target.clone(),
                uid: line.uid.clone(),
                warning: true,
                reason: "NotKept".to_owned(),
                note: "the kept generations of this namespace have no room for this object: if a later one is refused, nothing of it stays in force after a restart of the controller".to_owned(),
            });
        }
        (fits, not)
    }
}

// === impl State ===

impl State {
    /// The newest accepted generation of an object whose present one is refused: what this replica has seen, or what is kept.
    pub(super) fn last_accepted<T: DeserializeOwned>(
        &self,
        target: &Target,
        uid: &str,
        seen: Option<&Accepted<T>>,
    ) -> Option<Accepted<T>> {
        let kept = self
            .kept_line(target)
            .and_then(|text| Accepted::read(text, uid));
        match (seen, kept) {
            (Some(seen), Some(kept)) if kept.generation > seen.generation => Some(kept),
            (Some(seen), _) => Some(seen.clone()),
            (None, kept) => kept,
        }
    }

    fn kept_line(&self, target: &Target) -> Option<&String> {
        let kept = self.tables.accepted.get(&self.map_of(target))?;
        kept.lines.get(&name(target))
    }

    /// Lines of objects that are not known here, although the ConfigMap was written by somebody who may know more: a
    /// replica whose watch of them is behind (a new leader, maybe) takes none of them away.
    fn unseen_lines(&mut self, map: &Key, namespace: &str) -> BTreeMap<String, String> {
        let Some(kept) = self.tables.accepted.get(map).cloned() else {
            self.to_keep.unseen.remove(map);
            return BTreeMap::new();
        };
        let (mut lines, mut kinds) = (BTreeMap::new(), BTreeSet::new());
        for (name, text) in &kept.lines {
            let Some((kind, known)) = self.object_of(namespace, name) else {
                continue;
            };
            // One server numbers all of its objects: what was there when the ConfigMap was written has been seen by then.
            if !known && self.positions.may_lack(kind.api().plural, &kept.version) {
                lines.insert(name.clone(), text.clone());
                kinds.insert(kind);
            }
        }
        let unseen = &mut self.to_keep.unseen;
        match kinds.is_empty() {
            true => unseen.remove(map),
            false => unseen.insert(map.clone(), (kept.version.clone(), kinds)),
        };
        lines
    }

    /// The kind of the object that a line is about, and whether it is known here.
    fn object_of(&self, namespace: &str, line: &str) -> Option<(Kind, bool)> {
        let (kind, name) = line.split_once('.')?;
        let key = Key::new(namespace, name);
        if kind == Kind::HttpRoute.api().kind {
            Some((Kind::HttpRoute, self.tables.http_routes.get(&key).is_some()))
        } else if kind == Kind::Gateway.api().kind {
            Some((Kind::Gateway, self.tables.gateways.get(&key).is_some()))
        } else {
            None
        }
    }

    /// Looks again at ConfigMaps with lines of objects that were not known, once the watches have told.
    pub(super) fn settle_unseen(&mut self) {
        let positions = &self.positions;
        let told = |(version, kinds): &(String, BTreeSet<Kind>)| {
            let mut kinds = kinds.iter();
            kinds.any(|kind| !positions.may_lack(kind.api().plural, version))
        };
        let unseen = self.to_keep.unseen.iter();
        let maps = unseen.filter(|(_, until)| told(until));
        let maps: Vec<Key> = maps.map(|(map, _)| map.clone()).collect();
        self.tables.accepted.mark_each(maps);
    }

    /// Sees to it that an object's accepted generation is kept; `None`: nothing of it is.
    pub(super) fn keep<T: DeserializeOwned>(
        &mut self,
        target: &Target,
        accepted: Option<(&Arc<str>, &Accepted<T>)>,
    ) {
        let line = accepted.map(|(uid, accepted)| Line {
            target: target.clone(),
            uid: uid.clone(),
            text: accepted.line(uid),
        });
        if self.to_keep.put(&target.key, name(target), line) || self.kept_line(target).is_some() {
            let map = self.map_of(target);
            self.tables.accepted.mark(map);
        }
    }

    fn map_of(&self, target: &Target) -> Key {
        let name = format!("{ACCEPTED_PREFIX}{}", target.key.namespace);
        Key::new(&self.settings.system_namespace, &name)
    }
}

/// `HTTPRoute.name`
fn name(target: &Target) -> String {
    format!("{}.{}", target.kind.api().kind, target.key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_and_the_rest_is_kept() {
        let mut to_keep = ToKeep::default();
        for (name, size) in [("a", 10), ("b", MAX_BYTES), ("c", 20)] {
            let key = Key::new("shop", name);
            let line = Line {
                target: Target::new(Kind::HttpRoute, &key),
                uid: name.into(),
                text: "x".repeat(size),
            };
            assert!(to_keep.put(&key, name.to_owned(), Some(line.clone())));
            assert!(!to_keep.put(&key, name.to_owned(), Some(line)), "no news");
        }
        let (fits, not) = to_keep.choose("shop", BTreeMap::new());
        assert_eq!(fits.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(not.len(), 1);
        assert_eq!(*not[0].target.key.name, *"b");
    }

    #[test]
    fn one_tenants_objects_make_few_events() {
        let mut to_keep = ToKeep::default();
        for number in 0..1000 {
            let name = format!("r{number:03}");
            let key = Key::new("shop", &name);
            let line = Line {
                target: Target::new(Kind::HttpRoute, &key),
                uid: name.as_str().into(),
                text: "x".repeat(MAX_BYTES),
            };
            to_keep.put(&key, name, Some(line));
        }
        assert_eq!(to_keep.choose("shop", BTreeMap::new()).1.len(), MAX_NOTICES);
    }
}
