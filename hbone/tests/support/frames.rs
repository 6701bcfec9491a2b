//! HTTP/2 frames put together byte by byte, so that they may lie, and the least of HPACK.

use std::fmt;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITIZED: u8 = 0x20;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const SETTINGS_TIMEOUT: u32 = 4;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The largest window there is.
pub const MAX_WINDOW: u32 = (1 << 31) - 1;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The head of a CONNECT that every row of a table may use.
pub const CONNECT: &[(&str, &str)] = &[(":method", "CONNECT"), (":authority", "10.1.2.3:80")];

/// `:status: 200` by its place in the static table.
pub const OK: &[u8] = &[0x88];

/// One frame. Nothing holds its fields to what the RFC says.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    /// With the reserved bit.
    pub stream: u32,
    pub payload: Vec<u8>,
    /// What the header says where that is not the payload's length.
    pub says: Option<u32>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.into(),
            says: None,
        }
    }

    /// With these flags, too.
    pub fn flag(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }

    pub fn without(mut self, flags: u8) -> Self {
        self.flags &= !flags;
        self
    }

    pub fn end(self) -> Self {
        self.flag(END_STREAM)
    }

    /// On another stream, with the reserved bit if `stream` has it.
    pub fn on(mut self, stream: u32) -> Self {
        self.stream = stream;
        self
    }

    /// With a header that announces another length.
    pub fn says(mut self, length: u32) -> Self {
        self.says = Some(length);
        self
    }

    /// With its payload behind a pad length and before that much padding.
    pub fn padded(mut self, padding: u8) -> Self {
        self.payload.insert(0, padding);
        self.payload.extend(vec![0; padding.into()]);
        self.flag(PADDED)
    }

    /// With priority fields before its block (before padding is added).
    pub fn prioritized(mut self, depends_on: u32) -> Self {
        let mut payload = depends_on.to_be_bytes().to_vec();
        payload.push(15);
        payload.append(&mut self.payload);
        self.payload = payload;
        self.flag(PRIORITIZED)
    }

    pub fn encode(&self) -> Vec<u8> {
        let length = self.says.unwrap_or(self.payload.len() as u32);
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The same frame again and again, as one piece.
    pub fn times(&self, n: usize) -> Vec<u8> {
        self.encode().repeat(n)
    }

    /// The frame at the front of `bytes`, when it is whole.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let head = bytes.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let (kind, flags) = (head[3], head[4]);
        let payload = bytes.get(9..9 + length)?.to_vec();
        bytes.drain(..9 + length);
        Some(Self::new(kind, flags, stream, payload))
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The `n`th 32-bit number of the payload.
    pub fn number(&self, n: usize) -> u32 {
        let at = &self.payload[4 * n..4 * n + 4];
        u32::from_be_bytes([at[0], at[1], at[2], at[3]])
    }
}

/// As a line of a packet capture.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 10] = [
            "DATA",
            "HEADERS",
            "PRIORITY",
            "RST_STREAM",
            "SETTINGS",
            "PUSH_PROMISE",
            "PING",
            "GOAWAY",
            "WINDOW_UPDATE",
            "CONTINUATION",
        ];
        let name = NAMES.get(usize::from(self.kind)).unwrap_or(&"unknown");
        write!(f, "{name}({}", self.stream)?;
        if self.flags != 0 {
            write!(f, " flags {:#x}", self.flags)?;
        }
        match self.kind {
            RST_STREAM if self.payload.len() == 4 => write!(f, " {}", code(self.number(0)))?,
            WINDOW_UPDATE if self.payload.len() == 4 => write!(f, " +{}", self.number(0))?,
            GOAWAY if self.payload.len() >= 8 => {
                let debug = String::from_utf8_lossy(&self.payload[8..]);
                write!(
                    f,
                    " last {} {} {debug:?}",
                    self.number(0),
                    code(self.number(1))
                )?;
            }
            _ => write!(f, " {} bytes", self.payload.len())?,
        }
        f.write_str(")")
    }
}

/// The RFC's name of an error code.
pub fn code(code: u32) -> String {
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
    NAMES
        .get(code as usize)
        .map_or_else(|| format!("code {code}"), |name| (*name).to_owned())
}

// === the frames of the RFC ===

pub fn data(stream: u32, bytes: impl Into<Vec<u8>>) -> Frame {
    Frame::new(DATA, 0, stream, bytes)
}

/// HEADERS with a whole block, which begins by giving up the table: who has acknowledged that there is
/// none must say so.
pub fn headers(stream: u32, block: impl Into<Vec<u8>>) -> Frame {
    bare(stream, [table_size(0), block.into()].concat())
}

/// HEADERS with exactly this block.
pub fn bare(stream: u32, block: impl Into<Vec<u8>>) -> Frame {
    Frame::new(HEADERS, END_HEADERS, stream, block)
}

/// HEADERS of a good CONNECT.
pub fn connect(stream: u32) -> Frame {
    headers(stream, block(CONNECT))
}

/// HEADERS of a CONNECT with further fields.
pub fn connect_with(stream: u32, fields: &[(&str, &str)]) -> Frame {
    headers(stream, [block(CONNECT), block(fields)].concat())
}

/// The last CONTINUATION of a block.
pub fn continuation(stream: u32, block: impl Into<Vec<u8>>) -> Frame {
    Frame::new(CONTINUATION, END_HEADERS, stream, block)
}

pub fn priority(stream: u32, depends_on: u32) -> Frame {
    let mut payload = depends_on.to_be_bytes().to_vec();
    payload.push(15);
    Frame::new(PRIORITY, 0, stream, payload)
}

pub fn reset(stream: u32, code: u32) -> Frame {
    Frame::new(RST_STREAM, 0, stream, code.to_be_bytes())
}

pub fn settings(settings: &[(u16, u32)]) -> Frame {
    let entry = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    let payload: Vec<u8> = settings.iter().flat_map(entry).collect();
    Frame::new(SETTINGS, 0, 0, payload)
}

pub fn settings_ack() -> Frame {
    Frame::new(SETTINGS, ACK, 0, [])
}

pub fn push_promise(stream: u32, promised: u32) -> Frame {
    let payload = [&promised.to_be_bytes()[..], &block(CONNECT)].concat();
    Frame::new(PUSH_PROMISE, END_HEADERS, stream, payload)
}

pub fn ping(payload: [u8; 8]) -> Frame {
    Frame::new(PING, 0, 0, payload)
}

pub fn goaway(last: u32, code: u32) -> Frame {
    Frame::new(
        GOAWAY,
        0,
        0,
        [last.to_be_bytes(), code.to_be_bytes()].concat(),
    )
}

pub fn window(stream: u32, increment: u32) -> Frame {
    Frame::new(WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
}

// === the least of HPACK ===

/// A block of literals without indexing, names and values as they are.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name.as_bytes());
        string(&mut block, value.as_bytes());
    }
    block
}

/// One literal that wants to be kept in the dynamic table.
pub fn indexed(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    string(&mut block, name.as_bytes());
    string(&mut block, value.as_bytes());
    block
}

/// A dynamic table size update.
pub fn table_size(size: usize) -> Vec<u8> {
    let mut block = Vec::new();
    integer(&mut block, 0x20, 5, size);
    block
}

/// An integer with a prefix of `bits` in a byte whose other bits are `first`.
pub fn integer(block: &mut Vec<u8>, first: u8, bits: u8, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        block.push(first | value as u8);
        return;
    }
    block.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        block.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    integer(block, 0, 7, bytes.len());
    block.extend(bytes);
}

/// The status with which an answer's block begins, however it is spelled.
pub fn status(block: &[u8]) -> Option<u16> {
    const KNOWN: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // A size update may come first.
    let block = match block {
        [first, rest @ ..] if first & 0xe0 == 0x20 => rest,
        block => block,
    };
    match block {
        [first @ 0x88..=0x8e, ..] => Some(KNOWN[usize::from(first - 0x88)]),
        // A literal value for the name at index 8 to 14, in each of the three forms.
        [0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e, length, rest @ ..] => {
            let value = rest.get(..usize::from(length & 0x7f))?;
            let digits = if length & 0x80 == 0 {
                String::from_utf8(value.to_vec()).ok()?
            } else {
                digits(value)
            };
            digits.parse().ok()
        }
        _ => None,
    }
}

/// Decimal digits in HPACK's Huffman code: 0, 1 and 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |n, bit| n << 1 | u32::from(*bit));
    let (mut text, mut at) = (String::new(), 0);
    while let Some(five) = bits.get(at..at + 5).map(number) {
        let digit = if five <= 2 {
            at += 5;
            five
        } else {
            let Some(six) = bits.get(at..at + 6).map(number) else {
                break;
            };
            at += 6;
            six.wrapping_sub(0b01_1001).wrapping_add(3)
        };
        text.extend(char::from_digit(digit, 10));
    }
    text
}
