//! What we send, seen by a peer that knows the rules (RFC 9113 §5.1).

use std::collections::HashMap;

use super::bytes::{Said, said};
use crate::frame::{PREFACE, StreamId, data_head};
use crate::head::{self, Answer};
use crate::hpack::Decoder;
use crate::session::Role;

/// What we have said on a stream.
#[derive(Debug, Default)]
struct Stream {
    head: bool,
    over: bool,
}

/// Everything we have sent.
pub(super) struct Sent {
    role: Role,
    decoder: Decoder,
    streams: HashMap<StreamId, Stream>,
    greeted: bool,
    written: usize,
    last: Option<StreamId>,
}

// === impl Sent ===

impl Sent {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            decoder: Decoder::new(),
            streams: HashMap::new(),
            greeted: false,
            written: 0,
            last: None,
        }
    }

    /// How many bytes went out.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Frames bytes of an application.
    pub(super) fn data(&mut self, control: &mut Vec<u8>, id: StreamId, n: usize) {
        // What the session has said before goes out before.
        control.extend_from_slice(&data_head(id, n, false));
        control.resize(control.len() + n, b'x');
    }

    /// Takes what is to go out, and checks it.
    pub(super) fn take(&mut self, control: &mut Vec<u8>) {
        let bytes = std::mem::take(control);
        self.written += bytes.len();
        let mut frames = &bytes[..];
        if !self.greeted && self.role == Role::Client {
            frames = frames.strip_prefix(PREFACE).expect("the preface");
        }
        let said = said(frames);
        if !self.greeted {
            assert!(matches!(said.first(), Some(Said::Settings(_))), "{said:?}");
            self.greeted = true;
        }
        for frame in said {
            self.check(&frame);
        }
    }

    fn check(&mut self, said: &Said) {
        match said {
            Said::Headers {
                stream,
                end_stream,
                block,
            } => {
                let state = self.streams.entry(*stream).or_default();
                assert!(!state.head && !state.over, "a second head on {stream}");
                (state.head, state.over) = (true, *end_stream);
                match self.role {
                    Role::Client => {
                        drop(head::request(&mut self.decoder, block).expect("a good head"));
                    }
                    Role::Server => {
                        let answer =
                            head::response(&mut self.decoder, block).expect("a good answer");
                        let refused = matches!(answer, Answer::Refused(_));
                        assert_eq!(refused, *end_stream, "{answer:?}");
                    }
                }
            }
            Said::Data {
                stream, end_stream, ..
            } => {
                let state = self.streams.entry(*stream).or_default();
                assert!(
                    state.head && !state.over,
                    "DATA on {stream}, where none may be"
                );
                state.over = *end_stream == Some(true);
            }
            Said::Reset(stream, _) => {
                // One may follow an end, or another reset: frames go on coming.
                let state = self.streams.entry(*stream).or_default();
                assert!(*stream != StreamId::CONNECTION);
                state.over = true;
            }
            Said::GoAway(last, _) => {
                assert!(
                    self.last.is_none_or(|before| *last <= before),
                    "GOAWAY that rises"
                );
                self.last = Some(*last);
            }
            Said::Window(_, increment) => assert!(*increment > 0),
            Said::Settings(_) | Said::SettingsAck | Said::Ping(..) => {}
            Said::Priority(_) | Said::Unknown => panic!("we say no such thing"),
        }
    }
}
