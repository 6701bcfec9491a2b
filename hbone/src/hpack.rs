//! Header compression (RFC 7541): everything a peer may send, and the little we send ourselves.
//!
//! We announce a dynamic table of size 0 and never use the peer's. Until a peer has seen that, or where
//! it must say that it has, its blocks may use a table all the same.

use crate::frame::{Broken, Code};

pub(crate) use encode::{Encoder, Put, index};
use table::Table;
use text::Text;

mod encode;
mod huffman;
mod table;
#[cfg(test)]
mod tests;
mod text;

/// The table size that counts until a peer has acknowledged another one.
pub(crate) const DEFAULT_TABLE: usize = 4096;

/// The size updates at the start of one block: down and up again, and no reason for a third.
const MAX_UPDATES: usize = 2;

/// One connection's reader of header blocks.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    /// What the peer may set the table's size to.
    limit: usize,
}

/// How a literal field treats the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Indexed,
    Forgotten,
}

// === impl Decoder ===

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE),
            limit: DEFAULT_TABLE,
        }
    }

    /// The peer has acknowledged this table size, at most [`DEFAULT_TABLE`]. Where that is less than what
    /// it uses, its next block must begin with an update (RFC 9113 §4.3.1).
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes.min(DEFAULT_TABLE);
    }

    /// Decodes a whole block and gives each field to `field`, name and value.
    ///
    /// All errors are connection errors: the tables of both sides no longer agree.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Broken> {
        let mut rest = self.updates(block)?;
        // Decoded names and values; allocated by the first one that was compressed.
        let mut scratch = Vec::new();
        while let Some(&first) = rest.first() {
            let keep = match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    let (name, value) = self.table.field(index)?;
                    field(name, value);
                    continue;
                }
                0x40.. => Keep::Indexed,
                0x20.. => return Err(broken("a table size update is not at the start")),
                _ => Keep::Forgotten,
            };
            self.literal(&mut rest, keep, &mut scratch, &mut field)?;
        }
        Ok(())
    }

    /// Takes the size updates off a block's front.
    fn updates<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Broken> {
        let mut rest = block;
        let mut updates = 0;
        while let Some(0x20..0x40) = rest.first() {
            updates += 1;
            if updates > MAX_UPDATES {
                return Err(broken("a block has too many table size updates"));
            }
            let size = integer(&mut rest, 5)?;
            if size > self.limit {
                return Err(broken("a table size update is above what we allow"));
            }
            self.table.resize(size);
        }
        if self.table.max() > self.limit && !rest.is_empty() {
            return Err(broken("the table size that we allow was not taken up"));
        }
        Ok(rest)
    }

    fn literal(
        &mut self,
        rest: &mut &[u8],
        keep: Keep,
        scratch: &mut Vec<u8>,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Broken> {
        scratch.clear();
        let index = integer(rest, if keep == Keep::Indexed { 6 } else { 4 })?;
        let name = match index {
            0 => Text::read(rest, scratch)?,
            index => Text::Plain(self.table.field(index)?.0),
        };
        let value = Text::read(rest, scratch)?;
        let (name, value) = (name.bytes(scratch), value.bytes(scratch));
        field(name, value);
        if keep == Keep::Indexed {
            let entry = self.table.entry(name, value);
            self.table.insert(entry);
        }
        Ok(())
    }
}

/// An integer with a prefix of `bits` (RFC 7541 §5.1), of at most five bytes: below 2^28 + 255.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Broken> {
    let mut bytes = rest.iter();
    let cut = || broken("an integer is cut off");
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(*bytes.next().ok_or_else(cut)?) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let byte = *bytes.next().ok_or_else(cut)?;
            value += usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(broken("an integer is too long"));
            }
        }
    }
    *rest = bytes.as_slice();
    Ok(value)
}

const fn broken(what: &'static str) -> Broken {
    Broken::new(Code::COMPRESSION_ERROR, what)
}
