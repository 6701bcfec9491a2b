//! What the index takes in: objects as their watches tell them, parsed there, and what nodes report.

use std::fmt::{self, Debug};
use std::sync::Arc;

use mesh::proto::node::EnrolmentReport;
use serde_json::Value;

use super::State;
use super::kinds::{self, ApiObject, Kind, KindVisitor, WatchScope, Watched};
use super::names::Key;

/// What the watch of a kind says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent<O> {
    /// All objects follow, as items. A list that breaks off is begun again by another of these.
    Begin,
    /// One that is there.
    Item(O),
    /// One that is there and cannot be decoded: what is known of it stays.
    Kept {
        /// Which.
        key: Key,
    },
    /// Those were all: what was not among them since the last [`Self::Begin`] is gone.
    End {
        /// As of this version.
        version: String,
    },
    /// New, or changed.
    Apply(O),
    /// Gone.
    Delete {
        /// Which.
        key: Key,
        /// At this version.
        version: String,
    },
    /// Nothing more happened up to this version.
    Progress {
        /// The version.
        version: String,
    },
    /// The API server does not have this kind, and never had: there is nothing. It is looked for again.
    Absent,
}

/// What the index takes in.
#[derive(Debug)]
pub enum Input {
    /// What a watch tells.
    Object(ObjectEvent),
    /// What a node says about one of its pods.
    Report {
        /// Whose ztunnel it is.
        node: Arc<str>,
        /// What it says.
        report: EnrolmentReport,
    },
    /// No ztunnel of this node reports here any more: what it said is what the pods' conditions say.
    NodeGone {
        /// Whose ztunnel it was.
        node: Arc<str>,
    },
    /// A turn has passed: told ten times a second while [`super::Index::waits`], because the index has no clock.
    Turn,
    /// The mesh is being uninstalled: everything is to be as if it had never been.
    Leave,
}

/// An event of any kind, its object trimmed to what the index keeps.
pub struct ObjectEvent(Box<dyn Apply>);

/// An event that knows its table.
trait Apply: Send {
    fn kind(&self) -> Kind;
    fn apply(self: Box<Self>, state: &mut State);
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// An object by its key, and what is kept of it.
#[derive(Debug)]
struct Parsed<T> {
    key: Key,
    version: String,
    object: Option<T>,
}

// === impl ObjectEvent ===

impl ObjectEvent {
    /// Parses what a watch tells.
    pub(super) fn observe<T: Watched>(event: WatchEvent<T::Object>) -> Self {
        let parse = |object: T::Object| {
            let meta = kube::Resource::meta(&object);
            Parsed {
                key: Key::of(meta),
                version: meta.resource_version.clone().unwrap_or_default(),
                object: T::parse(&object),
            }
        };
        let parsed: WatchEvent<Parsed<T>> = match event {
            WatchEvent::Begin => WatchEvent::Begin,
            WatchEvent::Item(object) => WatchEvent::Item(parse(object)),
            WatchEvent::Kept { key } => WatchEvent::Kept { key },
            WatchEvent::End { version } => WatchEvent::End { version },
            WatchEvent::Apply(object) => WatchEvent::Apply(parse(object)),
            WatchEvent::Delete { key, version } => WatchEvent::Delete { key, version },
            WatchEvent::Progress { version } => WatchEvent::Progress { version },
            WatchEvent::Absent => WatchEvent::Absent,
        };
        Self(Box::new(parsed))
    }

    /// Reads an event whose object is JSON: for tests and synthetic clusters.
    pub fn from_json(kind: Kind, event: WatchEvent<Value>) -> Result<Self, serde_json::Error> {
        struct Reader {
            kind: Kind,
            event: Option<WatchEvent<Value>>,
            read: Option<Result<ObjectEvent, serde_json::Error>>,
        }
        impl KindVisitor for Reader {
            fn visit<O: ApiObject>(
                &mut self,
                kind: Kind,
                _scope: WatchScope,
                observe: fn(WatchEvent<O>) -> ObjectEvent,
            ) {
                if kind == self.kind
                    && let Some(event) = self.event.take()
                {
                    self.read = Some(event.try_map(serde_json::from_value).map(observe));
                }
            }
        }
        let mut reader = Reader {
            kind,
            event: Some(event),
            read: None,
        };
        kinds::visit(&super::Settings::default(), &mut reader);
        reader
            .read
            .unwrap_or_else(|| Err(serde::de::Error::custom("no such kind")))
    }

    /// Of which kind.
    pub fn kind(&self) -> Kind {
        self.0.kind()
    }

    pub(super) fn apply(self, state: &mut State) {
        self.0.apply(state);
    }
}

impl Debug for ObjectEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl WatchEvent ===

impl<O> WatchEvent<O> {
    fn try_map<P, E>(self, read: impl FnOnce(O) -> Result<P, E>) -> Result<WatchEvent<P>, E> {
        Ok(match self {
            Self::Begin => WatchEvent::Begin,
            Self::Item(object) => WatchEvent::Item(read(object)?),
            Self::Kept { key } => WatchEvent::Kept { key },
            Self::End { version } => WatchEvent::End { version },
            Self::Apply(object) => WatchEvent::Apply(read(object)?),
            Self::Delete { key, version } => WatchEvent::Delete { key, version },
            Self::Progress { version } => WatchEvent::Progress { version },
            Self::Absent => WatchEvent::Absent,
        })
    }
}

impl<T: Watched> Apply for WatchEvent<Parsed<T>> {
    fn kind(&self) -> Kind {
        T::KIND
    }

    fn apply(self: Box<Self>, state: &mut State) {
        let kind = T::API.plural;
        match *self {
            Self::Begin => T::table_mut(state).begin(),
            Self::Item(parsed) => {
                state.positions.listed(kind, &parsed.version);
                state.put(&parsed.key, &parsed.version, parsed.object);
            }
            Self::Kept { key } => T::table_mut(state).see(&key),
            Self::Apply(parsed) => {
                state.positions.changed(kind, &parsed.version);
                state.put(&parsed.key, &parsed.version, parsed.object);
            }
            Self::End { version } => {
                let gone = T::table_mut(state).end();
                if !gone.is_empty() {
                    state.positions.changed(kind, &version);
                }
                state.positions.seen(kind, &version);
                for key in gone {
                    state.put::<T>(&key, &version, None);
                }
            }
            Self::Delete { key, version } => {
                state.positions.changed(kind, &version);
                state.put::<T>(&key, &version, None);
            }
            Self::Progress { version } => state.positions.seen(kind, &version),
            Self::Absent => {
                state.positions.absent(kind);
                T::table_mut(state).absent();
            }
        }
    }

    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ", T::KIND)?;
        Debug::fmt(self, f)
    }
}
