//! Plaintext HTTP/2 as it comes from a peer: frames are the same however their bytes are cut.

use crate::frame::{
    Broken, Code, DataSize, Frame, HEAD, MAX_MAX_FRAME, MIN_MAX_FRAME, PREFACE, Parser, Settings,
    StreamId, data_head, put_goaway, put_headers, put_ping, put_reset, put_settings,
    put_settings_ack, put_window, setting,
};
use crate::head::{self, HeadError};
use crate::hpack::Decoder;
use crate::limits::MAX_BLOCK;
use crate::session::Role;

/// What a server receives of a client, in plaintext.
pub fn server_bytes(data: &[u8]) {
    let frames = data.strip_prefix(PREFACE).unwrap_or(data);
    let said = any_cut(frames);
    let mut decoder = Decoder::new();
    heads(&said, |block| head::request(&mut decoder, block).map(drop));
    super::session::run(Role::Server, data);
}

/// What a client receives of a server, in plaintext.
pub fn client_bytes(data: &[u8]) {
    let said = any_cut(data);
    let mut decoder = Decoder::new();
    heads(&said, |block| head::response(&mut decoder, block).map(drop));
    super::session::run(Role::Client, data);
}

/// A frame with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Data {
        stream: StreamId,
        size: DataSize,
        bytes: Vec<u8>,
        /// Nothing while the frame is not whole.
        end_stream: Option<bool>,
    },
    Headers {
        stream: StreamId,
        end_stream: bool,
        block: Vec<u8>,
    },
    Reset(StreamId, Code),
    Settings(Settings),
    SettingsAck,
    Ping(bool, [u8; 8]),
    GoAway(StreamId, Code),
    Window(StreamId, u32),
    Priority(StreamId),
    Unknown,
}

/// Everything a parser made of some bytes.
#[derive(Debug, PartialEq, Eq)]
struct Transcript {
    said: Vec<Said>,
    end: Result<(), Broken>,
    mid_frame: bool,
}

/// Parses in one piece, byte by byte, and in pieces that are neither; writes what was understood and parses that.
fn any_cut(frames: &[u8]) -> Vec<Said> {
    let whole = parse(frames, frames.len().max(1), MIN_MAX_FRAME);
    for size in [1, 3, 10] {
        assert_eq!(
            parse(frames, size, MIN_MAX_FRAME),
            whole,
            "in pieces of {size}"
        );
    }
    assert!(whole.said.len() <= frames.len() / HEAD);
    let told = told_again(&whole.said);
    let mut bytes = Vec::new();
    told.iter().for_each(|said| write(&mut bytes, said));
    let again = parse(&bytes, 7, MIN_MAX_FRAME);
    assert_eq!((again.end, again.mid_frame), (Ok(()), false));
    assert_eq!(again.said, told);
    whole.said
}

/// Reads whole and good frames, of any length.
pub(super) fn said(frames: &[u8]) -> Vec<Said> {
    let whole = parse(frames, frames.len().max(1), MAX_MAX_FRAME);
    assert_eq!((whole.end, whole.mid_frame), (Ok(()), false));
    whole.said
}

fn parse(frames: &[u8], size: usize, max_frame: u32) -> Transcript {
    let mut parser = Parser::new(max_frame);
    let (mut said, mut end) = (Vec::new(), Ok(()));
    for mut piece in frames.chunks(size) {
        end = drain(&mut parser, &mut piece, &mut said);
        if end.is_err() {
            break;
        }
        assert!(piece.is_empty(), "it wants more and leaves some");
    }
    Transcript {
        said,
        end,
        mid_frame: parser.is_mid_frame(),
    }
}

fn drain(parser: &mut Parser, piece: &mut &[u8], said: &mut Vec<Said>) -> Result<(), Broken> {
    while let Some(frame) = parser.next(piece)? {
        let new = match frame {
            Frame::Data {
                stream,
                begins,
                bytes,
                ends,
                end_stream,
            } => {
                assert!(ends || !end_stream);
                data(said, stream, begins, bytes);
                if ends {
                    ended(said, end_stream);
                }
                continue;
            }
            Frame::Headers { stream, end_stream } => {
                let block = parser.block().to_vec();
                assert!(block.len() <= MAX_BLOCK);
                Said::Headers {
                    stream,
                    end_stream,
                    block,
                }
            }
            Frame::Reset { stream, code } => Said::Reset(stream, code),
            Frame::Settings(settings) => Said::Settings(settings),
            Frame::SettingsAck => Said::SettingsAck,
            Frame::Ping { ack, payload } => Said::Ping(ack, payload),
            Frame::GoAway { last, code } => Said::GoAway(last, code),
            Frame::Window { stream, increment } => Said::Window(stream, increment),
            Frame::Priority { stream } => Said::Priority(stream),
            Frame::Unknown => Said::Unknown,
        };
        said.push(new);
    }
    Ok(())
}

/// Puts pieces of a DATA frame together.
fn data(said: &mut Vec<Said>, of: StreamId, begins: Option<DataSize>, piece: &[u8]) {
    if let Some(size) = begins {
        said.push(Said::Data {
            stream: of,
            size,
            bytes: Vec::new(),
            end_stream: None,
        });
    }
    let Some(Said::Data {
        stream,
        bytes,
        size,
        end_stream: None,
    }) = said.last_mut()
    else {
        panic!("a piece of no frame");
    };
    assert_eq!(*stream, of);
    bytes.extend_from_slice(piece);
    assert!(bytes.len() <= (size.flow - size.padding) as usize);
}

fn ended(said: &mut [Said], end: bool) {
    let Some(Said::Data {
        bytes,
        size,
        end_stream,
        ..
    }) = said.last_mut()
    else {
        panic!("the end of no frame");
    };
    assert_eq!(bytes.len(), (size.flow - size.padding) as usize);
    *end_stream = Some(end);
}

/// What can be said by our writers: whole frames of known types that we may send, without padding.
fn told_again(said: &[Said]) -> Vec<Said> {
    let known = said.iter().filter(|said| {
        !matches!(
            said,
            Said::Unknown
                | Said::Priority(_)
                | Said::Window(_, 0)
                | Said::Data {
                    end_stream: None,
                    ..
                }
        )
    });
    let mut told: Vec<Said> = known.cloned().collect();
    for said in &mut told {
        if let Said::Data { size, bytes, .. } = said {
            *size = DataSize {
                flow: bytes.len() as u32,
                padding: 0,
            };
        }
    }
    told
}

fn write(out: &mut Vec<u8>, said: &Said) {
    match said {
        Said::Data {
            stream,
            bytes,
            end_stream,
            ..
        } => {
            out.extend(data_head(*stream, bytes.len(), *end_stream == Some(true)));
            out.extend_from_slice(bytes);
        }
        Said::Headers {
            stream,
            end_stream,
            block,
        } => put_headers(out, *stream, block, *end_stream, MIN_MAX_FRAME as usize),
        Said::Reset(stream, code) => put_reset(out, *stream, *code),
        Said::Settings(settings) => put_settings(out, &entries(settings)),
        Said::SettingsAck => put_settings_ack(out),
        Said::Ping(ack, payload) => put_ping(out, *ack, *payload),
        Said::GoAway(last, code) => put_goaway(out, *last, *code, "as it was said"),
        Said::Window(stream, increment) => put_window(out, *stream, *increment),
        Said::Priority(_) | Said::Unknown => {}
    }
}

fn entries(settings: &Settings) -> Vec<(u16, u32)> {
    [
        (setting::HEADER_TABLE_SIZE, settings.header_table_size),
        (setting::ENABLE_PUSH, settings.enable_push.map(u32::from)),
        (
            setting::MAX_CONCURRENT_STREAMS,
            settings.max_concurrent_streams,
        ),
        (setting::INITIAL_WINDOW_SIZE, settings.initial_window_size),
        (setting::MAX_FRAME_SIZE, settings.max_frame_size),
        (setting::MAX_HEADER_LIST_SIZE, settings.max_header_list_size),
    ]
    .into_iter()
    .filter_map(|(id, value)| Some((id, value?)))
    .collect()
}

/// Reads each block as the head it would be, or as trailers, until the connection would be broken.
fn heads(said: &[Said], mut read: impl FnMut(&[u8]) -> Result<(), HeadError>) {
    for said in said {
        if let Said::Headers { block, .. } = said
            && let Err(HeadError::Broken(_)) = read(block)
        {
            return;
        }
    }
}
