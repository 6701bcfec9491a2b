//! The W3C trace context of a tunnel.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::hpack::Put;

/// `00-<32 hex>-<16 hex>-<2 hex>`
const LEN: usize = 55;
const TRACE_ID: Range<usize> = 3..35;
const PARENT_ID: Range<usize> = 36..52;
const FLAGS: Range<usize> = 53..LEN;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The trace a tunnel belongs to (`traceparent`): one id for the log lines at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

/// Why a `traceparent` cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not 00-<32 hex>-<16 hex>-<2 hex> with ids that are not zero")]
pub struct InvalidTraceParent;

// === impl TraceParent ===

impl TraceParent {
    /// A new trace that nobody has asked to sample.
    pub fn random() -> Self {
        Self {
            trace_id: fastrand::u128(1..),
            parent_id: fastrand::u64(1..),
            flags: 0,
        }
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl Put for TraceParent {
    fn put(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut text[TRACE_ID], &self.trace_id.to_be_bytes());
        put_hex(&mut text[PARENT_ID], &self.parent_id.to_be_bytes());
        put_hex(&mut text[FLAGS], &[self.flags]);
        out.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.put(f)
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    /// A later version may append members after the four we read.
    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let text = text.as_bytes();
        let (text, more) = text.split_at_checked(LEN).ok_or(InvalidTraceParent)?;
        if [text[2], text[35], text[52]] != [b'-'; 3] || !matches!(more, [] | [b'-', ..]) {
            return Err(InvalidTraceParent);
        }
        let version = hex(&text[..2])?;
        let (high, low) = text[TRACE_ID].split_at(16);
        let trace_id = u128::from(hex(high)?) << 64 | u128::from(hex(low)?);
        let parent_id = hex(&text[PARENT_ID])?;
        let flags = hex(&text[FLAGS])?;
        if version == 0xff || (version == 0 && !more.is_empty()) || trace_id == 0 || parent_id == 0
        {
            return Err(InvalidTraceParent);
        }
        Ok(Self {
            trace_id,
            parent_id,
            flags: u8::try_from(flags).map_err(|_| InvalidTraceParent)?,
        })
    }
}

fn put_hex(into: &mut [u8], bytes: &[u8]) {
    for (digits, byte) in into.chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Up to 16 digits, in lower case.
fn hex(digits: &[u8]) -> Result<u64, InvalidTraceParent> {
    digits.iter().try_fold(0, |n, digit| match digit {
        b'0'..=b'9' => Ok(n << 4 | u64::from(digit - b'0')),
        b'a'..=b'f' => Ok(n << 4 | u64::from(digit - b'a' + 10)),
        _ => Err(InvalidTraceParent),
    })
}
