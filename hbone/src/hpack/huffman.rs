//! The Huffman code of RFC 7541, appendix B.
//!
//! The code is canonical: symbols in order of code length, then of value, have consecutive codes. So the
//! lengths say everything. Codes of up to eight bits, which is nearly all text, come from one table
//! look-up; longer ones are found by comparing with the first code of each length.

use super::broken;
use crate::frame::Broken;

/// The longest code.
const MAX_BITS: usize = 30;

/// The end of the string; it never stands in one.
const EOS: usize = 256;

/// The code length of each byte; that of EOS is [`MAX_BITS`].
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// What the decoder looks things up in.
struct Tables {
    /// By the next eight bits: a symbol and its length; length 0 where the code is longer.
    short: [(u8, u8); 256],
    /// By length: the first code above those of this length, at the top of 32 bits.
    above: [u32; MAX_BITS + 1],
    /// By length: where its first symbol stands in `symbols`, and its first code.
    first: [(u16, u32); MAX_BITS + 1],
    /// By code length, then value.
    symbols: [u16; 257],
}

static TABLES: Tables = tables();

/// Appends what `text` says to `out`.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
    // No code is shorter than five bits.
    out.reserve(text.len() * 8 / 5 + 1);
    let mut bytes = text.iter();
    // The next bits stand at the top; below the ones that came are ones, as in the padding.
    let (mut bits, mut have) = (u64::MAX, 0usize);
    loop {
        while have <= 56
            && let Some(byte) = bytes.next()
        {
            bits ^= u64::from(!byte) << (56 - have);
            have += 8;
        }
        let (symbol, len) = symbol((bits >> 32) as u32);
        if len > have {
            break;
        }
        // Only EOS is no byte.
        let Ok(byte) = u8::try_from(symbol) else {
            return Err(broken("a compressed string has EOS in it"));
        };
        out.push(byte);
        bits = (bits << len) | ((1 << len) - 1);
        have -= len;
    }
    if have > 7 {
        return Err(broken("a compressed string has more padding than needed"));
    }
    if bits != u64::MAX {
        return Err(broken("a compressed string ends in a piece of a code"));
    }
    Ok(())
}

/// The symbol at the top of `bits`, and its length.
fn symbol(bits: u32) -> (u16, usize) {
    let (symbol, len) = TABLES.short[(bits >> 24) as usize];
    if len > 0 {
        return (u16::from(symbol), usize::from(len));
    }
    for len in 9..=MAX_BITS {
        if len == MAX_BITS || bits < TABLES.above[len] {
            let (at, code) = TABLES.first[len];
            let at = usize::from(at) + ((bits >> (32 - len)).wrapping_sub(code)) as usize;
            return match TABLES.symbols.get(at) {
                Some(symbol) => (*symbol, len),
                None => (EOS as u16, len),
            };
        }
    }
    (EOS as u16, MAX_BITS)
}

const fn tables() -> Tables {
    let mut tables = Tables {
        short: [(0, 0); 256],
        above: [0; MAX_BITS + 1],
        first: [(0, 0); MAX_BITS + 1],
        symbols: [0; 257],
    };
    let (mut len, mut code, mut at) = (1, 0u32, 0);
    while len <= MAX_BITS {
        code <<= 1;
        tables.first[len] = (at as u16, code);
        let mut symbol = 0;
        while symbol <= EOS {
            let its = if symbol == EOS {
                MAX_BITS
            } else {
                LENGTHS[symbol] as usize
            };
            if its == len {
                tables.symbols[at] = symbol as u16;
                at += 1;
                if len <= 8 {
                    let mut fill = 0;
                    while fill < 1 << (8 - len) {
                        tables.short[((code as usize) << (8 - len)) + fill] =
                            (symbol as u8, len as u8);
                        fill += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        if len < MAX_BITS {
            tables.above[len] = code << (32 - len);
        }
        len += 1;
    }
    tables
}

/// The other direction, for tests: we send nothing compressed.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut have) = (Vec::new(), 0u64, 0);
    for byte in text {
        let len = usize::from(LENGTHS[usize::from(*byte)]);
        let (at, first) = TABLES.first[len];
        let rank = TABLES.symbols[usize::from(at)..]
            .iter()
            .position(|s| *s == u16::from(*byte));
        let code = first + rank.expect("every byte has a code") as u32;
        bits = (bits << len) | u64::from(code);
        have += len;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push(((bits << (8 - have)) as u8) | (0xff >> have));
    }
    out
}
