//! The two tables of fields: the one everybody knows, and the one a peer builds.

use std::collections::VecDeque;

use super::broken;
use crate::frame::Broken;

/// What an entry costs besides its bytes (RFC 7541 §4.1).
const OVERHEAD: usize = 32;

/// The dynamic table behind the static one.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first. No heap while it is empty.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

/// A field; only [`Table::entry`] makes one.
#[derive(Debug)]
pub(super) struct Entry {
    /// Name and value; nothing where the table cannot hold them.
    bytes: Box<[u8]>,
    name: usize,
    size: usize,
}

// === impl Table ===

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max,
        }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// The field with an index that counts from 1 through both tables.
    pub(super) fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Broken> {
        let Some(at) = index.checked_sub(1) else {
            return Err(broken("a field has index 0"));
        };
        if let Some((name, value)) = STATIC.get(at) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.entries
            .get(at - STATIC.len())
            .and_then(|entry| entry.bytes.split_at_checked(entry.name))
            .ok_or(broken("a field has an index beyond the table"))
    }

    /// A field for [`Table::insert`]; its name may come from this very table.
    pub(super) fn entry(&self, name: &[u8], value: &[u8]) -> Entry {
        let size = name.len() + value.len() + OVERHEAD;
        let bytes = if size > self.max {
            Box::default()
        } else {
            [name, value].concat().into_boxed_slice()
        };
        Entry {
            bytes,
            name: name.len(),
            size,
        }
    }

    /// Old entries go until it fits; one that can never fit empties the table.
    pub(super) fn insert(&mut self, entry: Entry) {
        if entry.size > self.max {
            self.evict(0);
            return;
        }
        self.evict(self.max - entry.size);
        self.size += entry.size;
        self.entries.push_front(entry);
    }

    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(max);
    }

    /// Drops the oldest until at most `size` is left.
    fn evict(&mut self, size: usize) {
        while self.size > size {
            match self.entries.pop_back() {
                Some(entry) => self.size -= entry.size,
                None => self.size = 0,
            }
        }
        if self.entries.is_empty() && self.entries.capacity() > 0 {
            self.entries = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.entries.capacity()
    }
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
