//! What a frame's header begins: the checks of its type, stream and length.

use super::{KEPT_BLOCK, MAX_SETTINGS, Parser, State, Step};
use crate::frame::head::{Head, calm, size};
use crate::frame::{Broken, DataSize, Frame, Settings, StreamId, flag, kind, protocol};
use crate::limits::{MAX_BLOCK, MAX_CONTINUATIONS};

// === impl Parser ===

impl Parser {
    /// A frame begins; where nothing more is read of it, it is yielded.
    pub(super) fn begin(&mut self, head: Head) -> Result<Step<'static>, Broken> {
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
            kind::HEADERS => self.begin_headers(head),
            kind::CONTINUATION => self.begin_continuation(head),
            kind::SETTINGS => self.begin_settings(head),
            kind::PUSH_PROMISE => Err(protocol("PUSH_PROMISE, which nobody may send us")),
            _ => self.begin_fixed(head),
        }
    }

    fn begin_fixed(&mut self, head: Head) -> Result<Step<'static>, Broken> {
        let Head { len, stream, .. } = head;
        self.state = match head.kind {
            kind::PRIORITY => {
                head.on_stream("PRIORITY is not on a stream")?;
                head.sized(5, "PRIORITY is not 5 bytes long")?;
                self.skip(len);
                return Ok(Step::Frame(Frame::Priority { stream }));
            }
            kind::RST_STREAM => {
                head.on_stream("RST_STREAM is not on a stream")?;
                head.sized(4, "RST_STREAM is not 4 bytes long")?;
                State::Reset(stream)
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
                State::Window(stream)
            }
            _ => {
                self.skip(len);
                return Ok(Step::Frame(Frame::Unknown));
            }
        };
        Ok(Step::Part)
    }

    fn begin_padded_data(&mut self, head: Head) -> Result<Step<'static>, Broken> {
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
        Ok(Step::Part)
    }

    pub(super) fn begin_data(
        &mut self,
        stream: StreamId,
        size: DataSize,
        end_stream: bool,
    ) -> Result<Step<'static>, Broken> {
        let Some(left) = size.flow.checked_sub(size.padding) else {
            return Err(protocol("DATA has as much padding as payload, or more"));
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
            return Ok(Step::Part);
        }
        self.skip(padding);
        Ok(Step::Frame(Frame::Data {
            stream,
            begins: Some(size),
            bytes: &[],
            ends: true,
            end_stream,
        }))
    }

    fn begin_headers(&mut self, head: Head) -> Result<Step<'static>, Broken> {
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
        self.state = State::Prelude {
            len,
            padded,
            priority,
            last,
        };
        Ok(Step::Part)
    }

    fn begin_continuation(&mut self, head: Head) -> Result<Step<'static>, Broken> {
        if self.block_of == StreamId::CONNECTION {
            return Err(protocol("CONTINUATION of nothing"));
        }
        if usize::from(self.continuations) == MAX_CONTINUATIONS {
            return Err(calm("a header block has too many CONTINUATIONs"));
        }
        self.continuations += 1;
        self.begin_fragment(head.len, 0, head.has(flag::END_HEADERS))
    }

    /// Counted before a byte of it is kept.
    pub(super) fn begin_fragment(
        &mut self,
        len: u32,
        padding: u32,
        last: bool,
    ) -> Result<Step<'static>, Broken> {
        let Some(left) = len.checked_sub(padding) else {
            return Err(protocol("HEADERS has more padding than payload"));
        };
        if self.block.len().saturating_add(left as usize) > MAX_BLOCK {
            return Err(calm("a header block is too long"));
        }
        self.state = State::Fragment {
            left,
            padding,
            last,
        };
        Ok(Step::Part)
    }

    fn begin_settings(&mut self, head: Head) -> Result<Step<'static>, Broken> {
        head.on_connection("SETTINGS is on a stream")?;
        if head.has(flag::ACK) {
            head.sized(0, "an acknowledgement of SETTINGS has a payload")?;
            return Ok(Step::Frame(Frame::SettingsAck));
        }
        if !head.len.is_multiple_of(6) {
            return Err(size("SETTINGS is not a multiple of 6 bytes long"));
        }
        if head.len / 6 > MAX_SETTINGS {
            return Err(calm("SETTINGS has too many entries"));
        }
        self.state = State::Settings(head.len / 6, Settings::default());
        Ok(Step::Part)
    }
}
