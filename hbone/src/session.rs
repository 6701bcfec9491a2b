//! The protocol state of one connection, without I/O: streams, windows, limits, GOAWAY (RFC 9113).
//!
//! Plaintext goes in and [`Event`]s come out; frames to be sent collect in [`Session::control`], DATA is
//! framed by the engine within [`Session::room`]. Nothing here waits.

use std::time::Instant;

use crate::flood::Floods;
use crate::flow::{ReceiptWindow, SendWindow};
use crate::frame::{self, Broken, Code, Frame, Parser, StreamId, setting};
use crate::hpack::Decoder;
use crate::limits::{CONNECTION_WINDOW, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST};
use crate::{Error, Refusal, Request, Response};
pub(crate) use streams::{Key, Streams};

mod incoming;
mod peer;
mod streams;

#[cfg(test)]
mod tests;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// One connection. `T` is what the engine keeps beside each stream.
pub(crate) struct Session<T> {
    role: Role,
    /// Frames that go out before any DATA.
    pub(crate) control: Vec<u8>,
    pub(crate) streams: Streams<T>,
    /// Whether receive windows may grow: there is memory.
    pub(crate) may_grow: bool,
    parser: Parser,
    decoder: Decoder,
    greeting: Greeting,
    settings_acked: bool,
    send: SendWindow,
    receive: ReceiptWindow,
    peer: peer::Limits,
    floods: Floods,
    /// Streams the peer may have open.
    max_streams: usize,
    /// The last stream that the peer opened.
    last_peer: StreamId,
    /// The last stream that our GOAWAYs let the peer hope for.
    told_last: StreamId,
    /// The next stream that we open.
    next_ours: u32,
    going: Going,
    /// The last stream that the peer will look at, once it has said so.
    peer_last: Option<StreamId>,
    /// The stream whose DATA frame is coming in.
    current: Option<Key>,
    /// An event that follows the one before it from the same frame.
    next: Option<Event<'static>>,
}

/// What the peer has still to say first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    /// The client's preface, so far.
    Preface(usize),
    Settings,
    Over,
}

/// How far our own GOAWAY has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    No,
    /// Announced; streams on their way are still taken, until this ping comes back.
    Announced,
    /// The last stream is fixed.
    Fixed,
}

/// What the peer did.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A stream was opened and wants an answer; some are to be refused.
    Asked {
        key: Key,
        request: Result<Box<Request>, Refusal>,
    },
    /// Our stream was answered.
    Answered {
        key: Key,
        answer: Result<Response, Error>,
    },
    /// Bytes for the application.
    Data { key: Key, bytes: &'a [u8] },
    /// The peer's direction ended in order.
    End { key: Key },
    /// The stream is gone, and is no longer known to the peer.
    Lost { key: Key, error: Error },
    /// There is more room to send on one stream, or on all of them.
    Room(Option<Key>),
    /// The peer takes no more streams; see [`Session::take_unseen`].
    GoAway,
    /// Our ping came back.
    Pong,
}

/// What our pings carry, to tell them from others.
const PING: [u8; 8] = *b"ambit-ka";
/// And the one behind GOAWAY.
const LAST_CALL: [u8; 8] = *b"ambit-go";

// === impl Session ===

impl<T: Default> Session<T> {
    /// A connection on which nothing has been said; our own greeting waits in `control`.
    pub(crate) fn new(role: Role, max_streams: u32, assumed: usize) -> Self {
        let mut control = Vec::new();
        if role == Role::Client {
            control.extend_from_slice(frame::PREFACE);
        }
        let mut settings = vec![
            (setting::HEADER_TABLE_SIZE, 0),
            (setting::INITIAL_WINDOW_SIZE, INITIAL_WINDOW),
            (setting::MAX_FRAME_SIZE, MAX_FRAME),
            (setting::MAX_HEADER_LIST_SIZE, MAX_HEADER_LIST),
        ];
        match role {
            Role::Client => settings.push((setting::ENABLE_PUSH, 0)),
            Role::Server => settings.push((setting::MAX_CONCURRENT_STREAMS, max_streams)),
        }
        frame::put_settings(&mut control, &settings);
        // The connection window starts at 64 KiB - 1 and grows by WINDOW_UPDATE only.
        frame::put_window(
            &mut control,
            StreamId::CONNECTION,
            CONNECTION_WINDOW - peer::DEFAULT_WINDOW,
        );
        Self {
            role,
            control,
            streams: Streams::new(),
            may_grow: true,
            parser: Parser::new(MAX_FRAME),
            decoder: Decoder::new(),
            greeting: match role {
                Role::Client => Greeting::Settings,
                Role::Server => Greeting::Preface(0),
            },
            settings_acked: false,
            send: SendWindow::new(peer::DEFAULT_WINDOW),
            receive: ReceiptWindow::new(CONNECTION_WINDOW),
            peer: peer::Limits::new(assumed),
            floods: Floods::new(Instant::now),
            max_streams: max_streams as usize,
            last_peer: StreamId::CONNECTION,
            told_last: StreamId::new(frame::MAX_WINDOW),
            next_ours: 1,
            going: Going::No,
            peer_last: None,
            current: None,
            next: None,
        }
    }

    /// What the next bytes mean; nothing when more are needed. After [`Broken`] the connection is over.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Broken> {
        if let Some(event) = self.next.take().and_then(|event| self.still_so(event)) {
            return Ok(Some(event));
        }
        if let Greeting::Preface(seen) = self.greeting
            && !self.preface(seen, input)?
        {
            return Ok(None);
        }
        while let Some(frame) = self.parser.next(input)? {
            if self.greeting == Greeting::Settings {
                if !matches!(frame, Frame::Settings(_)) {
                    return Err(Broken::new(
                        Code::PROTOCOL_ERROR,
                        "SETTINGS must come first",
                    ));
                }
                self.greeting = Greeting::Over;
            }
            if let Some(event) = self.on_frame(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// What was put off behind another event of its frame. An end counts from here on, so that it is
    /// the same for a stream that is reset on seeing its last bytes however those were cut.
    fn still_so<'a>(&mut self, event: Event<'a>) -> Option<Event<'a>> {
        if let Event::End { key } = event {
            let stream = self.streams.get(key)?;
            if stream.closed && !stream.received_end {
                return None;
            }
            self.received_end(key);
        }
        Some(event)
    }

    /// Whether the whole preface has been seen.
    fn preface(&mut self, seen: usize, input: &mut &[u8]) -> Result<bool, Broken> {
        let want = &frame::PREFACE[seen..];
        let n = want.len().min(input.len());
        if input[..n] != want[..n] {
            return Err(Broken::new(
                Code::PROTOCOL_ERROR,
                "the preface is not HTTP/2's",
            ));
        }
        *input = &input[n..];
        self.greeting = match n == want.len() {
            true => Greeting::Settings,
            false => Greeting::Preface(seen + n),
        };
        Ok(self.greeting == Greeting::Settings)
    }
}

/// What the engine does to its streams.
impl<T: Default> Session<T> {
    /// Whether a client may open one more, of at most `most` at a time.
    pub(crate) fn has_room(&self, most: usize) -> bool {
        self.peer_last.is_none()
            && self.going == Going::No
            && self.next_ours < frame::MAX_WINDOW
            && self.streams.len() < most.min(self.peer.max_streams)
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, request: &Request) -> Key {
        let id = StreamId::new(self.next_ours);
        self.next_ours += 2;
        frame::put_headers(
            &mut self.control,
            id,
            &request.to_block(),
            false,
            self.peer.max_frame,
        );
        self.streams
            .insert(id, SendWindow::new(self.peer.initial_window))
    }

    /// Answers a stream; its direction towards us stays open.
    pub(crate) fn answer(&mut self, key: Key, response: &Response) {
        self.head(key, &response.to_block(), false);
        self.streams[key].answered = true;
    }

    /// Refuses a stream: our direction is over with it.
    pub(crate) fn refuse(&mut self, key: Key, refusal: &Refusal) {
        self.head(key, &refusal.to_block(), true);
        let stream = &mut self.streams[key];
        (stream.answered, stream.sent_end) = (true, true);
        self.close_if_ended(key);
    }

    fn head(&mut self, key: Key, block: &[u8], end_stream: bool) {
        let id = self.streams[key].id;
        frame::put_headers(
            &mut self.control,
            id,
            block,
            end_stream,
            self.peer.max_frame,
        );
    }

    /// How many bytes may be sent on a stream now.
    pub(crate) fn room(&self, key: Key) -> usize {
        self.streams[key].send.room().min(self.send.room())
    }

    /// Whether nothing may be sent on any stream, whatever the streams themselves were granted.
    pub(crate) fn is_dry(&self) -> bool {
        self.send.room() == 0
    }

    /// Counts bytes that the engine has framed.
    pub(crate) fn sent(&mut self, key: Key, n: usize) {
        self.streams[key].send.take(n);
        self.send.take(n);
        self.floods.moved();
    }

    /// Ends our direction.
    pub(crate) fn end(&mut self, key: Key) {
        let stream = &mut self.streams[key];
        if stream.sent_end || stream.closed {
            return;
        }
        stream.sent_end = true;
        self.control
            .extend_from_slice(&frame::data_head(stream.id, 0, true));
        self.close_if_ended(key);
    }

    /// Counts bytes that the application has taken, and gives window back for them.
    pub(crate) fn taken(&mut self, key: Key, n: usize) {
        let may_grow = self.may_grow;
        let stream = &mut self.streams[key];
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let give = stream.receive.take(n, may_grow);
        if let Some(give) = give.filter(|_| !stream.received_end && !stream.closed) {
            frame::put_window(&mut self.control, stream.id, give);
        }
    }

    /// Resets a stream, unless it is over already.
    pub(crate) fn reset(&mut self, key: Key, code: Code) {
        if self.streams[key].closed {
            return;
        }
        let id = self.streams[key].id;
        self.streams.forget(id);
        frame::put_reset(&mut self.control, id, code);
        self.streams.close(key);
    }

    fn close_if_ended(&mut self, key: Key) {
        let stream = &self.streams[key];
        if stream.sent_end && stream.received_end {
            self.streams.close(key);
        }
    }

    /// Asks the peer whether it lives.
    pub(crate) fn ping(&mut self) {
        frame::put_ping(&mut self.control, false, PING);
    }

    /// Whether the peer has acknowledged our SETTINGS.
    pub(crate) fn is_settled(&self) -> bool {
        self.settings_acked
    }

    /// Whether the peer has greeted us.
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeting == Greeting::Over
    }

    /// Announces that no more streams are taken. Those that are on their way still are.
    pub(crate) fn drain(&mut self) {
        if self.going != Going::No {
            return;
        }
        if self.role == Role::Client {
            // Nobody opens streams towards us.
            return self.fix_last(Code::NO_ERROR, "");
        }
        self.going = Going::Announced;
        let most = StreamId::new(frame::MAX_WINDOW);
        frame::put_goaway(&mut self.control, most, Code::NO_ERROR, "");
        frame::put_ping(&mut self.control, false, LAST_CALL);
    }

    /// The final GOAWAY, with the reason for the peer's log.
    pub(crate) fn fix_last(&mut self, code: Code, why: &str) {
        if self.going == Going::Fixed && code == Code::NO_ERROR {
            return;
        }
        self.going = Going::Fixed;
        // It never rises (RFC 9113 §6.8), though streams above it have come since, and were refused.
        self.told_last = self.told_last.min(self.last_peer);
        frame::put_goaway(&mut self.control, self.told_last, code, why);
    }

    /// Whether streams may still come, from either side.
    pub(crate) fn is_going(&self) -> bool {
        match self.role {
            Role::Client => self.going != Going::No || self.peer_last.is_some(),
            Role::Server => self.going == Going::Fixed,
        }
    }

    /// Our streams that the peer has promised never to have looked at.
    pub(crate) fn take_unseen(&mut self) -> Vec<(Key, Error)> {
        let Some(last) = self.peer_last.filter(|_| self.role == Role::Client) else {
            return Vec::new();
        };
        let unseen = self.streams.above(last);
        for key in &unseen {
            self.streams.close(*key);
        }
        unseen
            .into_iter()
            .map(|key| (key, Error::reset("GOAWAY", false)))
            .collect()
    }
}

impl<T> std::fmt::Debug for Session<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}
