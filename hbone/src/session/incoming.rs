//! What the peer's frames do to a session: every rule of RFC 9113 that needs its state.

use super::{Event, Going, Key, LAST_CALL, PING, Role, Session};
use crate::flood::Flooded;
use crate::flow::SendWindow;
use crate::frame::{self, Broken, Code, Frame, Settings, StreamId};
use crate::head::{self, Answer, HeadError};
use crate::{Error, Refusal};

impl<T: Default> Session<T> {
    #[expect(clippy::needless_pass_by_value, reason = "a frame happens once")]
    pub(super) fn on_frame<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a>>, Broken> {
        match frame {
            Frame::Data {
                stream,
                begins,
                bytes,
                ends,
                end_stream,
            } => {
                if let Some(size) = begins {
                    self.current = self.data_begins(stream, &size, end_stream)?;
                    if self.current.is_none() && self.next.is_some() {
                        return Ok(self.next.take());
                    }
                }
                let current = self.current;
                if ends {
                    self.current = None;
                }
                Ok(current.and_then(|key| self.data(key, bytes, end_stream)))
            }
            Frame::Headers { stream, end_stream } => self.on_headers(stream, end_stream),
            Frame::Reset { stream, code } => self.on_reset(stream, code),
            Frame::Settings(settings) => self.on_settings(&settings),
            Frame::SettingsAck => {
                self.calm()?;
                self.settings_acked = true;
                self.decoder.set_limit(0);
                Ok(None)
            }
            Frame::Ping { ack, payload } => self.on_ping(ack, payload),
            Frame::GoAway { last, .. } => {
                self.calm()?;
                let last = self.peer_last.map_or(last, |before| before.min(last));
                self.peer_last = Some(last);
                Ok(Some(Event::GoAway))
            }
            Frame::Window { stream, increment } => self.on_window(stream, increment),
            Frame::Priority { .. } | Frame::Unknown => {
                self.calm()?;
                Ok(None)
            }
        }
    }

    // --- DATA

    /// Checks a DATA frame when its size is known; the stream its bytes belong to, if any wants them.
    fn data_begins(
        &mut self,
        id: StreamId,
        size: &frame::DataSize,
        end_stream: bool,
    ) -> Result<Option<Key>, Broken> {
        let overrun = |_| Broken::new(Code::FLOW_CONTROL_ERROR, "more DATA than was granted");
        if let Some(give) = self.receive.receive(size.flow).map_err(overrun)? {
            frame::put_window(&mut self.control, StreamId::CONNECTION, give);
        }
        match size.flow > size.padding {
            true => self.floods.moved(),
            // An end is worth a frame once.
            false if !end_stream || self.streams.find(id).is_none() => self.calm()?,
            false => {}
        }
        let Some(key) = self.streams.find(id) else {
            self.not_open(id, "DATA")?;
            if !self.streams.was_reset_lately(id) {
                self.calm()?;
                self.streams.forget(id);
                frame::put_reset(&mut self.control, id, Code::STREAM_CLOSED);
            }
            return Ok(None);
        };
        if self.streams[key].received_end
            || (self.role == Role::Client && !self.streams[key].answered)
        {
            let code = match self.streams[key].received_end {
                true => Code::STREAM_CLOSED,
                false => Code::PROTOCOL_ERROR,
            };
            self.next = self.break_stream(key, code, "DATA where none may come");
            return Ok(None);
        }
        let stream = &mut self.streams[key];
        stream.receive.receive(size.flow).map_err(overrun)?;
        if size.padding > 0 {
            self.taken(key, size.padding as usize);
        }
        Ok(Some(key))
    }

    fn data<'a>(&mut self, key: Key, bytes: &'a [u8], end: bool) -> Option<Event<'a>> {
        // It may have been reset between two pieces.
        self.streams.get(key).filter(|s| !s.closed)?;
        match (bytes.is_empty(), end) {
            (true, false) => None,
            (true, true) => {
                self.received_end(key);
                Some(Event::End { key })
            }
            (false, false) => Some(Event::Data { key, bytes }),
            (false, true) => {
                self.next = Some(Event::End { key });
                Some(Event::Data { key, bytes })
            }
        }
    }

    pub(super) fn received_end(&mut self, key: Key) {
        self.streams[key].received_end = true;
        self.close_if_ended(key);
    }

    // --- HEADERS

    fn on_headers<'a>(
        &mut self,
        id: StreamId,
        end_stream: bool,
    ) -> Result<Option<Event<'a>>, Broken> {
        if let Some(key) = self.streams.find(id) {
            return self.on_more_headers(key, end_stream);
        }
        if self.role == Role::Server && id.is_client() && id > self.last_peer {
            return self.on_request(id, end_stream);
        }
        if self.role == Role::Server && !id.is_client() {
            return Err(Broken::new(
                Code::PROTOCOL_ERROR,
                "a client opened an even stream",
            ));
        }
        self.not_open(id, "HEADERS")?;
        if !self.streams.was_reset_lately(id) {
            return Err(Broken::new(
                Code::STREAM_CLOSED,
                "HEADERS on a closed stream",
            ));
        }
        self.calm()?;
        match head::trailers(&mut self.decoder, self.parser.block()) {
            Err(HeadError::Broken(broken)) => Err(broken),
            _ => Ok(None),
        }
    }

    fn on_request<'a>(
        &mut self,
        id: StreamId,
        end_stream: bool,
    ) -> Result<Option<Event<'a>>, Broken> {
        self.last_peer = id;
        let head = head::request(&mut self.decoder, self.parser.block());
        let request = match head {
            Ok(request) => Ok(Box::new(request)),
            Err(HeadError::Broken(broken)) => return Err(broken),
            Err(HeadError::Malformed(what)) => {
                tracing::debug!(stream = id.get(), what, "malformed request");
                self.refuse_unseen(id, Code::PROTOCOL_ERROR)?;
                return Ok(None);
            }
            Err(HeadError::TooLarge) => Err(Refusal::new(
                http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header_list_too_large",
                "the header list is too large",
            )),
            Err(HeadError::Refused(invalid)) => Err(Refusal::from(&invalid)),
        };
        if request.is_err() {
            // An answer that costs the peer nothing to provoke again.
            self.floods.reset().map_err(calm_down)?;
        }
        // A stream counts until its owner has let go of it, dials in flight included.
        if self.going == Going::Fixed || self.streams.len() >= self.max_streams {
            self.refuse_unseen(id, Code::REFUSED_STREAM)?;
            return Ok(None);
        }
        let key = self
            .streams
            .insert(id, SendWindow::new(self.peer.initial_window));
        if end_stream {
            self.received_end(key);
            self.next = Some(Event::End { key });
        }
        Ok(Some(Event::Asked { key, request }))
    }

    fn on_more_headers<'a>(
        &mut self,
        key: Key,
        end_stream: bool,
    ) -> Result<Option<Event<'a>>, Broken> {
        if self.streams[key].received_end {
            let decoded = head::trailers(&mut self.decoder, self.parser.block());
            if let Err(HeadError::Broken(broken)) = decoded {
                return Err(broken);
            }
            return Ok(self.break_stream(key, Code::STREAM_CLOSED, "HEADERS after the end"));
        }
        if self.role == Role::Client && !self.streams[key].answered {
            return self.on_answer(key, end_stream);
        }
        match head::trailers(&mut self.decoder, self.parser.block()) {
            Err(HeadError::Broken(broken)) => Err(broken),
            Ok(()) if end_stream => {
                self.received_end(key);
                Ok(Some(Event::End { key }))
            }
            _ => Ok(self.break_stream(key, Code::PROTOCOL_ERROR, "malformed trailers")),
        }
    }

    fn on_answer<'a>(&mut self, key: Key, end_stream: bool) -> Result<Option<Event<'a>>, Broken> {
        let answer = match head::response(&mut self.decoder, self.parser.block()) {
            Ok(Answer::Interim) if !end_stream => {
                self.calm()?;
                return Ok(None);
            }
            Ok(Answer::Opened(response)) => Ok(response),
            Ok(Answer::Refused(refusal)) => Err(Error::Refused(refusal)),
            Err(HeadError::Broken(broken)) => return Err(broken),
            Ok(Answer::Interim) | Err(HeadError::Malformed(_)) => {
                return Ok(self.break_stream(key, Code::PROTOCOL_ERROR, "malformed answer"));
            }
            Err(HeadError::TooLarge | HeadError::Refused(_)) => {
                return Ok(self.break_stream(
                    key,
                    Code::PROTOCOL_ERROR,
                    "an answer that is not understood",
                ));
            }
        };
        self.streams[key].answered = true;
        if end_stream {
            self.received_end(key);
        }
        match &answer {
            Ok(_) if end_stream => self.next = Some(Event::End { key }),
            Ok(_) => {}
            // Nothing will be sent on it: it ends in order where that is possible.
            Err(_) if end_stream => self.end(key),
            Err(_) => self.reset(key, Code::CANCEL),
        }
        Ok(Some(Event::Answered { key, answer }))
    }

    // --- the rest

    fn on_reset<'a>(&mut self, id: StreamId, code: Code) -> Result<Option<Event<'a>>, Broken> {
        let Some(key) = self.streams.find(id) else {
            self.not_open(id, "RST_STREAM")?;
            self.calm()?;
            return Ok(None);
        };
        if self.role == Role::Server && !self.streams[key].answered {
            self.floods.reset().map_err(calm_down)?;
        }
        self.streams.close(key);
        let unseen = code == Code::REFUSED_STREAM;
        let error = Error::reset(&code.to_string(), !unseen);
        Ok(Some(Event::Lost { key, error }))
    }

    fn on_settings<'a>(&mut self, settings: &Settings) -> Result<Option<Event<'a>>, Broken> {
        self.calm()?;
        if self.role == Role::Client && settings.enable_push == Some(true) {
            return Err(Broken::new(Code::PROTOCOL_ERROR, "a server enabled push"));
        }
        let shift = self.peer.apply(settings);
        for stream in self.streams.open_mut() {
            stream
                .send
                .shift(shift)
                .map_err(|_| Broken::new(Code::FLOW_CONTROL_ERROR, "SETTINGS overflow a window"))?;
        }
        frame::put_settings_ack(&mut self.control);
        Ok((shift > 0).then_some(Event::Room(None)))
    }

    fn on_ping<'a>(&mut self, ack: bool, payload: [u8; 8]) -> Result<Option<Event<'a>>, Broken> {
        self.calm()?;
        if !ack {
            frame::put_ping(&mut self.control, true, payload);
            return Ok(None);
        }
        if payload == LAST_CALL && self.going == Going::Announced {
            self.fix_last(Code::NO_ERROR, "");
        }
        Ok((payload == PING).then_some(Event::Pong))
    }

    fn on_window<'a>(&mut self, id: StreamId, increment: u32) -> Result<Option<Event<'a>>, Broken> {
        self.calm()?;
        let by = i64::from(increment);
        if id == StreamId::CONNECTION {
            self.send.shift(by).map_err(|_| {
                Broken::new(Code::FLOW_CONTROL_ERROR, "the connection window overflows")
            })?;
            return Ok(Some(Event::Room(None)));
        }
        let Some(key) = self.streams.find(id) else {
            self.not_open(id, "WINDOW_UPDATE")?;
            return Ok(None);
        };
        if increment == 0 {
            return Ok(self.break_stream(key, Code::PROTOCOL_ERROR, "WINDOW_UPDATE of 0"));
        }
        match self.streams[key].send.shift(by) {
            Ok(()) => Ok(Some(Event::Room(Some(key)))),
            Err(_) => Ok(self.break_stream(key, Code::FLOW_CONTROL_ERROR, "the window overflows")),
        }
    }

    /// A frame on a stream that is not open: fine where it has been, else the peer is confused.
    fn not_open(&self, id: StreamId, _what: &'static str) -> Result<(), Broken> {
        let was_open = match self.role {
            Role::Server => id.is_client() && id <= self.last_peer,
            Role::Client => id.is_client() && id.get() < self.next_ours,
        };
        was_open.then_some(()).ok_or(Broken::new(
            Code::PROTOCOL_ERROR,
            "a frame on an idle stream",
        ))
    }

    /// Refuses a stream that never got a place.
    fn refuse_unseen(&mut self, id: StreamId, code: Code) -> Result<(), Broken> {
        self.floods.reset().map_err(calm_down)?;
        self.streams.forget(id);
        frame::put_reset(&mut self.control, id, code);
        Ok(())
    }

    fn calm(&mut self) -> Result<(), Broken> {
        self.floods.control().map_err(calm_down)
    }

    /// Ends a stream on which the peer broke the rules.
    fn break_stream<'a>(&mut self, key: Key, code: Code, what: &'static str) -> Option<Event<'a>> {
        self.reset(key, code);
        let error = Error::protocol(what);
        let event = Event::Lost { key, error };
        Some(event)
    }
}

fn calm_down(Flooded(what): Flooded) -> Broken {
    Broken::new(Code::ENHANCE_YOUR_CALM, what)
}
