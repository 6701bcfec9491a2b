//! Frames as bytes, appended whole to what goes out next.

use super::{Code, HEAD, MAX_MAX_FRAME, MAX_WINDOW, StreamId, flag, kind};

/// The longest debug text of a GOAWAY: a sentence of ours.
const MAX_DEBUG: usize = 256;

/// The header of a DATA frame whose `len` bytes follow; at most what the peer takes.
pub(crate) fn data_head(stream: StreamId, len: usize, end_stream: bool) -> [u8; HEAD] {
    let flags = if end_stream { flag::END_STREAM } else { 0 };
    head(kind::DATA, flags, stream, len)
}

/// Says what is in `entries`, by the ids of [`super::setting`].
pub(crate) fn put_settings(out: &mut Vec<u8>, entries: &[(u16, u32)]) {
    let len = entries.len() * 6;
    out.extend_from_slice(&head(kind::SETTINGS, 0, StreamId::CONNECTION, len));
    for (id, value) in entries {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// The peer's settings are in force.
pub(crate) fn put_settings_ack(out: &mut Vec<u8>) {
    out.extend_from_slice(&head(kind::SETTINGS, flag::ACK, StreamId::CONNECTION, 0));
}

/// Asks for an echo, or is one.
pub(crate) fn put_ping(out: &mut Vec<u8>, ack: bool, payload: [u8; 8]) {
    let flags = if ack { flag::ACK } else { 0 };
    out.extend_from_slice(&head(kind::PING, flags, StreamId::CONNECTION, 8));
    out.extend_from_slice(&payload);
}

/// No stream above `last` will be looked at; `debug` is for people.
pub(crate) fn put_goaway(out: &mut Vec<u8>, last: StreamId, code: Code, debug: &str) {
    let debug = &debug[..debug.floor_char_boundary(MAX_DEBUG)];
    let len = 8 + debug.len();
    out.extend_from_slice(&head(kind::GOAWAY, 0, StreamId::CONNECTION, len));
    out.extend_from_slice(&last.get().to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug.as_bytes());
}

/// The peer may send `increment` (1..=2^31-1) bytes more.
pub(crate) fn put_window(out: &mut Vec<u8>, stream: StreamId, increment: u32) {
    debug_assert!((1..=MAX_WINDOW).contains(&increment));
    out.extend_from_slice(&head(kind::WINDOW_UPDATE, 0, stream, 4));
    out.extend_from_slice(&increment.to_be_bytes());
}

/// The stream is no more.
pub(crate) fn put_reset(out: &mut Vec<u8>, stream: StreamId, code: Code) {
    out.extend_from_slice(&head(kind::RST_STREAM, 0, stream, 4));
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// A header block, as HEADERS and as many CONTINUATIONs as `max_frame`, what the peer takes, needs.
pub(crate) fn put_headers(
    out: &mut Vec<u8>,
    stream: StreamId,
    block: &[u8],
    end_stream: bool,
    max_frame: usize,
) {
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    let mut rest = block;
    loop {
        let (now, later) = rest.split_at(rest.len().min(max_frame.max(1)));
        if later.is_empty() {
            flags |= flag::END_HEADERS;
        }
        out.extend_from_slice(&head(kind, flags, stream, now.len()));
        out.extend_from_slice(now);
        if later.is_empty() {
            return;
        }
        (kind, flags, rest) = (kind::CONTINUATION, 0, later);
    }
}

fn head(kind: u8, flags: u8, stream: StreamId, len: usize) -> [u8; HEAD] {
    debug_assert!(len <= MAX_MAX_FRAME as usize);
    let [.., a, b, c] = len.to_be_bytes();
    let [d, e, f, g] = stream.get().to_be_bytes();
    [a, b, c, kind, flags, d, e, f, g]
}
