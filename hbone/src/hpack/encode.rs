//! Header blocks of ours: fields of the static table and literals, without compression.

use std::fmt::{self, Write};

use http::StatusCode;

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

/// What a length has room for in its first byte, of which one bit is for the code.
const PREFIX: usize = 127;

/// What a field's value may be made of. As `Display`, without its machinery: that took longer than all
/// else about a head.
pub(crate) trait Put {
    fn put(&self, out: &mut impl Write) -> fmt::Result;
}

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

    pub(crate) fn status(&mut self, status: StatusCode) {
        match STATUSES.iter().find(|(s, _)| *s == status.as_u16()) {
            Some((_, index)) => self.0.push(0x80 | index),
            None => self.indexed_name(index::STATUS, status.as_str()),
        }
    }

    /// A field whose name is at `index` of the static table (1..=14).
    pub(crate) fn indexed_name(&mut self, index: u8, value: &(impl Put + ?Sized)) {
        debug_assert!((1..=14).contains(&index));
        self.0.push(index);
        self.value(value);
    }

    /// A field with a name of its own, in lower case.
    pub(crate) fn field(&mut self, name: &'static str, value: &(impl Put + ?Sized)) {
        self.0.push(0);
        self.value(name);
        self.value(value);
    }

    fn value(&mut self, value: &(impl Put + ?Sized)) {
        let start = self.0.len();
        // Nearly always its length takes one byte.
        self.0.push(0);
        // A Vec takes all.
        let _ = value.put(self);
        let len = self.0.len() - start - 1;
        let Some(more) = len.checked_sub(PREFIX) else {
            self.0[start] = len as u8;
            return;
        };
        self.0[start] = PREFIX as u8;
        let end = self.0.len();
        put_rest(&mut self.0, more);
        let put = self.0.len() - end;
        self.0[start + 1..].rotate_right(put);
    }
}

impl Write for Encoder {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Put for str {
    fn put(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str(self)
    }
}

/// What an integer is beyond its prefix (RFC 7541 §5.1).
fn put_rest(out: &mut Vec<u8>, mut more: usize) {
    while more >= 0x80 {
        out.push(0x80 | (more & 0x7f) as u8);
        more >>= 7;
    }
    out.push(more as u8);
}
