//! The table of a server.

use super::*;

fn connect_pieces() -> (Vec<u8>, Vec<u8>) {
    (block(&CONNECT[..1]), block(&CONNECT[1..]))
}

/// A CONNECT with these further fields.
fn more(fields: &[(&str, &str)]) -> Vec<u8> {
    [block(CONNECT), block(fields)].concat()
}

fn open_settings(first: &[Frame]) -> Vec<u8> {
    let frames = first.iter().flat_map(Frame::encode);
    PREFACE.iter().copied().chain(frames).collect()
}

pub(super) fn table() -> Vec<Row> {
    let tables = [
        prefaces(),
        frames(),
        streams(),
        data_and_headers(),
        control(),
        windows(),
        heads(),
        compression(),
    ];
    tables.into_iter().flatten().collect()
}

fn prefaces() -> Vec<Row> {
    let good = settings(&[]);
    vec![
        opening("3.4", "a good preface", open_settings(std::slice::from_ref(&good)), Ignored),
        opening("3.4", "settings and more at once", open_settings(&[good, connect(1)]), Status(1, 200)),
        opening("3.4", "no preface", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Goaway(PROTOCOL_ERROR)),
        opening("3.4", "a preface that is wrong at its end", [&PREFACE[..20], b"XX\r\n"].concat(), Goaway(PROTOCOL_ERROR)),
        opening("3.4", "no SETTINGS first", open_settings(&[ping([0; 8])]), Goaway(PROTOCOL_ERROR)),
        opening("3.4", "a request first", open_settings(&[connect(1)]), Goaway(PROTOCOL_ERROR)),
    ]
}

fn frames() -> Vec<Row> {
    let half = connect_pieces().0;
    let unfinished = headers(1, half).without(END_HEADERS);
    let reserved = 1 << 31;
    vec![
        row("4.1", "an unknown frame", vec![Frame::new(0x16, 0, 0, *b"what"), connect(1)], Status(1, 200)),
        row("4.1", "an unknown frame on a stream to come", vec![Frame::new(0xff, 0xff, 9, *b"what")], Ignored),
        row("4.1", "undefined flags", vec![ping([3; 8]).flag(0x16), connect(1).flag(0xc2)], Status(1, 200)),
        row("4.1", "the reserved bit", vec![ping([3; 8]).on(reserved), connect(1).on(reserved | 1)], Status(1, 200)),
        row("4.2", "the largest frame", vec![connect(1), data(1, vec![b'x'; 16_384])], Status(1, 200)),
        row("4.2", "DATA beyond the largest", vec![connect(1), data(1, []).says((1 << 24) - 1)], Goaway(FRAME_SIZE_ERROR)),
        row("4.2", "HEADERS beyond the largest", vec![connect(1).says((1 << 24) - 1)], Goaway(FRAME_SIZE_ERROR)),
        row("4.2", "SETTINGS beyond the largest", vec![settings(&[]).says(6 << 20)], Goaway(FRAME_SIZE_ERROR)),
        row("4.2", "an unknown frame beyond the largest", vec![Frame::new(0xbe, 0, 0, []).says((1 << 24) - 1)], Goaway(FRAME_SIZE_ERROR)),
        row("4.3", "a block that is none", vec![headers(1, [0xff; 8])], Goaway(COMPRESSION_ERROR)),
        row("4.3", "PRIORITY in a block", vec![unfinished.clone(), priority(1, 0)], Goaway(PROTOCOL_ERROR)),
        row("4.3", "DATA in a block", vec![unfinished.clone(), data(1, "x")], Goaway(PROTOCOL_ERROR)),
        row("4.3", "PING in a block", vec![unfinished.clone(), ping([0; 8])], Goaway(PROTOCOL_ERROR)),
        row("4.3", "HEADERS of another stream in a block", vec![unfinished.clone(), connect(3)], Goaway(PROTOCOL_ERROR)),
        row("5.5", "an unknown frame in a block", vec![unfinished, Frame::new(0xbe, 0, 1, [])], Goaway(PROTOCOL_ERROR)),
    ]
}

fn streams() -> Vec<Row> {
    let (opened, ended) = (connect(1), connect(1).end());
    let closed = || vec![connect(1), reset(1, CANCEL)];
    let then = |mut first: Vec<Frame>, next: Frame| {
        first.push(next);
        first
    };
    let trailer = headers(1, block(&[("x-trailer", "t")]));
    vec![
        row("5.1", "DATA, idle", vec![data(1, "x")], Goaway(PROTOCOL_ERROR)),
        row("5.1", "RST_STREAM, idle", vec![reset(1, CANCEL)], Goaway(PROTOCOL_ERROR)),
        row("5.1", "WINDOW_UPDATE, idle", vec![window(1, 1)], Goaway(PROTOCOL_ERROR)),
        row("5.1", "CONTINUATION, idle", vec![continuation(1, block(CONNECT))], Goaway(PROTOCOL_ERROR)),
        row("5.1", "DATA, idle, of ours", vec![data(2, "x")], Goaway(PROTOCOL_ERROR)),
        row("5.1", "WINDOW_UPDATE, idle, of ours", vec![window(2, 1)], Goaway(PROTOCOL_ERROR)),
        row("5.1", "PRIORITY, idle", vec![priority(9, 0)], Ignored),
        row("5.1", "HEADERS, open, no end", vec![opened.clone(), trailer.clone()], Reset(1, PROTOCOL_ERROR)),
        row("5.1", "DATA, half-closed", vec![ended.clone(), data(1, "x")], Reset(1, STREAM_CLOSED)),
        row("5.1", "HEADERS, half-closed", vec![ended.clone(), trailer.clone().end()], Reset(1, STREAM_CLOSED)),
        row("5.1", "CONTINUATION, half-closed", vec![ended.clone(), continuation(1, [])], Goaway(PROTOCOL_ERROR)),
        row("5.1", "WINDOW_UPDATE, half-closed", vec![ended.clone(), window(1, 1)], Status(1, 200)),
        row("5.1", "PRIORITY, half-closed", vec![ended.clone(), priority(1, 0)], Status(1, 200)),
        row("5.1", "RST_STREAM, half-closed", vec![ended, reset(1, CANCEL)], Ignored),
        row("5.1", "DATA after END_STREAM", vec![opened.clone(), data(1, "x").end(), data(1, "y")], Reset(1, STREAM_CLOSED)),
        row("5.1", "DATA, closed", then(closed(), data(1, "x")), Reset(1, STREAM_CLOSED)),
        row("5.1", "HEADERS, closed", then(closed(), connect(1)), Goaway(STREAM_CLOSED)),
        row("5.1", "CONTINUATION, closed", then(closed(), continuation(1, [])), Goaway(PROTOCOL_ERROR)),
        row("5.1", "WINDOW_UPDATE, closed", then(closed(), window(1, 1)), Ignored),
        row("5.1", "RST_STREAM, closed", then(closed(), reset(1, CANCEL)), Ignored),
        row("5.1", "PRIORITY, closed", then(closed(), priority(1, 0)), Ignored),
        row("5.1.1", "an even stream", vec![connect(2)], Goaway(PROTOCOL_ERROR)),
        row("5.1.1", "a lower stream", vec![connect(5), connect(3)], Goaway(STREAM_CLOSED)),
        row("5.1.1", "streams that are skipped", vec![connect(9)], Status(9, 200)),
        row("5.1.1", "DATA on a skipped stream", vec![connect(9), data(3, "x")], Reset(3, STREAM_CLOSED)),
        row("5.3.2", "PRIORITY of a stream on itself", vec![opened, priority(1, 1)], Status(1, 200)),
        row("5.3.2", "HEADERS with a priority on itself", vec![connect(1).prioritized(1)], Status(1, 200)),
    ]
}

fn data_and_headers() -> Vec<Row> {
    let opened = connect(1);
    let (method, authority) = connect_pieces();
    let (first, last) = (headers(1, method).without(END_HEADERS), continuation(1, authority));
    let padding = |kind: u8, length: u8, payload: &[u8]| {
        Frame::new(kind, PADDED | END_HEADERS, 1, [&[length], payload].concat())
    };
    vec![
        row("6.1", "DATA", vec![opened.clone(), data(1, "x")], Echo(1, "x")),
        row("6.1", "DATA with padding", vec![opened.clone(), data(1, "xyz").padded(200)], Echo(1, "xyz")),
        row("6.1", "DATA of nothing but padding", vec![opened.clone(), data(1, "").padded(9), data(1, "z")], Echo(1, "z")),
        row("6.1", "empty DATA", vec![opened.clone(), data(1, ""), data(1, "z")], Echo(1, "z")),
        row("6.1", "DATA on stream 0", vec![data(0, "x")], Goaway(PROTOCOL_ERROR)),
        row("6.1", "DATA, padding too long", vec![opened.clone(), padding(DATA, 6, b"12345")], Goaway(PROTOCOL_ERROR)),
        row("6.1", "DATA, padding as long as the frame", vec![opened.clone(), padding(DATA, 5, b"1234")], Goaway(PROTOCOL_ERROR)),
        row("6.1", "DATA, no room for its pad length", vec![opened.clone(), data(1, "").flag(PADDED)], Goaway(FRAME_SIZE_ERROR)),
        row("6.2", "HEADERS with padding", vec![connect(1).padded(77)], Status(1, 200)),
        row("6.2", "HEADERS with priority", vec![connect(1).prioritized(0)], Status(1, 200)),
        row("6.2", "HEADERS with exclusive priority", vec![connect(1).prioritized(1 << 31 | 7)], Status(1, 200)),
        row("6.2", "HEADERS with priority and padding", vec![connect(1).prioritized(0).padded(8)], Status(1, 200)),
        row("6.2", "HEADERS on stream 0", vec![connect(0)], Goaway(PROTOCOL_ERROR)),
        row("6.2", "HEADERS, padding too long", vec![padding(HEADERS, 200, &block(CONNECT))], Goaway(PROTOCOL_ERROR)),
        row("6.2", "HEADERS, no room for its priority", vec![headers(1, [0; 3]).flag(PRIORITIZED)], Goaway(FRAME_SIZE_ERROR)),
        row("6.10", "CONTINUATION", vec![first.clone(), last.clone()], Status(1, 200)),
        row("6.10", "CONTINUATION with padding before it", vec![first.clone().padded(9), last.clone()], Status(1, 200)),
        row("6.10", "an empty CONTINUATION", vec![connect(1).without(END_HEADERS), continuation(1, [])], Status(1, 200)),
        row("6.10", "END_STREAM with a block in pieces", vec![first.clone().end(), last.clone(), data(1, "x")], Reset(1, STREAM_CLOSED)),
        row("6.10", "CONTINUATION on stream 0", vec![first.clone(), last.clone().on(0)], Goaway(PROTOCOL_ERROR)),
        row("6.10", "CONTINUATION on another stream", vec![first, last.clone().on(3)], Goaway(PROTOCOL_ERROR)),
        row("6.10", "CONTINUATION after a whole block", vec![opened.clone(), last.clone()], Goaway(PROTOCOL_ERROR)),
        row("6.10", "CONTINUATION after DATA", vec![opened.clone(), data(1, "x"), last], Goaway(PROTOCOL_ERROR)),
        row("6.6", "PUSH_PROMISE of a client", vec![opened, push_promise(1, 2)], Goaway(PROTOCOL_ERROR)),
    ]
}

fn control() -> Vec<Row> {
    let raw = |kind: u8, stream: u32, length: usize| Frame::new(kind, 0, stream, vec![0; length]);
    let opened = connect(1);
    vec![
        row("6.3", "PRIORITY", vec![opened.clone(), priority(1, 3)], Status(1, 200)),
        row("6.3", "PRIORITY on stream 0", vec![priority(0, 1)], Goaway(PROTOCOL_ERROR)),
        row("6.3", "PRIORITY of 4 bytes", vec![raw(PRIORITY, 1, 4)], Goaway(FRAME_SIZE_ERROR)),
        row("6.4", "RST_STREAM", vec![opened.clone(), reset(1, CANCEL)], Ignored),
        row("6.4", "RST_STREAM on stream 0", vec![reset(0, CANCEL)], Goaway(PROTOCOL_ERROR)),
        row("6.4", "RST_STREAM of 3 bytes", vec![opened.clone(), raw(RST_STREAM, 1, 3)], Goaway(FRAME_SIZE_ERROR)),
        row("7", "RST_STREAM with an unknown code", vec![opened.clone(), reset(1, 0xdead_beef)], Ignored),
        row("6.5", "SETTINGS", vec![settings(&[(MAX_FRAME_SIZE, 20_000)])], Ignored),
        row("6.5", "an acknowledgement that says something", vec![settings_ack().flag(0), Frame::new(SETTINGS, ACK, 0, [0; 6])], Goaway(FRAME_SIZE_ERROR)),
        row("6.5", "SETTINGS on a stream", vec![settings(&[]).on(1)], Goaway(PROTOCOL_ERROR)),
        row("6.5", "SETTINGS of 5 bytes", vec![raw(SETTINGS, 0, 5)], Goaway(FRAME_SIZE_ERROR)),
        row("6.5.2", "ENABLE_PUSH of 2", vec![settings(&[(ENABLE_PUSH, 2)])], Goaway(PROTOCOL_ERROR)),
        row("6.5.2", "INITIAL_WINDOW_SIZE too large", vec![settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)])], Goaway(FLOW_CONTROL_ERROR)),
        row("6.5.2", "MAX_FRAME_SIZE too small", vec![settings(&[(MAX_FRAME_SIZE, 16_383)])], Goaway(PROTOCOL_ERROR)),
        row("6.5.2", "MAX_FRAME_SIZE too large", vec![settings(&[(MAX_FRAME_SIZE, 1 << 24)])], Goaway(PROTOCOL_ERROR)),
        row("6.5.2", "an unknown setting", vec![settings(&[(0xbeef, 7), (0, 1)]), connect(1)], Status(1, 200)),
        row("6.5.3", "one setting twice: the last counts", vec![settings(&[(INITIAL_WINDOW_SIZE, 0), (INITIAL_WINDOW_SIZE, 5)]), connect(1), data(1, "hello")], Echo(1, "hello")),
        row("6.5.3", "any setting at its end", vec![settings(&[(HEADER_TABLE_SIZE, u32::MAX), (MAX_CONCURRENT_STREAMS, 0), (MAX_HEADER_LIST_SIZE, u32::MAX)]), connect(1)], Status(1, 200)),
        row("6.5", "more settings than there are", vec![settings(&[(0xbeef, 7); 65])], Goaway(ENHANCE_YOUR_CALM)),
        row("6.7", "PING", vec![ping([9; 8])], Ignored),
        row("6.7", "an answer that nobody asked for", vec![ping([9; 8]).flag(ACK)], Ignored),
        row("6.7", "PING on a stream", vec![ping([9; 8]).on(1)], Goaway(PROTOCOL_ERROR)),
        row("6.7", "PING of 6 bytes", vec![raw(PING, 0, 6)], Goaway(FRAME_SIZE_ERROR)),
        row("6.8", "GOAWAY and what still runs", vec![opened.clone(), goaway(0, NO_ERROR), data(1, "x")], Echo(1, "x")),
        row("6.8", "GOAWAY with an unknown code", vec![goaway(0, 0xdead_beef)], Ignored),
        row("6.8", "GOAWAY with debug data", vec![Frame::new(GOAWAY, 0, 0, vec![0; 4000])], Ignored),
        row("6.8", "GOAWAY on a stream", vec![opened, goaway(0, NO_ERROR).on(1)], Goaway(PROTOCOL_ERROR)),
        row("6.8", "GOAWAY of 7 bytes", vec![raw(GOAWAY, 0, 7)], Goaway(FRAME_SIZE_ERROR)),
    ]
}

fn windows() -> Vec<Row> {
    let opened = connect(1);
    let becomes = |size| settings(&[(INITIAL_WINDOW_SIZE, size)]);
    vec![
        row("6.9", "WINDOW_UPDATE by nothing", vec![opened.clone(), window(1, 0)], Reset(1, PROTOCOL_ERROR)),
        row("6.9", "WINDOW_UPDATE of the connection by nothing", vec![window(0, 0)], Goaway(PROTOCOL_ERROR)),
        row("6.9", "WINDOW_UPDATE of 3 bytes", vec![Frame::new(WINDOW_UPDATE, 0, 0, [0; 3])], Goaway(FRAME_SIZE_ERROR)),
        row("6.9", "WINDOW_UPDATE, reserved bit", vec![becomes(0), opened.clone(), data(1, "x"), window(1, 1 << 31 | 1)], Echo(1, "x")),
        row("6.9.1", "a window of one", vec![becomes(1), opened.clone(), data(1, "xy")], Echo(1, "x")),
        row("6.9.1", "a stream's window overflows", vec![opened.clone(), window(1, MAX_WINDOW)], Reset(1, FLOW_CONTROL_ERROR)),
        row("6.9.1", "a stream's window overflows in two steps", vec![opened.clone(), window(1, MAX_WINDOW - 0xffff), window(1, 1)], Reset(1, FLOW_CONTROL_ERROR)),
        row("6.9.1", "the connection's window overflows", vec![window(0, MAX_WINDOW)], Goaway(FLOW_CONTROL_ERROR)),
        row("6.9.2", "a window that grows by settings", vec![becomes(0), opened.clone(), data(1, "xy"), becomes(2)], Echo(1, "xy")),
        row("6.9.2", "a window that settings make overflow", vec![opened, window(1, MAX_WINDOW - 0xffff), becomes(0x1_0000)], Goaway(FLOW_CONTROL_ERROR)),
        row("6.9.2", "the largest window", vec![becomes(MAX_WINDOW), connect(1), data(1, "x")], Echo(1, "x")),
    ]
}

fn heads() -> Vec<Row> {
    const MALFORMED: Reaction = Reset(1, PROTOCOL_ERROR);
    const FINE: Reaction = Status(1, 200);
    let without = |skip: usize| block(&[CONNECT[1 - skip]]);
    let trailers = |fields: &[(&str, &str)]| vec![connect(1), headers(1, block(fields)).end()];
    vec![
        head("a good request", "8.5", block(CONNECT), FINE),
        head("authority before method", "8.3", block(&[CONNECT[1], CONNECT[0]]), FINE),
        head("unknown fields", "8.2", more(&[("x-what", "ever"), ("cookie", "a=b"), ("empty", "")]), FINE),
        head("an upper-case name", "8.2.1", more(&[("X-What", "ever")]), MALFORMED),
        head("an upper-case pseudo-field", "8.2.1", block(&[CONNECT[0], (":Authority", "10.1.2.3:80")]), MALFORMED),
        head("a space in a name", "8.2.1", more(&[("x what", "ever")]), MALFORMED),
        head("a colon in a name", "8.2.1", more(&[("x:what", "ever")]), MALFORMED),
        head("a name of nothing", "8.2.1", more(&[("", "ever")]), MALFORMED),
        head("a control character in a name", "8.2.1", more(&[("x\u{1}", "ever")]), MALFORMED),
        head("NUL in a value", "8.2.1", more(&[("x", "e\0r")]), MALFORMED),
        head("a line break in a value", "8.2.1", more(&[("x", "e\r\nx: y")]), MALFORMED),
        head("white space around a value", "8.2.1", more(&[("x", " ever")]), MALFORMED),
        head("white space after a value", "8.2.1", more(&[("x", "ever\t")]), MALFORMED),
        head("connection", "8.2.2", more(&[("connection", "close")]), MALFORMED),
        head("proxy-connection", "8.2.2", more(&[("proxy-connection", "close")]), MALFORMED),
        head("keep-alive", "8.2.2", more(&[("keep-alive", "5")]), MALFORMED),
        head("transfer-encoding", "8.2.2", more(&[("transfer-encoding", "chunked")]), MALFORMED),
        head("upgrade", "8.2.2", more(&[("upgrade", "h2c")]), MALFORMED),
        head("te with anything", "8.2.2", more(&[("te", "gzip")]), MALFORMED),
        head("te: trailers", "8.2.2", more(&[("te", "trailers")]), FINE),
        head("an unknown pseudo-field", "8.3", more(&[(":what", "ever")]), MALFORMED),
        head("a known pseudo-field after others", "8.3", [block(&CONNECT[..1]), block(&[("x", "y")]), block(&CONNECT[1..])].concat(), MALFORMED),
        head("a pseudo-field of answers", "8.3", [block(&[(":status", "200")]), block(CONNECT)].concat(), MALFORMED),
        head("two methods", "8.3.1", block(&[CONNECT[0], CONNECT[0], CONNECT[1]]), MALFORMED),
        head("two authorities", "8.3.1", block(&[CONNECT[0], CONNECT[1], CONNECT[1]]), MALFORMED),
        head("no method", "8.3.1", without(0), MALFORMED),
        head("no authority", "8.5", without(1), MALFORMED),
        head("nothing", "8.3.1", Vec::new(), MALFORMED),
        head("a scheme", "8.5", block(&[CONNECT[0], CONNECT[1], (":scheme", "https")]), MALFORMED),
        head("a path", "8.5", block(&[CONNECT[0], CONNECT[1], (":path", "/")]), MALFORMED),
        head("another host", "8.3.1", more(&[("host", "10.6.6.6:80")]), MALFORMED),
        head("an authority without port", "8.5", block(&[CONNECT[0], (":authority", "10.1.2.3")]), Status(1, 400)),
        head("another method", "8.5", block(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a.b")]), Status(1, 400)),
        head("another method without a path", "8.3.1", block(&[(":method", "GET"), (":scheme", "https"), (":authority", "a.b")]), MALFORMED),
        row("8.1", "a second head without end", vec![connect(1), connect(1)], MALFORMED),
        row("8.1", "trailers", trailers(&[("x-trailer", "t")]), FINE),
        row("8.1", "a pseudo-field in trailers", trailers(&[(":method", "CONNECT")]), MALFORMED),
        row("8.1", "an upper-case name in trailers", trailers(&[("X", "t")]), MALFORMED),
    ]
}

/// RFC 7541, as far as a peer can see it.
fn compression() -> Vec<Row> {
    const BROKEN: Reaction = Goaway(COMPRESSION_ERROR);
    let with = |bytes: &[u8]| [block(CONNECT), bytes.to_vec()].concat();
    // A literal `x` whose value is these bytes in Huffman's code.
    let huffman = |bytes: &[u8]| {
        let length = 0x80 | bytes.len() as u8;
        with(&[&[0, 1, b'x', length][..], bytes].concat())
    };
    vec![
        head("an index beyond all tables", "7541 2.3.3", with(&[0xc6]), BROKEN),
        head("index 0", "7541 6.1", with(&[0x80]), BROKEN),
        head("a name by an index beyond all tables", "7541 2.3.3", with(&[0x7f, 0x30, 1, b'v']), BROKEN),
        row("7541 4.2", "a table size first", vec![bare(1, [table_size(0), block(CONNECT)].concat())], Status(1, 200)),
        row("7541 4.2", "a table that was to be given up", vec![bare(1, block(CONNECT))], BROKEN),
        head("a table size in the middle", "7541 4.2", with(&table_size(0)), BROKEN),
        row("7541 6.3", "a table size above the limit", vec![bare(1, [table_size(1), block(CONNECT)].concat())], BROKEN),
        row("7541 4.2", "three table sizes", vec![bare(1, [table_size(0).repeat(3), block(CONNECT)].concat())], BROKEN),
        head("a field of the static table", "7541 6.1", with(&[0x90]), Status(1, 200)),
        head("a field never to be indexed", "7541 6.2.3", with(&[0x10, 1, b'x', 1, b'y']), Status(1, 200)),
        head("a field to be indexed in a table of none", "7541 4.4", with(&indexed("x", "y")), Status(1, 200)),
        head("Huffman's code", "7541 5.2", huffman(&[0xf9, 0x63, 0xe7]), Status(1, 200)),
        head("padding of more than 7 bits", "7541 5.2", huffman(&[0xf9, 0xff, 0xff]), BROKEN),
        head("padding with zeros", "7541 5.2", huffman(&[0x18]), BROKEN),
        head("the end of string in a string", "7541 5.2", huffman(&[0xff; 4]), BROKEN),
        head("a string longer than the block", "7541 5.2", with(&[0, 1, b'x', 9, b'y']), BROKEN),
        head("a block that ends in an integer", "7541 5.1", with(&[0, 0x7f]), BROKEN),
        head("an integer that overflows", "7541 5.1", with(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), BROKEN),
        row("7541 4.3", "a broken block of trailers", vec![connect(1), headers(1, [0x80]).end()], BROKEN),
        row("7541 4.3", "a broken block of a refused request", vec![headers(1, [0x80])], BROKEN),
    ]
}
