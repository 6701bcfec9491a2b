//! A name or value of a literal field: as it stands in the block, or decoded beside it.

use std::ops::Range;

use super::{broken, huffman, integer};
use crate::frame::Broken;

/// A string literal (RFC 7541 §5.2).
pub(super) enum Text<'a> {
    /// In the block or in a table.
    Plain(&'a [u8]),
    /// In the scratch memory.
    Decoded(Range<usize>),
}

// === impl Text ===

impl<'a> Text<'a> {
    /// Takes one string off the front of `rest`.
    pub(super) fn read(rest: &mut &'a [u8], scratch: &mut Vec<u8>) -> Result<Self, Broken> {
        let compressed = rest.first().is_some_and(|b| b & 0x80 != 0);
        let len = integer(rest, 7)?;
        let Some((text, more)) = rest.split_at_checked(len) else {
            return Err(broken("a string is longer than its block"));
        };
        *rest = more;
        if !compressed {
            return Ok(Self::Plain(text));
        }
        let start = scratch.len();
        huffman::decode(text, scratch)?;
        Ok(Self::Decoded(start..scratch.len()))
    }

    pub(super) fn bytes<'b>(&self, scratch: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Plain(text) => text,
            Self::Decoded(range) => scratch.get(range.clone()).unwrap_or_default(),
        }
    }
}
