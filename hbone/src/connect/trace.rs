//! The W3C trace context of a tunnel.

use std::fmt;
use std::str::FromStr;

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

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    /// A later version may append members after the four we read.
    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts
                .next()
                .filter(|p| p.len() == digits)
                .ok_or(InvalidTraceParent)?;
            if !part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(InvalidTraceParent);
            }
            u128::from_str_radix(part, 16).map_err(|_| InvalidTraceParent)
        };
        let (version, trace_id, parent_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace_id == 0 || parent_id == 0 {
            return Err(InvalidTraceParent);
        }
        Ok(Self {
            trace_id,
            parent_id: u64::try_from(parent_id).map_err(|_| InvalidTraceParent)?,
            flags: u8::try_from(flags).map_err(|_| InvalidTraceParent)?,
        })
    }
}
