//! The nine bytes before every frame, and the rules that need nothing else.

use super::{Broken, Code, HEAD, StreamId, protocol};

/// A frame header.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) len: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: StreamId,
}

// === impl Head ===

impl Head {
    pub(super) fn read([a, b, c, kind, flags, d, e, f, g]: [u8; HEAD]) -> Self {
        Self {
            len: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: StreamId::new(u32::from_be_bytes([d, e, f, g])),
        }
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn on_stream(self, what: &'static str) -> Result<(), Broken> {
        match self.stream {
            StreamId::CONNECTION => Err(protocol(what)),
            _ => Ok(()),
        }
    }

    pub(super) fn on_connection(self, what: &'static str) -> Result<(), Broken> {
        match self.stream {
            StreamId::CONNECTION => Ok(()),
            _ => Err(protocol(what)),
        }
    }

    pub(super) fn sized(self, len: u32, what: &'static str) -> Result<(), Broken> {
        if self.len == len {
            Ok(())
        } else {
            Err(size(what))
        }
    }
}

pub(super) const fn size(what: &'static str) -> Broken {
    Broken::new(Code::FRAME_SIZE_ERROR, what)
}

pub(super) const fn calm(what: &'static str) -> Broken {
    Broken::new(Code::ENHANCE_YOUR_CALM, what)
}
