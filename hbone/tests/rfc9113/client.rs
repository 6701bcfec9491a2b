//! The table of a client: what a server may do wrong.

use super::*;

pub(super) fn table() -> Vec<Row> {
    const MALFORMED: Reaction = Reset(1, PROTOCOL_ERROR);
    let answer = |fields: &[(&str, &str)]| block(fields);
    let ok = headers(1, OK);
    let first = |frame: &Frame| frame.encode();
    vec![
        opening("3.4", "no SETTINGS first", first(&ping([0; 8])), Goaway(PROTOCOL_ERROR)),
        opening("3.4", "HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Closed),
        opening("6.5.2", "a window too large", first(&settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)])), Goaway(FLOW_CONTROL_ERROR)),
        opening("6.5.2", "push of a server", first(&settings(&[(ENABLE_PUSH, 1)])), Goaway(PROTOCOL_ERROR)),
        row("5.1", "DATA, idle", vec![data(3, "x")], Goaway(PROTOCOL_ERROR)),
        row("5.1", "HEADERS, idle", vec![headers(3, OK)], Goaway(PROTOCOL_ERROR)),
        row("5.1", "WINDOW_UPDATE, idle", vec![window(3, 1)], Goaway(PROTOCOL_ERROR)),
        row("5.1", "RST_STREAM, idle", vec![reset(3, CANCEL)], Goaway(PROTOCOL_ERROR)),
        row("5.1.1", "HEADERS, of the server's own", vec![headers(2, OK)], Goaway(PROTOCOL_ERROR)),
        row("5.1", "DATA after END_STREAM", vec![ok.clone(), data(1, []).end(), data(1, "x")], Reset(1, STREAM_CLOSED)),
        row("5.1", "HEADERS after END_STREAM", vec![ok.clone(), data(1, []).end(), ok.clone()], Reset(1, STREAM_CLOSED)),
        row("5.1", "HEADERS, open, no end", vec![ok.clone(), ok.clone()], MALFORMED),
        row("6.6", "PUSH_PROMISE", vec![push_promise(1, 2)], Goaway(PROTOCOL_ERROR)),
        row("6.7", "PING", vec![ping([9; 8])], Ignored),
        row("6.9", "WINDOW_UPDATE by nothing", vec![ok.clone(), window(1, 0)], MALFORMED),
        row("6.9", "WINDOW_UPDATE of the connection by nothing", vec![window(0, 0)], Goaway(PROTOCOL_ERROR)),
        row("6.1", "DATA with padding", vec![ok.clone(), data(1, "x").padded(200)], Ignored),
        row("6.2", "HEADERS with padding", vec![headers(1, OK).padded(20)], Ignored),
        row("6.2", "HEADERS with priority", vec![headers(1, OK).prioritized(0)], Ignored),
        row("4.1", "an unknown frame", vec![Frame::new(0xbe, 0xff, 1, *b"what"), ok.clone()], Ignored),
        row("8.1", "DATA before HEADERS", vec![data(1, "x")], MALFORMED),
        row("8.1", "trailers with a pseudo-field", vec![ok.clone(), headers(1, OK).end()], MALFORMED),
        row("8.1", "trailers", vec![ok, headers(1, answer(&[("x-trailer", "t")])).end()], Ignored),
        row("8.1", "about to answer, then answering", vec![headers(1, answer(&[(":status", "103")])), headers(1, OK)], Ignored),
        row("8.1", "about to answer, and the end", vec![headers(1, answer(&[(":status", "103")])).end()], MALFORMED),
        head("no status", "8.3.2", answer(&[("x", "y")]), MALFORMED),
        head("two statuses", "8.3.2", [OK, OK].concat(), MALFORMED),
        head("a status of two digits", "8.3.2", answer(&[(":status", "20")]), MALFORMED),
        head("a status of letters", "8.3.2", answer(&[(":status", "abc")]), MALFORMED),
        head("a method", "8.3", answer(&[(":status", "200"), (":method", "CONNECT")]), MALFORMED),
        head("a pseudo-field after others", "8.3", answer(&[("x", "y"), (":status", "200")]), MALFORMED),
        head("an upper-case name", "8.2.1", answer(&[(":status", "200"), ("X", "y")]), MALFORMED),
        head("connection", "8.2.2", answer(&[(":status", "200"), ("connection", "close")]), MALFORMED),
        head("a line break in a value", "8.2.1", answer(&[(":status", "200"), ("x", "a\nb")]), MALFORMED),
        head("an index of nothing", "7541 6.1", vec![0x80], Goaway(COMPRESSION_ERROR)),
    ]
}
