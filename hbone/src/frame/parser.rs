//! Reads frames from bytes that arrive in any pieces, and checks all that needs no stream's state.

use super::head::{Head, calm, size};
use super::{
    Broken, Code, DataSize, Frame, HEAD, MAX_WINDOW, Settings, StreamId, flag, kind, protocol,
};

/// The longest header block: ours take about 500 bytes, and a list of
/// [`MAX_HEADER_LIST`](crate::limits::MAX_HEADER_LIST) bytes is seldom longer than this when encoded.
pub(crate) const MAX_BLOCK: usize = 16 << 10;

/// The most CONTINUATION frames of one block: each may be empty, and no other frame may come between.
pub(crate) const MAX_CONTINUATIONS: u8 = 8;

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
    /// What may stand before a header block: pad length and priority.
    HeadersPrelude {
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
    Reset {
        stream: StreamId,
    },
    Settings {
        left: u32,
        settings: Settings,
    },
    Ping {
        ack: bool,
    },
    GoAway {
        len: u32,
    },
    Window {
        stream: StreamId,
    },
    /// Payload that nobody reads.
    Skip {
        left: u32,
    },
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
            let frame = match self.state {
                State::Head => {
                    let Some(head) = self.gather::<HEAD>(input) else {
                        return Ok(None);
                    };
                    self.begin(Head::read(head))?
                }
                State::DataPad {
                    stream,
                    flow,
                    end_stream,
                } => {
                    let Some([pad]) = self.gather(input) else {
                        return Ok(None);
                    };
                    let padding = 1 + u32::from(pad);
                    self.begin_data(stream, DataSize { flow, padding }, end_stream)?
                }
                State::Data { .. } => match self.data(input) {
                    None => return Ok(None),
                    frame => frame,
                },
                State::HeadersPrelude { .. } | State::Fragment { .. } => {
                    match self.headers(input)? {
                        Step::More => return Ok(None),
                        Step::Frame(frame) => frame,
                    }
                }
                State::Skip { left } => {
                    let now = least(left, input.len());
                    *input = input.get(now..).unwrap_or_default();
                    self.skip(left - now as u32);
                    if !matches!(self.state, State::Head) {
                        return Ok(None);
                    }
                    None
                }
                State::Settings { .. } => match self.settings(input)? {
                    Step::More => return Ok(None),
                    Step::Frame(frame) => frame,
                },
                _ => match self.fixed(input)? {
                    Step::More => return Ok(None),
                    Step::Frame(frame) => frame,
                },
            };
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// The block of the last [`Frame::Headers`], until the next frame is asked for.
    pub(crate) fn block(&self) -> &[u8] {
        &self.block
    }

    /// Whether bytes of a frame have come that is not whole, or of a block that is not.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.held_len > 0
            || self.block_of != StreamId::CONNECTION
            || !matches!(self.state, State::Head)
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
        let now = space.len().min(input.len());
        let (taken, rest) = input.split_at(now);
        space[..now].copy_from_slice(taken);
        *input = rest;
        if have + now < N {
            self.held_len += now as u8;
            return None;
        }
        self.held_len = 0;
        self.held.first_chunk().copied()
    }

    /// Goes over `left` bytes of payload, then to the next frame.
    fn skip(&mut self, left: u32) {
        self.state = match left {
            0 => State::Head,
            left => State::Skip { left },
        };
    }

    /// A frame begins: checks its header and yields it where nothing more is read of it.
    fn begin(&mut self, head: Head) -> Result<Option<Frame<'static>>, Broken> {
        if head.len > self.max_frame {
            return Err(size("a frame is longer than we take"));
        }
        let goes_on = head.kind == kind::CONTINUATION && head.stream == self.block_of;
        if self.block_of != StreamId::CONNECTION && !goes_on {
            return Err(protocol("a header block is interrupted"));
        }
        if self.block.capacity() > KEPT_BLOCK && !goes_on {
            self.block = Vec::new();
        }
        match head.kind {
            kind::DATA => self.begin_padded_data(head),
            kind::HEADERS => self.begin_headers(head).map(|()| None),
            kind::CONTINUATION => self.begin_continuation(head).map(|()| None),
            kind::SETTINGS => self.begin_settings(head),
            kind::PUSH_PROMISE => Err(protocol("PUSH_PROMISE, which nobody may send us")),
            _ => self.begin_fixed(head),
        }
    }

    fn begin_fixed(&mut self, head: Head) -> Result<Option<Frame<'static>>, Broken> {
        let Head { len, stream, .. } = head;
        self.state = match head.kind {
            kind::PRIORITY => {
                head.on_stream("PRIORITY is not on a stream")?;
                head.sized(5, "PRIORITY is not 5 bytes long")?;
                self.skip(len);
                return Ok(Some(Frame::Priority { stream }));
            }
            kind::RST_STREAM => {
                head.on_stream("RST_STREAM is not on a stream")?;
                head.sized(4, "RST_STREAM is not 4 bytes long")?;
                State::Reset { stream }
            }
            kind::PING => {
                head.on_connection("PING is on a stream")?;
                head.sized(8, "PING is not 8 bytes long")?;
                let ack = head.has(flag::ACK);
                State::Ping { ack }
            }
            kind::GOAWAY => {
                head.on_connection("GOAWAY is on a stream")?;
                if len < 8 {
                    return Err(size("GOAWAY is shorter than 8 bytes"));
                }
                State::GoAway { len }
            }
            kind::WINDOW_UPDATE => {
                head.sized(4, "WINDOW_UPDATE is not 4 bytes long")?;
                State::Window { stream }
            }
            _ => {
                self.skip(len);
                return Ok(Some(Frame::Unknown));
            }
        };
        Ok(None)
    }

    fn begin_padded_data(&mut self, head: Head) -> Result<Option<Frame<'static>>, Broken> {
        head.on_stream("DATA is not on a stream")?;
        let (stream, flow) = (head.stream, head.len);
        let end_stream = head.has(flag::END_STREAM);
        if !head.has(flag::PADDED) {
            return self.begin_data(stream, DataSize { flow, padding: 0 }, end_stream);
        }
        if flow == 0 {
            return Err(size("DATA has no room for its pad length"));
        }
        self.state = State::DataPad {
            stream,
            flow,
            end_stream,
        };
        Ok(None)
    }

    fn begin_data(
        &mut self,
        stream: StreamId,
        size: DataSize,
        end_stream: bool,
    ) -> Result<Option<Frame<'static>>, Broken> {
        let Some(left) = size.flow.checked_sub(size.padding) else {
            return Err(protocol("DATA is all padding, and more"));
        };
        // The byte that says how much has been read.
        let padding = size.padding.saturating_sub(1);
        if left > 0 {
            self.state = State::Data {
                stream,
                begins: Some(size),
                left,
                padding,
                end_stream,
            };
            return Ok(None);
        }
        self.skip(padding);
        Ok(Some(Frame::Data {
            stream,
            begins: Some(size),
            bytes: &[],
            ends: true,
            end_stream,
        }))
    }

    /// What has come of a DATA frame that has bytes left.
    fn data<'a>(&mut self, input: &mut &'a [u8]) -> Option<Frame<'a>> {
        let State::Data {
            stream,
            begins,
            left,
            padding,
            end_stream,
        } = self.state
        else {
            return None;
        };
        if input.is_empty() {
            return None;
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
        Some(Frame::Data {
            stream,
            begins,
            bytes,
            ends: left == 0,
            end_stream: end_stream && left == 0,
        })
    }

    fn begin_headers(&mut self, head: Head) -> Result<(), Broken> {
        head.on_stream("HEADERS is not on a stream")?;
        let (padded, priority) = (head.has(flag::PADDED), head.has(flag::PRIORITY));
        if head.len < u32::from(padded) + 5 * u32::from(priority) {
            return Err(size("HEADERS has no room for its padding or priority"));
        }
        self.block.clear();
        self.block_of = head.stream;
        self.block_ends = head.has(flag::END_STREAM);
        self.continuations = 0;
        let (len, last) = (head.len, head.has(flag::END_HEADERS));
        if !padded && !priority {
            return self.begin_fragment(len, 0, last);
        }
        self.state = State::HeadersPrelude {
            len,
            padded,
            priority,
            last,
        };
        Ok(())
    }

    fn begin_continuation(&mut self, head: Head) -> Result<(), Broken> {
        if self.block_of == StreamId::CONNECTION {
            return Err(protocol("CONTINUATION of nothing"));
        }
        self.continuations += 1;
        if self.continuations > MAX_CONTINUATIONS {
            return Err(calm("a header block has too many CONTINUATIONs"));
        }
        self.begin_fragment(head.len, 0, head.has(flag::END_HEADERS))
    }

    /// Counted before a byte of it is kept.
    fn begin_fragment(&mut self, len: u32, padding: u32, last: bool) -> Result<(), Broken> {
        let Some(left) = len.checked_sub(padding) else {
            return Err(protocol("HEADERS is all padding, and more"));
        };
        if self.block.len().saturating_add(left as usize) > MAX_BLOCK {
            return Err(calm("a header block is too long"));
        }
        self.state = State::Fragment {
            left,
            padding,
            last,
        };
        Ok(())
    }

    fn headers(&mut self, input: &mut &[u8]) -> Result<Step, Broken> {
        match self.state {
            State::HeadersPrelude {
                len,
                padded,
                priority,
                last,
            } => {
                let pad = match (padded, priority) {
                    (true, false) => self.gather::<1>(input).map(|[pad]| pad),
                    (true, true) => self.gather::<6>(input).map(|[pad, ..]| pad),
                    (false, _) => self.gather::<5>(input).map(|_| 0),
                };
                let Some(pad) = pad else {
                    return Ok(Step::More);
                };
                let left = len.saturating_sub(u32::from(padded) + 5 * u32::from(priority));
                self.begin_fragment(left, u32::from(pad), last)?;
                Ok(Step::Frame(None))
            }
            State::Fragment {
                left,
                padding,
                last,
            } => {
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
                    return Ok(Step::More);
                }
                self.skip(padding);
                if !last {
                    return Ok(Step::Frame(None));
                }
                let stream = std::mem::replace(&mut self.block_of, StreamId::CONNECTION);
                let end_stream = self.block_ends;
                Ok(Step::Frame(Some(Frame::Headers { stream, end_stream })))
            }
            _ => Ok(Step::Frame(None)),
        }
    }

    fn begin_settings(&mut self, head: Head) -> Result<Option<Frame<'static>>, Broken> {
        head.on_connection("SETTINGS is on a stream")?;
        if head.has(flag::ACK) {
            head.sized(0, "an acknowledgement of SETTINGS has a payload")?;
            return Ok(Some(Frame::SettingsAck));
        }
        if !head.len.is_multiple_of(6) {
            return Err(size("SETTINGS is not a multiple of 6 bytes long"));
        }
        if head.len / 6 > MAX_SETTINGS {
            return Err(calm("SETTINGS has too many entries"));
        }
        self.state = State::Settings {
            left: head.len / 6,
            settings: Settings::default(),
        };
        Ok(None)
    }

    fn settings(&mut self, input: &mut &[u8]) -> Result<Step, Broken> {
        let State::Settings { left, mut settings } = self.state else {
            return Ok(Step::Frame(None));
        };
        if left == 0 {
            self.state = State::Head;
            return Ok(Step::Frame(Some(Frame::Settings(settings))));
        }
        let Some([i, d, a, b, c, e]) = self.gather(input) else {
            return Ok(Step::More);
        };
        settings.take(u16::from_be_bytes([i, d]), u32::from_be_bytes([a, b, c, e]))?;
        let left = left - 1;
        self.state = State::Settings { left, settings };
        Ok(Step::Frame(None))
    }

    /// The frames whose payload has one length.
    fn fixed(&mut self, input: &mut &[u8]) -> Result<Step, Broken> {
        let (frame, left) = match self.state {
            State::Reset { stream } => {
                let Some(code) = self.gather(input) else {
                    return Ok(Step::More);
                };
                let code = Code(u32::from_be_bytes(code));
                (Frame::Reset { stream, code }, 0)
            }
            State::Ping { ack } => {
                let Some(payload) = self.gather(input) else {
                    return Ok(Step::More);
                };
                (Frame::Ping { ack, payload }, 0)
            }
            State::GoAway { len } => {
                let Some([a, b, c, d, e, f, g, h]) = self.gather(input) else {
                    return Ok(Step::More);
                };
                let last = StreamId::new(u32::from_be_bytes([a, b, c, d]));
                let code = Code(u32::from_be_bytes([e, f, g, h]));
                (Frame::GoAway { last, code }, len.saturating_sub(8))
            }
            State::Window { stream } => {
                let Some(increment) = self.gather(input) else {
                    return Ok(Step::More);
                };
                let increment = u32::from_be_bytes(increment) & MAX_WINDOW;
                if increment == 0 && stream == StreamId::CONNECTION {
                    return Err(protocol("WINDOW_UPDATE of 0 for the connection"));
                }
                (Frame::Window { stream, increment }, 0)
            }
            _ => return Ok(Step::Frame(None)),
        };
        self.skip(left);
        Ok(Step::Frame(Some(frame)))
    }
}

/// How far a part of a frame has come.
enum Step {
    /// More bytes are needed.
    More,
    /// The part is done, and perhaps the frame.
    Frame(Option<Frame<'static>>),
}

/// The smaller of a length within a frame and of what is there.
fn least(left: u32, there: usize) -> usize {
    there.min(left as usize)
}
