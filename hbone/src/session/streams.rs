//! The streams of one connection: found by the peer's number on the wire, and by a key inside.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use crate::flow::{ReceiveWindow, SendWindow};
use crate::frame::StreamId;
use crate::limits::LATELY_RESET;

/// A stream's place, and which of the streams that had this place it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    slot: u32,
    generation: u32,
}

/// One stream, from its first frame until its owner has let go of it.
#[derive(Debug)]
pub(crate) struct Stream<T> {
    pub(crate) id: StreamId,
    generation: u32,
    pub(crate) send: SendWindow,
    pub(crate) receive: ReceiveWindow,
    /// 200 was sent, or an answer received.
    pub(crate) answered: bool,
    pub(crate) sent_end: bool,
    pub(crate) received_end: bool,
    /// Nothing more comes or goes on the wire.
    pub(crate) closed: bool,
    /// What the engine keeps beside it.
    pub(crate) app: T,
}

/// All streams of a connection.
#[derive(Debug)]
pub(crate) struct Streams<T> {
    /// Each in memory of its own: a vector of streams would double, and half of it be empty.
    slots: Vec<Option<Box<Stream<T>>>>,
    free: Vec<u32>,
    /// Open on the wire, in rising order of their ids, which is the order they come in.
    open: Vec<(StreamId, u32)>,
    generation: u32,
    lately_reset: VecDeque<StreamId>,
}

// === impl Key ===

impl Key {
    /// No stream: the tunnel's own socket.
    pub(crate) const LINK: Self = Self {
        slot: u32::MAX,
        generation: 0,
    };
    /// No stream: the connection's timer.
    pub(crate) const TIMER: Self = Self {
        slot: u32::MAX,
        generation: 1,
    };
    /// No stream: what is known of revocations.
    pub(crate) const NEWS: Self = Self {
        slot: u32::MAX,
        generation: 2,
    };

    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

// === impl Streams ===

impl<T: Default> Streams<T> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            open: Vec::new(),
            generation: 0,
            lately_reset: VecDeque::new(),
        }
    }

    /// All whose owner has not let go.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, id: StreamId, send: SendWindow) -> Key {
        self.generation = self.generation.wrapping_add(1);
        let stream = Stream {
            id,
            generation: self.generation,
            send,
            receive: ReceiveWindow::new(),
            answered: false,
            sent_end: false,
            received_end: false,
            closed: false,
            app: T::default(),
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.slots[slot as usize] = Some(Box::new(stream));
        self.open.push((id, slot));
        Key {
            slot,
            generation: self.generation,
        }
    }

    /// A stream that is open on the wire.
    pub(crate) fn find(&self, id: StreamId) -> Option<Key> {
        let at = self.open.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let slot = self.open[at].1;
        let generation = self.slots[slot as usize].as_ref()?.generation;
        Some(Key { slot, generation })
    }

    /// A stream whose owner has not let go of it.
    pub(crate) fn get(&self, key: Key) -> Option<&Stream<T>> {
        let stream = self.slots.get(key.slot as usize)?.as_deref();
        stream.filter(|s| s.generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Stream<T>> {
        let stream = self.slots.get_mut(key.slot as usize)?.as_deref_mut();
        stream.filter(|s| s.generation == key.generation)
    }

    /// Nothing more on the wire.
    pub(crate) fn close(&mut self, key: Key) {
        let Some(stream) = self.get_mut(key) else {
            return;
        };
        stream.closed = true;
        let id = stream.id;
        if let Ok(at) = self.open.binary_search_by_key(&id, |(id, _)| *id) {
            self.open.remove(at);
        }
    }

    /// Its owner has let go of it; it is closed on the wire.
    pub(crate) fn free(&mut self, key: Key) {
        if self.get(key).is_some_and(|s| s.closed) {
            self.slots[key.slot as usize] = None;
            self.free.push(key.slot);
        }
        if self.free.len() == self.slots.len() {
            // An idle connection holds no memory for streams it once had.
            (self.slots, self.free, self.open) = (Vec::new(), Vec::new(), Vec::new());
        }
    }

    pub(crate) fn open_mut(&mut self) -> impl Iterator<Item = &mut Stream<T>> {
        let streams = self.slots.iter_mut().flatten();
        streams.map(|s| &mut **s).filter(|s| !s.closed)
    }

    /// Every stream there is.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let keyed = self.slots.iter().enumerate();
        keyed
            .filter_map(|(slot, stream)| {
                Some(Key {
                    slot: u32::try_from(slot).ok()?,
                    generation: stream.as_ref()?.generation,
                })
            })
            .collect()
    }

    /// Those open above an id.
    pub(crate) fn above(&self, last: StreamId) -> Vec<Key> {
        let above = self.open.iter().filter(|(id, _)| *id > last);
        above.filter_map(|(id, _)| self.find(*id)).collect()
    }

    /// Remembers that we have reset a stream, for a while.
    pub(crate) fn forget(&mut self, id: StreamId) {
        if self.lately_reset.len() == LATELY_RESET {
            self.lately_reset.pop_front();
        }
        self.lately_reset.push_back(id);
    }

    /// Whether frames that were in flight to a stream explain themselves.
    pub(crate) fn was_reset_lately(&self, id: StreamId) -> bool {
        self.lately_reset.contains(&id)
    }
}

/// For keys that were just found, or whose owner lives.
impl<T: Default> Index<Key> for Streams<T> {
    type Output = Stream<T>;

    fn index(&self, key: Key) -> &Stream<T> {
        self.get(key)
            .unwrap_or_else(|| unreachable!("a stream that its owner let go of"))
    }
}

impl<T: Default> IndexMut<Key> for Streams<T> {
    fn index_mut(&mut self, key: Key) -> &mut Stream<T> {
        self.get_mut(key)
            .unwrap_or_else(|| unreachable!("a stream that its owner let go of"))
    }
}
