//! Header blocks of ours: fields of the static table and literals, without compression.

use std::fmt;
use std::io::Write as _;

/// Indices of the static table that our heads use.
pub(crate) mod index {
    pub(crate) const AUTHORITY: u8 = 1;
    pub(crate) const METHOD: u8 = 2;
    pub(crate) const STATUS: u8 = 8;
}

/// `:status` fields that have an index, whole.
const STATUSES: [(u16, u8); 7] = [
    (200, 8),
    (204, 9),
    (206, 10),
    (304, 11),
    (400, 12),
    (404, 13),
    (500, 14),
];

/// One header block being written.
///
/// It begins with an update of the table's size to 0. So it is right for every peer, whatever table size
/// that announces and whenever: a smaller one must be taken up at the start of the next block.
pub(crate) struct Encoder(Vec<u8>);

// === impl Encoder ===

impl Encoder {
    /// For a block of about `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let mut block = Vec::with_capacity(len);
        block.push(0x20);
        Self(block)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn status(&mut self, status: u16) {
        match STATUSES.iter().find(|(s, _)| *s == status) {
            Some((_, index)) => self.0.push(0x80 | index),
            None => self.indexed_name(index::STATUS, status),
        }
    }

    /// A field whose name is at `index` of the static table (1..=14).
    pub(crate) fn indexed_name(&mut self, index: u8, value: impl fmt::Display) {
        debug_assert!((1..=14).contains(&index));
        self.0.push(index);
        self.value(value);
    }

    /// A field with a name of its own, in lower case.
    pub(crate) fn field(&mut self, name: &'static str, value: impl fmt::Display) {
        self.0.push(0);
        self.value(name);
        self.value(value);
    }

    fn value(&mut self, value: impl fmt::Display) {
        let start = self.0.len();
        // A Vec takes all.
        let _ = write!(self.0, "{value}");
        let len = self.0.len() - start;
        let end = self.0.len();
        put_integer(&mut self.0, len, 7);
        let put = self.0.len() - end;
        // Only now its length is known, which stands before it.
        self.0[start..].rotate_right(put);
    }
}

/// An integer with a prefix of `bits` whose upper bits are 0 (RFC 7541 §5.1).
fn put_integer(out: &mut Vec<u8>, value: usize, bits: u32) {
    let mask = (1usize << bits) - 1;
    let Some(mut more) = value.checked_sub(mask) else {
        out.push(value as u8);
        return;
    };
    out.push(mask as u8);
    while more >= 0x80 {
        out.push(0x80 | (more & 0x7f) as u8);
        more >>= 7;
    }
    out.push(more as u8);
}
