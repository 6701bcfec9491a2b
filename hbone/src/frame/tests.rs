//! Every rule of the parser with the code it answers with.

use super::*;
use crate::limits::{MAX_BLOCK, MAX_CONTINUATIONS};

mod pieces;

const MAX_FRAME: u32 = 32 << 10;

/// A frame as it was, with its bytes joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whole {
    Data {
        stream: u32,
        size: DataSize,
        bytes: Vec<u8>,
        end: bool,
    },
    Headers {
        stream: u32,
        block: Vec<u8>,
        end: bool,
    },
    Other(String),
}

/// Everything that was fed in `chunks`, DATA joined, and the error at the end if there is one.
fn feed<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Whole>, Option<Broken>) {
    let mut parser = Parser::new(MAX_FRAME);
    let mut frames = Vec::new();
    let mut open: Option<(u32, DataSize, Vec<u8>)> = None;
    for mut input in chunks {
        loop {
            let frame = match parser.next(&mut input) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(broken) => return (frames, Some(broken)),
            };
            match frame {
                Frame::Data {
                    stream,
                    begins,
                    bytes,
                    ends,
                    end_stream,
                } => {
                    if let Some(size) = begins {
                        assert!(open.is_none());
                        open = Some((stream.get(), size, Vec::new()));
                    }
                    let (of, _, joined) = open.as_mut().expect("it began");
                    assert_eq!(*of, stream.get());
                    joined.extend_from_slice(bytes);
                    assert!(ends || !end_stream);
                    if ends {
                        let (stream, size, bytes) = open.take().unwrap();
                        assert_eq!(bytes.len() as u32, size.flow - size.padding);
                        frames.push(Whole::Data {
                            stream,
                            size,
                            bytes,
                            end: end_stream,
                        });
                    }
                }
                Frame::Headers { stream, end_stream } => frames.push(Whole::Headers {
                    stream: stream.get(),
                    block: parser.block().to_vec(),
                    end: end_stream,
                }),
                other => frames.push(Whole::Other(format!("{other:?}"))),
            }
        }
        assert!(input.is_empty(), "None leaves nothing behind");
    }
    (frames, None)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn entry(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// Whole and byte by byte.
fn code_of(bytes: &[u8]) -> Option<Code> {
    let whole = feed([bytes]);
    assert_eq!(feed(bytes.chunks(1)), whole);
    whole.1.map(|broken| broken.code)
}

#[test]
fn what_breaks_a_connection() {
    const SIZE: Code = Code::FRAME_SIZE_ERROR;
    const RULE: Code = Code::PROTOCOL_ERROR;
    const CALM: Code = Code::ENHANCE_YOUR_CALM;
    const FLOW: Code = Code::FLOW_CONTROL_ERROR;
    let long = vec![0; MAX_FRAME as usize + 1];
    let block = vec![0; MAX_BLOCK];
    let then = |a: Vec<u8>, b: Vec<u8>| [a, b].concat();
    let open = frame(1, 0, 1, &[1]);
    let rows = [
        ("DATA too long", frame(0, 0, 1, &long), SIZE),
        ("unknown too long", frame(77, 0, 0, &long), SIZE),
        ("DATA on 0", frame(0, 0, 0, &[1]), RULE),
        ("DATA on reserved 0", frame(0, 0, 1 << 31, &[1]), RULE),
        ("DATA without pad length", frame(0, 8, 1, &[]), SIZE),
        ("DATA padded by all", frame(0, 8, 1, &[1]), RULE),
        ("DATA padded by more", frame(0, 8, 1, &[3, 0, 0]), RULE),
        ("HEADERS on 0", frame(1, 4, 0, &[]), RULE),
        ("HEADERS without pad length", frame(1, 0xc, 1, &[]), SIZE),
        ("HEADERS without priority", frame(1, 0x24, 1, &[0; 4]), SIZE),
        ("HEADERS without either", frame(1, 0x2c, 1, &[0; 5]), SIZE),
        ("HEADERS padded by more", frame(1, 0xc, 1, &[2, 0]), RULE),
        (
            "HEADERS padded into priority",
            frame(1, 0x2c, 1, &[1, 0, 0, 0, 0, 0]),
            RULE,
        ),
        (
            "HEADERS then DATA",
            then(open.clone(), frame(0, 0, 1, &[])),
            RULE,
        ),
        (
            "HEADERS then PING",
            then(open.clone(), frame(6, 0, 0, &[0; 8])),
            RULE,
        ),
        (
            "HEADERS then unknown",
            then(open.clone(), frame(77, 0, 1, &[])),
            RULE,
        ),
        (
            "HEADERS then HEADERS",
            then(open.clone(), open.clone()),
            RULE,
        ),
        (
            "HEADERS then another's CONTINUATION",
            then(open.clone(), frame(9, 4, 3, &[])),
            RULE,
        ),
        ("CONTINUATION of nothing", frame(9, 4, 1, &[]), RULE),
        ("CONTINUATION on 0", frame(9, 4, 0, &[]), RULE),
        (
            "CONTINUATION after the end",
            then(frame(1, 4, 1, &[]), frame(9, 4, 1, &[])),
            RULE,
        ),
        ("block too long", frame(1, 4, 1, &long[..=MAX_BLOCK]), CALM),
        (
            "block too long in two",
            then(frame(1, 0, 1, &block), frame(9, 4, 1, &[0])),
            CALM,
        ),
        (
            "empty CONTINUATIONs",
            then(
                open.clone(),
                frame(9, 0, 1, &[]).repeat(MAX_CONTINUATIONS + 1),
            ),
            CALM,
        ),
        ("PRIORITY on 0", frame(2, 0, 0, &[0; 5]), RULE),
        ("PRIORITY short", frame(2, 0, 1, &[0; 4]), SIZE),
        ("RST_STREAM on 0", frame(3, 0, 0, &[0; 4]), RULE),
        ("RST_STREAM short", frame(3, 0, 1, &[0; 3]), SIZE),
        ("RST_STREAM long", frame(3, 0, 1, &[0; 5]), SIZE),
        ("SETTINGS on a stream", frame(4, 0, 1, &[]), RULE),
        ("SETTINGS uneven", frame(4, 0, 0, &[0; 7]), SIZE),
        (
            "SETTINGS ack with payload",
            frame(4, 1, 0, &entry(1, 1)),
            SIZE,
        ),
        (
            "SETTINGS, 65 entries",
            frame(4, 0, 0, &entry(77, 0).repeat(65)),
            CALM,
        ),
        ("push 2", frame(4, 0, 0, &entry(2, 2)), RULE),
        ("window 2^31", frame(4, 0, 0, &entry(4, 1 << 31)), FLOW),
        ("frame 16383", frame(4, 0, 0, &entry(5, 16_383)), RULE),
        ("frame 2^24", frame(4, 0, 0, &entry(5, 1 << 24)), RULE),
        ("PUSH_PROMISE", frame(5, 4, 1, &[0, 0, 0, 2]), RULE),
        ("PING on a stream", frame(6, 0, 1, &[0; 8]), RULE),
        ("PING short", frame(6, 0, 0, &[0; 7]), SIZE),
        ("GOAWAY on a stream", frame(7, 0, 1, &[0; 8]), RULE),
        ("GOAWAY short", frame(7, 0, 0, &[0; 7]), SIZE),
        ("WINDOW_UPDATE short", frame(8, 0, 1, &[0; 3]), SIZE),
        ("WINDOW_UPDATE of 0", frame(8, 0, 0, &[0; 4]), RULE),
        (
            "WINDOW_UPDATE of reserved 0",
            frame(8, 0, 0, &[0x80, 0, 0, 0]),
            RULE,
        ),
    ];
    for (what, bytes, code) in rows {
        assert_eq!(code_of(&bytes), Some(code), "{what}");
    }
}

#[test]
fn what_is_taken() {
    let settings = [
        entry(1, 0),
        entry(2, 1),
        entry(3, 100),
        entry(4, MAX_WINDOW),
        entry(5, 16_384),
        entry(6, u32::MAX),
        entry(8, 77),
        entry(5, MAX_MAX_FRAME),
    ]
    .concat();
    let rows = [
        (
            frame(2, 0xff, 1, &[0, 0, 0, 1, 0]),
            "Priority { stream: StreamId(1) }",
        ),
        (
            frame(3, 0xff, 5, &[0, 0, 0, 8]),
            "Reset { stream: StreamId(5), code: CANCEL }",
        ),
        (
            frame(3, 0, 5, &[0, 0, 0, 77]),
            "Reset { stream: StreamId(5), code: code 77 }",
        ),
        (frame(4, 1, 0, &[]), "SettingsAck"),
        (
            frame(6, 1, 0, b"12345678"),
            "Ping { ack: true, payload: [49, 50, 51, 52, 53, 54, 55, 56] }",
        ),
        (
            frame(6, 0xfe, 0, &[0; 8]),
            "Ping { ack: false, payload: [0, 0, 0, 0, 0, 0, 0, 0] }",
        ),
        (
            frame(7, 0, 0, b"\x80\0\0\x07\0\0\0\0and why"),
            "GoAway { last: StreamId(7), code: NO_ERROR }",
        ),
        (
            frame(8, 0, 1, &[0; 4]),
            "Window { stream: StreamId(1), increment: 0 }",
        ),
        (
            frame(8, 0, 0, &[0xff; 4]),
            "Window { stream: StreamId(0), increment: 2147483647 }",
        ),
        (frame(77, 0xff, 1 << 31, &[1; 100]), "Unknown"),
        (
            frame(4, 0, 0, &settings),
            "Settings(Settings { header_table_size: Some(0), enable_push: Some(true), \
             max_concurrent_streams: Some(100), initial_window_size: Some(2147483647), \
             max_frame_size: Some(16777215), max_header_list_size: Some(4294967295) })",
        ),
    ];
    // Each is followed by another frame, so that its end is known to be right.
    for (bytes, says) in rows {
        let bytes = [bytes, frame(4, 1, 0, &[])].concat();
        let want = [says, "SettingsAck"].map(|s| Whole::Other(s.to_owned()));
        assert_eq!(feed([&bytes[..]]), (want.to_vec(), None));
        assert_eq!(feed(bytes.chunks(1)), (want.to_vec(), None));
    }
}

#[test]
fn padding_and_priority_are_stripped() {
    let data = |bytes: &[u8], flow, padding, end| Whole::Data {
        stream: 1,
        size: DataSize { flow, padding },
        bytes: bytes.to_vec(),
        end,
    };
    let headers = |end| Whole::Headers {
        stream: 1,
        block: b"block".to_vec(),
        end,
    };
    let rows = [
        (frame(0, 1, 1, &[]), data(b"", 0, 0, true)),
        (frame(0, 0, 1, &[]), data(b"", 0, 0, false)),
        (frame(0, 1, 1, b"abc"), data(b"abc", 3, 0, true)),
        (frame(0, 9, 1, b"\x02abc\0\0"), data(b"abc", 6, 3, true)),
        (frame(0, 8, 1, b"\0abc"), data(b"abc", 4, 1, false)),
        (frame(0, 9, 1, b"\x02\0\0"), data(b"", 3, 3, true)),
        (frame(0, 8, 1, b"\0"), data(b"", 1, 1, false)),
        (frame(1, 5, 1, b"block"), headers(true)),
        (frame(1, 0xc, 1, b"\x02block\0\0"), headers(false)),
        (frame(1, 0x24, 1, b"\0\0\0\x01\0block"), headers(false)),
        (frame(1, 0x2d, 1, b"\x01\0\0\0\x01\0block\0"), headers(true)),
        (
            [
                frame(1, 9, 1, b"\x02bl\0\0"),
                frame(9, 0, 1, b"o"),
                frame(9, 4, 1, b"ck"),
            ]
            .concat(),
            headers(true),
        ),
        (
            [
                frame(1, 0, 1, b""),
                frame(9, 0, 1, b"").repeat(7),
                frame(9, 5, 1, b"block"),
            ]
            .concat(),
            headers(false),
        ),
    ];
    for (bytes, says) in rows {
        let bytes = [bytes, frame(4, 1, 0, &[])].concat();
        let want = vec![says, Whole::Other("SettingsAck".to_owned())];
        assert_eq!(feed([&bytes[..]]), (want.clone(), None));
        assert_eq!(feed(bytes.chunks(1)), (want, None));
    }
}

#[test]
fn data_is_yielded_as_it_comes() {
    let bytes = frame(0, 9, 1, b"\x01abc\0");
    let mut parser = Parser::new(MAX_FRAME);
    let stream = StreamId::new(1);
    let (flow, padding) = (5, 2);
    let want = [
        (1..9, None),
        (
            9..11,
            Some((Some(DataSize { flow, padding }), &b"a"[..], false)),
        ),
        (11..13, Some((None, &b"bc"[..], true))),
        (13..14, None),
    ];
    assert!(!parser.is_mid_frame());
    assert_eq!(parser.next(&mut &bytes[..1]), Ok(None));
    for (range, piece) in want {
        assert!(parser.is_mid_frame());
        let mut input = &bytes[range];
        let piece = piece.map(|(begins, bytes, ends)| Frame::Data {
            stream,
            begins,
            bytes,
            ends,
            end_stream: ends,
        });
        assert_eq!(parser.next(&mut input), Ok(piece));
        assert_eq!(parser.next(&mut input), Ok(None));
    }
    assert!(!parser.is_mid_frame());
}

#[test]
fn an_idle_parser_is_small() {
    assert!(size_of::<Parser>() <= 112, "{}", size_of::<Parser>());
    let mut parser = Parser::new(MAX_FRAME);
    assert_eq!(parser.block_capacity(), 0);
    let big = frame(1, 4, 1, &[0; 8000]);
    assert!(parser.next(&mut &big[..]).unwrap().is_some());
    assert_eq!(parser.block().len(), 8000);
    assert!(
        parser
            .next(&mut &frame(4, 1, 0, &[])[..])
            .unwrap()
            .is_some()
    );
    assert_eq!(parser.block_capacity(), 0);
}

#[test]
fn codes_have_names() {
    let names = [
        (Code::NO_ERROR, "NO_ERROR"),
        (Code::PROTOCOL_ERROR, "PROTOCOL_ERROR"),
        (Code::INTERNAL_ERROR, "INTERNAL_ERROR"),
        (Code::FLOW_CONTROL_ERROR, "FLOW_CONTROL_ERROR"),
        (Code::SETTINGS_TIMEOUT, "SETTINGS_TIMEOUT"),
        (Code::STREAM_CLOSED, "STREAM_CLOSED"),
        (Code::FRAME_SIZE_ERROR, "FRAME_SIZE_ERROR"),
        (Code::REFUSED_STREAM, "REFUSED_STREAM"),
        (Code::CANCEL, "CANCEL"),
        (Code::COMPRESSION_ERROR, "COMPRESSION_ERROR"),
        (Code::CONNECT_ERROR, "CONNECT_ERROR"),
        (Code::ENHANCE_YOUR_CALM, "ENHANCE_YOUR_CALM"),
        (Code::INADEQUATE_SECURITY, "INADEQUATE_SECURITY"),
        (Code::HTTP_1_1_REQUIRED, "HTTP_1_1_REQUIRED"),
        (Code(14), "code 14"),
        (Code(u32::MAX), "code 4294967295"),
    ];
    for (code, name) in names {
        assert_eq!(code.to_string(), name);
    }
    let id = StreamId::new(0x8000_0003);
    assert_eq!((id.get(), id.is_client()), (3, true));
    assert!(!StreamId::new(2).is_client() && !StreamId::CONNECTION.is_client());
}
