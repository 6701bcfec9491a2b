//! The differences of two views, encoded once for every stream that goes from the one to the other.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes};
use imbl::ordmap::DiffItem;
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::MORE_FOLLOWS;
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::xds::{Encoded, Resources, View};

/// Bytes of resources after which a response is closed and another begun: far below what any client decodes.
const MAX_MESSAGE: usize = 8 << 20;
/// Pairs of editions remembered. Streams that follow ask for the last few only; the others are computed anew.
const MAX_REMEMBERED: usize = 256;
/// Bytes of resources in them: eight of the largest.
const MAX_REMEMBERED_BYTES: usize = 8 * MAX_MESSAGE;

/// Field numbers of `DeltaDiscoveryResponse`.
const SYSTEM_VERSION_INFO: u32 = 1;
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED_RESOURCES: u32 = 6;
const KNOWN_AS_OF: u32 = 1001;
/// Field numbers of `Resource`.
const VERSION: u32 = 1;
const RESOURCE: u32 = 2;
const NAME: u32 = 3;

/// One response: on the wire a `DeltaDiscoveryResponse`, whose greatest part may be shared with other streams.
#[derive(Clone, PartialEq, Eq)]
pub struct Push {
    /// Of the resources.
    pub type_url: Arc<str>,
    /// What the client must answer with.
    pub nonce: u64,
    /// How many resources are new or changed.
    pub updated: usize,
    /// How many are gone.
    pub removed: usize,
    /// More of the same type follows.
    pub more: bool,
    /// What the client knows when it has taken this in and what follows; empty: not to be said.
    pub known_as_of: Arc<str>,
    /// Resources and removals, encoded.
    pub(super) body: Bytes,
}

/// What is different in a later view: small enough for one response.
#[derive(Debug)]
pub(super) struct Delta {
    /// Names that came, changed or went.
    pub(super) names: Vec<Arc<str>>,
    pub(super) updated: usize,
    pub(super) removed: usize,
    body: OnceLock<Bytes>,
    batch: Batch,
}

/// Deltas by the editions of their views, for all streams of a process.
#[derive(Clone, Debug, Default)]
pub struct Deltas(Arc<Mutex<Remembered>>);

/// The newest ones, as many as the bounds allow.
#[derive(Debug, Default)]
struct Remembered {
    by_editions: HashMap<(u64, u64), Shared>,
    /// In the order in which they were asked for first.
    order: VecDeque<(u64, u64)>,
}

/// Computed by the first who asks, while the others wait for it. `None`: too large for one response.
type Shared = Arc<OnceLock<Option<Arc<Delta>>>>;

/// What goes into one response.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) updated: Vec<(Arc<str>, Encoded)>,
    pub(super) removed: Vec<Arc<str>>,
    bytes: usize,
    max: usize,
}

// === impl Deltas ===

impl Deltas {
    /// Nothing remembered.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is different between `before` (of this edition) and `now`; nothing where that is more than `max` names or
    /// more bytes than one response holds.
    pub(super) fn between(
        &self,
        edition: u64,
        before: &Resources,
        now: &View,
        max: usize,
    ) -> Option<Arc<Delta>> {
        let shared = self.0.lock().get((edition, now.edition()));
        shared
            .get_or_init(|| Delta::between(before, now, max).map(Arc::new))
            .clone()
    }
}

// === impl Remembered ===

impl Remembered {
    fn get(&mut self, editions: (u64, u64)) -> Shared {
        if let Some(shared) = self.by_editions.get(&editions) {
            return Arc::clone(shared);
        }
        while self.order.len() >= MAX_REMEMBERED || self.bytes() > MAX_REMEMBERED_BYTES {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.by_editions.remove(&oldest);
        }
        let shared = Shared::default();
        self.order.push_back(editions);
        self.by_editions.insert(editions, Arc::clone(&shared));
        shared
    }

    /// What the bodies have, or will have once they are encoded.
    fn bytes(&self) -> usize {
        let computed = self.by_editions.values().filter_map(|shared| shared.get());
        computed.flatten().map(|delta| delta.batch.bytes).sum()
    }
}

// === impl Delta ===

impl Delta {
    fn between(before: &Resources, now: &Resources, max: usize) -> Option<Self> {
        let mut batch = Batch::new(max);
        let mut names = Vec::new();
        for difference in before.diff(now) {
            if batch.is_full() {
                return None;
            }
            match difference {
                DiffItem::Add(name, new)
                | DiffItem::Update {
                    new: (name, new), ..
                } => {
                    batch.update(name, new);
                    names.push(Arc::clone(name));
                }
                DiffItem::Remove(name, _) => {
                    batch.remove(name);
                    names.push(Arc::clone(name));
                }
            }
        }
        Some(Self {
            names,
            updated: batch.updated.len(),
            removed: batch.removed.len(),
            body: OnceLock::new(),
            batch,
        })
    }

    /// Encoded when first needed: streams that asked for single names need the names only.
    pub(super) fn body(&self) -> Bytes {
        self.body.get_or_init(|| self.batch.encode()).clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

// === impl Batch ===

impl Batch {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            ..Self::default()
        }
    }

    pub(super) fn update(&mut self, name: &Arc<str>, new: &Encoded) {
        self.bytes += resource_len(name, new);
        self.updated.push((Arc::clone(name), new.clone()));
    }

    pub(super) fn remove(&mut self, name: &Arc<str>) {
        self.bytes += name.len();
        self.removed.push(Arc::clone(name));
    }

    pub(super) fn is_full(&self) -> bool {
        self.updated.len() + self.removed.len() >= self.max || self.bytes >= MAX_MESSAGE
    }

    pub(super) fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.removed.is_empty()
    }

    /// The `resources` and `removed_resources` of a response.
    pub(super) fn encode(&self) -> Bytes {
        let mut buf =
            Vec::with_capacity(self.bytes + 16 * (self.updated.len() + self.removed.len()));
        for (name, encoded) in &self.updated {
            encode_key(RESOURCES, WireType::LengthDelimited, &mut buf);
            encode_varint(resource_len(name, encoded) as u64, &mut buf);
            put(VERSION, encoded.version().to_string().as_bytes(), &mut buf);
            encode_key(RESOURCE, WireType::LengthDelimited, &mut buf);
            encode_varint(encoded.any_len() as u64, &mut buf);
            encoded.put_any(&mut buf);
            put(NAME, name.as_bytes(), &mut buf);
        }
        for name in &self.removed {
            put(REMOVED_RESOURCES, name.as_bytes(), &mut buf);
        }
        buf.into()
    }
}

// === impl Push ===

impl Push {
    /// The resources and removals as they are encoded: streams that get the same share it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// How far the client is: proxies of the first release know the one word of the first field only.
    fn texts(&self) -> impl Iterator<Item = (u32, &str)> {
        let known = &*self.known_as_of;
        let all = match self.more {
            true => [(SYSTEM_VERSION_INFO, MORE_FOLLOWS), (KNOWN_AS_OF, known)],
            false => [(SYSTEM_VERSION_INFO, known), (KNOWN_AS_OF, "")],
        };
        all.into_iter().filter(|(_, text)| !text.is_empty())
    }

    /// As a client reads it.
    pub fn to_response(&self) -> Result<DeltaDiscoveryResponse, prost::DecodeError> {
        DeltaDiscoveryResponse::decode(&*self.encode_to_vec())
    }
}

impl Message for Push {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        for (tag, text) in self.texts() {
            put(tag, text.as_bytes(), buf);
        }
        buf.put_slice(&self.body);
        put(TYPE_URL, self.type_url.as_bytes(), buf);
        put(NONCE, self.nonce.to_string().as_bytes(), buf);
    }

    fn encoded_len(&self) -> usize {
        let texts = self.texts().map(|(tag, text)| field_len(tag, text.len()));
        texts.sum::<usize>()
            + self.body.len()
            + field_len(TYPE_URL, self.type_url.len())
            + field_len(NONCE, self.nonce.to_string().len())
    }

    /// It is only ever sent: whoever receives it reads a `DeltaDiscoveryResponse`.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl bytes::Buf,
        ctx: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        self.body.clear();
    }
}

impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            type_url,
            nonce,
            updated,
            removed,
            more,
            known_as_of,
            body,
        } = self;
        let bytes = body.len();
        write!(
            f,
            "Push({type_url}, nonce {nonce}, {updated} updated, {removed} removed, {bytes} bytes, more {more}, as of {known_as_of:?})"
        )
    }
}

// === free ===

fn put(tag: u32, bytes: &[u8], buf: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(bytes.len() as u64, buf);
    buf.put_slice(bytes);
}

fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn resource_len(name: &str, encoded: &Encoded) -> usize {
    field_len(VERSION, encoded.version().text_len())
        + field_len(RESOURCE, encoded.any_len())
        + field_len(NAME, name.len())
}
