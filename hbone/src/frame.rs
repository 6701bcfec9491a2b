//! HTTP/2 frames without I/O: what a peer's bytes say, and the bytes that say it (RFC 9113 §4, 6, 7).

use std::fmt;

pub(crate) use parser::Parser;
pub(crate) use write::{
    data_head, put_goaway, put_headers, put_ping, put_reset, put_settings, put_settings_ack,
    put_window,
};

mod head;
mod parser;
#[cfg(test)]
mod tests;
mod write;

/// The length of a frame header.
pub(crate) const HEAD: usize = 9;

/// What a client says before its first frame.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The smallest frame length that every peer takes, and the one that counts until it says more.
pub(crate) const MIN_MAX_FRAME: u32 = 16_384;

/// The largest frame length there is.
pub(crate) const MAX_MAX_FRAME: u32 = (1 << 24) - 1;

/// The largest flow-control window.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The identifiers of the settings we know (RFC 9113 §6.5.2).
pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Frame types.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// Frame flags; the same bit is ACK where there is no stream to end.
mod flag {
    pub(super) const END_STREAM: u8 = 0x1;
    pub(super) const ACK: u8 = 0x1;
    pub(super) const END_HEADERS: u8 = 0x4;
    pub(super) const PADDED: u8 = 0x8;
    pub(super) const PRIORITY: u8 = 0x20;
}

/// A stream's number, 31 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct StreamId(u32);

/// Why a stream or a connection ends (RFC 9113 §7); unknown codes are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u32);

/// A connection error: the code for GOAWAY and the sentence for its debug data and our log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({code})")]
pub(crate) struct Broken {
    pub(crate) code: Code,
    pub(crate) what: &'static str,
}

/// What a peer says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A piece of a DATA frame as it arrives; frames are not assembled.
    ///
    /// An empty frame is one piece with no bytes that both begins and ends. Padding is skipped.
    Data {
        stream: StreamId,
        /// With the first piece.
        begins: Option<DataSize>,
        bytes: &'a [u8],
        /// With the last piece of the frame.
        ends: bool,
        /// With the last piece of the stream.
        end_stream: bool,
    },
    /// A complete header block, without padding and priority: [`Parser::block`].
    Headers { stream: StreamId, end_stream: bool },
    /// The stream is no more.
    Reset { stream: StreamId, code: Code },
    /// A whole SETTINGS frame, each value in its range.
    Settings(Settings),
    /// Our settings are in force.
    SettingsAck,
    /// Asks for an echo, or is one.
    Ping { ack: bool, payload: [u8; 8] },
    /// No stream above `last` is, or will be, looked at. Debug data is skipped.
    GoAway { last: StreamId, code: Code },
    /// More may be sent. Zero is yielded for a stream only, where it is that stream's error.
    Window { stream: StreamId, increment: u32 },
    /// Deprecated: ignored, but counted.
    Priority { stream: StreamId },
    /// Of a type we do not know; its payload is skipped.
    Unknown,
}

/// The size of a whole DATA frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataSize {
    /// What it takes from the windows: its whole payload.
    pub(crate) flow: u32,
    /// How much of that is padding, with the byte that says how much.
    pub(crate) padding: u32,
}

/// What a peer's SETTINGS say; of a setting that came twice, the last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) header_table_size: Option<u32>,
    /// A server must not say true (RFC 9113 §6.5.2).
    pub(crate) enable_push: Option<bool>,
    pub(crate) max_concurrent_streams: Option<u32>,
    pub(crate) initial_window_size: Option<u32>,
    pub(crate) max_frame_size: Option<u32>,
    pub(crate) max_header_list_size: Option<u32>,
}

// === impl StreamId ===

impl StreamId {
    /// The connection itself.
    pub(crate) const CONNECTION: Self = Self(0);

    /// The reserved bit is dropped, as the RFC wants.
    pub(crate) fn new(id: u32) -> Self {
        Self(id & MAX_WINDOW)
    }

    pub(crate) fn get(self) -> u32 {
        self.0
    }

    /// Whether a client opens streams of this number.
    pub(crate) fn is_client(self) -> bool {
        self.0 % 2 == 1
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Code ===

#[allow(dead_code, reason = "the RFC's list, whole")]
impl Code {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const INTERNAL_ERROR: Self = Self(2);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const SETTINGS_TIMEOUT: Self = Self(4);
    pub(crate) const STREAM_CLOSED: Self = Self(5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const CONNECT_ERROR: Self = Self(10);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
    pub(crate) const INADEQUATE_SECURITY: Self = Self(12);
    pub(crate) const HTTP_1_1_REQUIRED: Self = Self(13);

    fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(usize::try_from(self.0).ok()?).copied()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "code {}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Broken ===

impl Broken {
    pub(crate) const fn new(code: Code, what: &'static str) -> Self {
        Self { code, what }
    }
}

// === impl Settings ===

impl Settings {
    /// Takes one entry; of one we do not know, nothing.
    fn take(&mut self, id: u16, value: u32) -> Result<(), Broken> {
        match id {
            setting::HEADER_TABLE_SIZE => self.header_table_size = Some(value),
            setting::ENABLE_PUSH if value > 1 => {
                return Err(protocol("ENABLE_PUSH is neither 0 nor 1"));
            }
            setting::ENABLE_PUSH => self.enable_push = Some(value == 1),
            setting::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = Some(value),
            setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                let what = "INITIAL_WINDOW_SIZE is above 2^31-1";
                return Err(Broken::new(Code::FLOW_CONTROL_ERROR, what));
            }
            setting::INITIAL_WINDOW_SIZE => self.initial_window_size = Some(value),
            setting::MAX_FRAME_SIZE if !(MIN_MAX_FRAME..=MAX_MAX_FRAME).contains(&value) => {
                return Err(protocol("MAX_FRAME_SIZE is not within 16384..=16777215"));
            }
            setting::MAX_FRAME_SIZE => self.max_frame_size = Some(value),
            setting::MAX_HEADER_LIST_SIZE => self.max_header_list_size = Some(value),
            _ => {}
        }
        Ok(())
    }
}

const fn protocol(what: &'static str) -> Broken {
    Broken::new(Code::PROTOCOL_ERROR, what)
}
