//! Reads frames from bytes that arrive in any pieces, and checks all that needs no stream's state.

use super::head::Head;
use super::{Broken, Code, DataSize, Frame, HEAD, MAX_WINDOW, Settings, StreamId, protocol};

mod begin;

/// The most entries of one SETTINGS frame: ten are defined, and some peers grease.
const MAX_SETTINGS: u32 = 64;

/// A block's memory up to this is kept for the next one: what a CONNECT takes.
const KEPT_BLOCK: usize = 1 << 10;

/// One connection's reader of frames.
#[derive(Debug)]
pub(crate) struct Parser {
    max_frame: u32,
    state: State,
    /// The beginning of a fixed-size part that has not arrived whole.
    held: [u8; HEAD],
    held_len: u8,
    /// CONTINUATIONs of the block so far.
    continuations: u8,
    /// Whether the block ends its stream.
    block_ends: bool,
    /// The stream whose block is being read; the connection while none is.
    block_of: StreamId,
    block: Vec<u8>,
}

/// Which part comes next.
#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    /// The pad length of a DATA frame.
    DataPad {
        stream: StreamId,
        flow: u32,
        end_stream: bool,
    },
    Data {
        stream: StreamId,
        begins: Option<DataSize>,
        left: u32,
        padding: u32,
        end_stream: bool,
    },
    /// What may stand before a header block: pad length and priority, which `len` counts in.
    Prelude {
        len: u32,
        padded: bool,
        priority: bool,
        last: bool,
    },
    /// A piece of a header block.
    Fragment {
        left: u32,
        padding: u32,
        last: bool,
    },
    Reset(StreamId),
    /// Entries to come, and what was said so far.
    Settings(u32, Settings),
    Ping {
        ack: bool,
    },
    GoAway {
        len: u32,
    },
    Window(StreamId),
    /// Payload that nobody reads.
    Skip(u32),
}

/// How far a part of a frame has come.
enum Step<'a> {
    /// More bytes are needed.
    More,
    /// It is done, and the frame goes on.
    Part,
    /// It is done, and the frame says something.
    Frame(Frame<'a>),
}

// === impl Parser ===

impl Parser {
    /// A parser that takes frames of up to `max_frame` bytes, which is what we announce.
    pub(crate) fn new(max_frame: u32) -> Self {
        Self {
            max_frame,
            state: State::Head,
            held: [0; HEAD],
            held_len: 0,
            continuations: 0,
            block_ends: false,
            block_of: StreamId::CONNECTION,
            block: Vec::new(),
        }
    }

    /// Eats from the front of `input`; `None` when it needs more. After an error the connection is over.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, Broken> {
        loop {
            match self.step(input)? {
                Step::More => return Ok(None),
                Step::Part => {}
                Step::Frame(frame) => return Ok(Some(frame)),
            }
        }
    }

    /// The block of the last [`Frame::Headers`], until the next frame is asked for.
    pub(crate) fn block(&self) -> &[u8] {
        &self.block
    }

    /// Whether bytes of a frame have come that is not whole, or of a block that is not.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.held_len > 0
            || self.block_of != StreamId::CONNECTION
            || !matches!(self.state, State::Head)
    }

    #[cfg(test)]
    pub(super) fn block_capacity(&self) -> usize {
        self.block.capacity()
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Broken> {
        match self.state {
            State::Head => match self.gather(input) {
                Some(head) => self.begin(Head::read(head)),
                None => Ok(Step::More),
            },
            State::DataPad {
                stream,
                flow,
                end_stream,
            } => {
                let Some([pad]) = self.gather(input) else {
                    return Ok(Step::More);
                };
                let padding = 1 + u32::from(pad);
                self.begin_data(stream, DataSize { flow, padding }, end_stream)
            }
            State::Data { .. } => Ok(self.data(input)),
            State::Prelude { .. } => self.prelude(input),
            State::Fragment {
                left,
                padding,
                last,
            } => Ok(self.fragment(input, left, padding, last)),
            State::Settings(left, settings) => self.settings(input, left, settings),
            State::Skip(left) => {
                let (skipped, rest) = input.split_at(least(left, input.len()));
                *input = rest;
                self.skip(left - skipped.len() as u32);
                Ok(match self.state {
                    State::Head => Step::Part,
                    _ => Step::More,
                })
            }
            State::Reset(_) | State::Ping { .. } | State::GoAway { .. } | State::Window(_) => {
                self.fixed(input)
            }
        }
    }

    /// The next `N` bytes, held back until all are there.
    fn gather<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        if self.held_len == 0
            && let Some((whole, rest)) = input.split_first_chunk::<N>()
        {
            *input = rest;
            return Some(*whole);
        }
        let have = usize::from(self.held_len);
        let space = self.held.get_mut(have..N)?;
        let (now, rest) = input.split_at(space.len().min(input.len()));
        space[..now.len()].copy_from_slice(now);
        *input = rest;
        if have + now.len() < N {
            self.held_len += now.len() as u8;
            return None;
        }
        self.held_len = 0;
        self.held.first_chunk().copied()
    }

    /// Goes over `left` bytes of payload, then to the next frame.
    fn skip(&mut self, left: u32) {
        self.state = match left {
            0 => State::Head,
            left => State::Skip(left),
        };
    }

    /// What has come of a DATA frame that has bytes left.
    fn data<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        let State::Data {
            stream,
            begins,
            left,
            padding,
            end_stream,
        } = self.state
        else {
            return Step::Part;
        };
        if input.is_empty() {
            return Step::More;
        }
        let (bytes, rest) = input.split_at(least(left, input.len()));
        *input = rest;
        let left = left - bytes.len() as u32;
        if left == 0 {
            self.skip(padding);
        } else {
            self.state = State::Data {
                stream,
                begins: None,
                left,
                padding,
                end_stream,
            };
        }
        Step::Frame(Frame::Data {
            stream,
            begins,
            bytes,
            ends: left == 0,
            end_stream: end_stream && left == 0,
        })
    }

    fn prelude(&mut self, input: &mut &[u8]) -> Result<Step<'static>, Broken> {
        let State::Prelude {
            len,
            padded,
            priority,
            last,
        } = self.state
        else {
            return Ok(Step::Part);
        };
        let pad = match (padded, priority) {
            (true, false) => self.gather(input).map(|[pad]| pad),
            (true, true) => self.gather(input).map(|[pad, _, _, _, _, _]| pad),
            (false, _) => self.gather::<5>(input).map(|_| 0),
        };
        let Some(pad) = pad else {
            return Ok(Step::More);
        };
        let left = len.saturating_sub(u32::from(padded) + 5 * u32::from(priority));
        self.begin_fragment(left, u32::from(pad), last)
    }

    fn fragment(
        &mut self,
        input: &mut &[u8],
        left: u32,
        padding: u32,
        last: bool,
    ) -> Step<'static> {
        let (now, rest) = input.split_at(least(left, input.len()));
        self.block.extend_from_slice(now);
        *input = rest;
        let left = left - now.len() as u32;
        if left > 0 {
            self.state = State::Fragment {
                left,
                padding,
                last,
            };
            return Step::More;
        }
        self.skip(padding);
        if !last {
            return Step::Part;
        }
        let stream = std::mem::replace(&mut self.block_of, StreamId::CONNECTION);
        let end_stream = self.block_ends;
        Step::Frame(Frame::Headers { stream, end_stream })
    }

    fn settings(
        &mut self,
        input: &mut &[u8],
        left: u32,
        mut settings: Settings,
    ) -> Result<Step<'static>, Broken> {
        let Some(left) = left.checked_sub(1) else {
            self.state = State::Head;
            return Ok(Step::Frame(Frame::Settings(settings)));
        };
        let Some([a, b, c, d, e, f]) = self.gather(input) else {
            return Ok(Step::More);
        };
        settings.take(u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]))?;
        self.state = State::Settings(left, settings);
        Ok(Step::Part)
    }

    /// The frames whose payload has one length, or a beginning that has.
    fn fixed(&mut self, input: &mut &[u8]) -> Result<Step<'static>, Broken> {
        let mut left = 0;
        let frame = match self.state {
            State::Reset(stream) => self.gather(input).map(|code| {
                let code = Code(u32::from_be_bytes(code));
                Frame::Reset { stream, code }
            }),
            State::Ping { ack } => self
                .gather(input)
                .map(|payload| Frame::Ping { ack, payload }),
            State::GoAway { len } => self.gather(input).map(|[a, b, c, d, e, f, g, h]| {
                left = len.saturating_sub(8);
                let last = StreamId::new(u32::from_be_bytes([a, b, c, d]));
                let code = Code(u32::from_be_bytes([e, f, g, h]));
                Frame::GoAway { last, code }
            }),
            State::Window(stream) => self.gather(input).map(|increment| {
                let increment = u32::from_be_bytes(increment) & MAX_WINDOW;
                Frame::Window { stream, increment }
            }),
            _ => return Ok(Step::Part),
        };
        let Some(frame) = frame else {
            return Ok(Step::More);
        };
        if let Frame::Window {
            stream: StreamId::CONNECTION,
            increment: 0,
        } = frame
        {
            return Err(protocol("WINDOW_UPDATE of 0 for the connection"));
        }
        self.skip(left);
        Ok(Step::Frame(frame))
    }
}

/// The smaller of a length within a frame and of what is there.
fn least(left: u32, there: usize) -> usize {
    there.min(left as usize)
}
