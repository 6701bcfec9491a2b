//! A session among hostile bytes, with an engine that does a bit of everything, and a peer that checks what we say.

use std::collections::HashMap;

use super::sent::Sent;
use crate::frame::{Broken, Code};
use crate::session::{Event, Key, Role, Session};
use crate::{Error, Refusal, Request, Response, Target};

/// Few, so that the limit is met.
const MOST_STREAMS: u32 = 6;

/// Streams that a client opens at first.
const OPENED: usize = 4;

/// The stream after which the engine drains the connection.
const DRAINS: usize = 8;

/// What an engine does with a stream; by its place in the order of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Accepts, sends back what comes, and ends when the peer does.
    Echo,
    /// Accepts and says nothing more, not even the end, and its application reads nothing.
    Stall,
    /// Accepts, talks and ends at once.
    Talk,
    Refuse,
    /// Lets it wait for an answer, until the first byte or the end.
    Wait,
    Reset,
}

const HABITS: [Habit; 6] = [
    Habit::Echo,
    Habit::Talk,
    Habit::Stall,
    Habit::Refuse,
    Habit::Wait,
    Habit::Reset,
];

/// What the engine knows of a stream.
#[derive(Debug)]
struct Held {
    habit: Habit,
    received: usize,
    /// Received and not given back yet.
    held: usize,
    answered: bool,
    /// The peer's direction is over: ended, or lost, or we let go.
    over: bool,
    lost: bool,
}

struct Engine {
    session: Session<()>,
    role: Role,
    streams: HashMap<Key, Held>,
    opened: usize,
    sent: Sent,
    /// What happened to streams, to compare: nothing in it depends on how bytes were cut.
    story: Vec<String>,
}

/// Gives the bytes to a session in one piece and byte by byte; the same must come of it.
pub(super) fn run(role: Role, data: &[u8]) {
    let whole = Engine::new(role).play(data, data.len().max(1));
    let cut = Engine::new(role).play(data, 1);
    assert_eq!(whole, cut);
}

// === impl Engine ===

impl Engine {
    fn new(role: Role) -> Self {
        let mut new = Self {
            session: Session::new(role, MOST_STREAMS, OPENED + 2),
            role,
            streams: HashMap::new(),
            opened: 0,
            sent: Sent::new(role),
            story: Vec::new(),
        };
        new.session.ping();
        if role == Role::Client {
            (0..OPENED).for_each(|_| new.open());
        }
        new
    }

    /// The end of it, and what was told of streams.
    fn play(mut self, data: &[u8], size: usize) -> (Result<(), Broken>, Vec<String>) {
        let mut end = Ok(());
        for piece in data.chunks(size) {
            end = self.receive(piece);
            if end.is_err() {
                break;
            }
        }
        // Flow control and floods aside, what goes out is bounded by what comes in.
        assert!(
            self.sent.written() <= 4096 + 64 * data.len(),
            "too much is answered"
        );
        if let Err(Broken { code, what }) = end {
            self.session.fix_last(code, what);
        } else {
            self.session.drain();
        }
        self.check();
        for key in self.session.streams.keys() {
            self.session.reset(key, Code::CANCEL);
            self.let_go(key);
        }
        assert_eq!(self.session.streams.len(), 0);
        self.sent.take(&mut self.session.control);
        (end, self.story)
    }

    fn receive(&mut self, mut piece: &[u8]) -> Result<(), Broken> {
        let before = piece.len();
        let mut bytes = 0;
        while let Some(event) = self.session.next(&mut piece)? {
            if let Event::Data { bytes: some, .. } = &event {
                bytes += some.len();
            }
            assert!(bytes <= before, "bytes that nobody sent");
            self.on(event);
            self.sent.take(&mut self.session.control);
        }
        assert!(piece.is_empty(), "it wants more and leaves some");
        self.sent.take(&mut self.session.control);
        self.check();
        Ok(())
    }

    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Asked { key, request } => self.asked(key, request),
            Event::Answered { key, answer } => self.answered(key, &answer),
            Event::Data { key, bytes } => self.data(key, bytes),
            Event::End { key } => self.end(key),
            Event::Lost { key, error } => self.lost(key, &error),
            Event::Room(Some(key)) => drop(self.live(key)),
            Event::GoAway => {
                for (key, error) in self.session.take_unseen() {
                    self.lost(key, &error);
                }
            }
            Event::Room(None) | Event::Pong => {}
        }
    }

    fn open(&mut self) {
        if self.session.has_room(OPENED + 2) {
            let request = Request::to(Target::Addr(([10, 1, 2, 3], 80).into()));
            let key = self.session.open(&request);
            self.hold(key);
        }
    }

    fn hold(&mut self, key: Key) {
        let held = Held {
            habit: HABITS[self.opened % HABITS.len()],
            received: 0,
            held: 0,
            answered: false,
            over: false,
            lost: false,
        };
        self.opened += 1;
        self.session.may_grow = self.opened.is_multiple_of(2);
        if self.opened == DRAINS {
            self.session.drain();
        }
        self.story
            .push(format!("{} is new", self.session.streams[key].id));
        assert!(self.streams.insert(key, held).is_none(), "{key:?} twice");
        assert!(self.session.streams.len() <= (MOST_STREAMS as usize).max(OPENED + 2));
    }

    fn asked(&mut self, key: Key, request: Result<Box<Request>, Refusal>) {
        assert_eq!(self.role, Role::Server);
        self.hold(key);
        let habit = self.streams[&key].habit;
        match (request, habit) {
            (Err(refusal), _) => self.refuse(key, &refusal),
            (Ok(_), Habit::Refuse) => {
                let refusal = Refusal::new(http::StatusCode::FORBIDDEN, "no", "because");
                self.refuse(key, &refusal);
            }
            (Ok(_), Habit::Reset) => {
                self.session.reset(key, Code::CONNECT_ERROR);
                self.let_go(key);
            }
            (Ok(_), Habit::Wait) => {}
            (Ok(_), Habit::Echo | Habit::Stall | Habit::Talk) => {
                self.session.answer(key, &Response::default());
                self.opened(key);
            }
        }
    }

    fn refuse(&mut self, key: Key, refusal: &Refusal) {
        self.session.refuse(key, refusal);
        let held = self.held(key);
        held.answered = true;
        if self.session.streams[key].closed {
            self.let_go(key);
        }
    }

    fn answered(&mut self, key: Key, answer: &Result<Response, Error>) {
        assert_eq!(self.role, Role::Client);
        let id = self.session.streams[key].id;
        self.story.push(format!("{id} is answered {answer:?}"));
        assert!(!self.held(key).answered, "{id} is answered twice");
        if answer.is_err() {
            self.session.reset(key, Code::CANCEL);
            self.let_go(key);
        } else {
            self.opened(key);
        }
        self.open();
    }

    fn opened(&mut self, key: Key) {
        let held = self.held(key);
        held.answered = true;
        if held.habit == Habit::Talk {
            self.send(key, 100);
            self.session.end(key);
        }
    }

    /// Frames bytes as the engine does.
    fn send(&mut self, key: Key, most: usize) {
        let stream = &self.session.streams[key];
        if stream.sent_end || stream.closed {
            return;
        }
        let (id, n) = (stream.id, self.session.room(key).min(most));
        if n > 0 {
            self.sent.data(&mut self.session.control, id, n);
            self.session.sent(key, n);
        }
    }

    fn data(&mut self, key: Key, bytes: &[u8]) {
        let id = self.session.streams[key].id;
        assert!(!bytes.is_empty());
        let held = self.held(key);
        assert!(!held.over, "bytes after the end of {id}");
        held.received += bytes.len();
        held.held += bytes.len();
        match held.habit {
            Habit::Stall => {}
            Habit::Echo | Habit::Talk | Habit::Refuse => {
                held.held = 0;
                self.session.taken(key, bytes.len());
                if self.streams[&key].habit == Habit::Echo {
                    self.send(key, bytes.len());
                }
            }
            Habit::Wait | Habit::Reset => {
                self.session.reset(key, Code::CANCEL);
                self.let_go(key);
            }
        }
    }

    fn end(&mut self, key: Key) {
        // It may be behind us: an end that came with the head of a stream that we refused.
        let Some(held) = self.streams.get_mut(&key) else {
            assert!(self.session.streams.get(key).is_none());
            return;
        };
        assert!(!held.over, "it ends twice");
        held.over = true;
        let id = self.session.streams[key].id;
        self.story.push(format!("{id} has ended"));
        if held.habit == Habit::Stall && !self.session.streams[key].closed {
            return;
        }
        if !held.answered && self.role == Role::Server {
            self.session.answer(key, &Response::default());
        }
        self.session.end(key);
        assert!(self.session.streams[key].closed, "both directions are over");
        self.let_go(key);
    }

    fn lost(&mut self, key: Key, error: &Error) {
        let id = self.session.streams[key].id;
        self.story.push(format!("{id} is lost: {error}"));
        assert!(self.session.streams[key].closed);
        let held = self.held(key);
        assert!(!held.lost, "{id} is lost twice");
        held.lost = true;
        self.let_go(key);
    }

    /// The application is gone.
    fn let_go(&mut self, key: Key) {
        assert!(self.session.streams[key].closed);
        self.streams.remove(&key);
        self.session.streams.free(key);
        assert!(self.session.streams.get(key).is_none());
    }

    fn held(&mut self, key: Key) -> &mut Held {
        self.streams
            .get_mut(&key)
            .expect("an event of a stream that is held")
    }

    fn live(&self, key: Key) -> &Held {
        let held = self.streams.get(&key);
        held.expect("an event of a stream that is held")
    }

    /// Nothing waits in the session: whatever is over on the wire has been told.
    fn check(&self) {
        for key in self.session.streams.keys() {
            let stream = &self.session.streams[key];
            let held = self.live(key);
            assert!(
                !stream.closed,
                "{} is closed, and nobody was told",
                stream.id
            );
            assert_eq!(stream.received_end, held.over, "{}", stream.id);
        }
        assert_eq!(self.session.streams.len(), self.streams.len());
    }
}
