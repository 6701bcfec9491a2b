//! One connection, driven inline by the one task that owns its socket, its streams and their
//! applications' sockets.
//!
//! A turn: take what woke us → read the tunnel once and hand its bytes to the applications → serve each
//! stream that has something once → seal and write once. Nothing waits for a timer: what is there when
//! the queue is empty goes out.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use tokio::time::Instant;

use crate::frame::{Broken, Code};
use crate::limits::BACKLOG;
use crate::record::RecordError;
use crate::session::{Event, Key, Role, Session};
use crate::tls::handshake::Proved;
use crate::{Credentials, Error, Identity, Request};
use alarm::Alarm;
use clock::Clock;
use held::Account;
use link::{Link, Scratch};
use out::Out;
use owner::Calls;
use proof::Proof;
use queue::Queue;
use ready::Ready;
use side::App;
pub(crate) use side::Side;
use yielding::Yielding;

mod alarm;
pub(crate) mod clock;
mod down;
mod ends;
mod handle;
mod held;
mod link;
mod out;
mod owner;
pub(crate) mod pipe;
mod proof;
mod queue;
mod ready;
mod side;
mod socket;
mod up;
mod yielding;

pub(crate) use handle::Handle;

/// What the two roles set differently.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) role: Role,
    /// Streams the peer may open (server), or that we assume it lets us open until it says (client).
    pub(crate) max_streams: usize,
    pub(crate) ping_interval: std::time::Duration,
    pub(crate) ping_timeout: std::time::Duration,
    pub(crate) idle_timeout: std::time::Duration,
    /// After this the connection takes no new streams.
    pub(crate) max_age: Option<std::time::Duration>,
}

/// A connection and everything in it; shared with its handles, on one thread.
pub(crate) struct Core {
    pub(crate) session: Session<Side>,
    pub(crate) addr: SocketAddr,
    /// Nothing once the connection is over.
    link: Option<Box<Link>>,
    phase: Phase,
    /// Streams to serve.
    queue: Queue,
    /// Streams whose application has bytes there is no window for.
    starved: Vec<Key>,
    /// Since when the peer has granted the connection as a whole nothing more, and somebody waits for it.
    flow_blocked: Option<Instant>,
    /// Server's streams that wait for the client's end, with the time they have.
    discarding: VecDeque<(Instant, Key)>,
    ready: Arc<Ready>,
    /// The alarm has rung.
    alarmed: bool,
    clock: Clock,
    role: Role,
    /// Requests nobody has looked at.
    asked: VecDeque<(Key, Box<Request>)>,
    /// Who waits for the next request.
    acceptor: Option<Waker>,
    /// How the connection ended, for the acceptor.
    end: Option<Option<Error>>,
    /// Nobody will use the connection for new streams.
    retired: bool,
    yielding: Yielding,
    /// Who is to be told of a relay's end, after this turn.
    calls: Calls,
    proof: Proof,
    /// Client: has both sides prove themselves anew, on another connection.
    renew: Option<Box<dyn Fn()>>,
    /// Where bytes that applications do not take are counted.
    account: Arc<Account>,
}

/// Memory for frames up to this is kept for the next ones: some requests, as they come together.
const KEPT_CONTROL: usize = 2 << 10;

/// How far a connection is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Our last words are on their way; the peer may read them.
    Parting,
    Over,
}

/// Why a running connection ends now.
enum Over {
    /// The peer broke the protocol.
    Broken(Broken),
    /// The peer's records cannot be opened, or it sent an alert.
    Record(RecordError),
    /// The socket failed or ended.
    Lost(Error),
    /// It ended in order.
    Closed,
}

/// The task of one connection. Dropped, it resets everything.
pub(crate) struct Engine {
    core: Rc<RefCell<Core>>,
    /// Looked at only when it has rung.
    alarm: Alarm,
}

/// A proved connection as its engine and what is shared with handles. Fails where a first thread for alarms
/// is not to be had.
pub(crate) fn start(
    proved: Proved,
    terms: &Terms,
    credentials: &Credentials,
    judged_by: Arc<Identity>,
) -> Result<(Engine, Rc<RefCell<Core>>), Error> {
    let now = Instant::now();
    let expires = proved.not_after.duration_since(SystemTime::now());
    let mut clock = Clock::new(now, terms, expires.unwrap_or_default());
    let max_streams = u32::try_from(terms.max_streams).unwrap_or(u32::MAX);
    let ready: Arc<Ready> = Arc::default();
    let alarm = Alarm::new(ready.waker(Key::TIMER)).map_err(|e| Error::NoThread(e.into()))?;
    let proof = Proof::new(&proved, credentials, judged_by, &ready);
    if terms.role == Role::Client {
        clock.renew_within(now, proof.left());
    }
    let core = Core {
        session: Session::new(terms.role, max_streams, terms.max_streams),
        addr: proved.peer.addr,
        link: Some(Box::new(Link::new(
            proved.tcp,
            proved.records,
            proved.early,
            proved.unsent,
            ready.waker(Key::LINK),
        ))),
        phase: Phase::Running,
        queue: Queue::default(),
        starved: Vec::new(),
        flow_blocked: None,
        discarding: VecDeque::new(),
        ready,
        // The alarm is not set yet.
        alarmed: true,
        clock,
        role: terms.role,
        asked: VecDeque::new(),
        acceptor: None,
        end: None,
        retired: false,
        yielding: Yielding::new(),
        calls: Calls::new(),
        proof,
        renew: None,
        account: Account::of(credentials),
    };
    let core = Rc::new(RefCell::new(core));
    let engine = Engine {
        core: core.clone(),
        alarm,
    };
    Ok((engine, core))
}

// === impl Engine ===

impl Future for Engine {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut core = this.core.borrow_mut();
        if core.yielding.lets_pass() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let again = link::SCRATCH.with_borrow_mut(|scratch| core.turn(cx, scratch));
        if core.phase == Phase::Over {
            // Applications still get what arrived whole.
            let leftovers = core.has_leftovers();
            drop(core);
            this.make_calls();
            return match leftovers {
                true => Poll::Pending,
                false => Poll::Ready(()),
            };
        }
        if std::mem::take(&mut core.alarmed) || core.clock.due() < this.alarm.at() {
            if core.clock.due() <= Instant::now() {
                core.on_time();
                // What it led to is done in the next turn.
                core.ready.wake();
            }
            this.alarm.set(core.clock.due());
        }
        let calls = !core.calls.is_empty();
        drop(core);
        if calls {
            this.make_calls();
        }
        if again {
            // Behind everybody else who is ready, whom the runtime looks for first.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
        }
        Poll::Pending
    }
}

impl Engine {
    /// Client: what is called when both sides should prove themselves anew, on another connection.
    pub(crate) fn on_renewal(&self, renew: impl Fn() + 'static) {
        self.core.borrow_mut().renew = Some(Box::new(renew));
    }

    /// Tells those whose relays have ended. They may use the connection: nobody holds it meanwhile. What
    /// panics there is told by the panic hook, and ends nobody else's stream.
    fn make_calls(&self) {
        loop {
            let Some((call, ended)) = self.core.borrow_mut().calls.pop_front() else {
                break;
            };
            let _ = catch_unwind(AssertUnwindSafe(|| call(ended)));
        }
        // An idle connection holds no memory for them.
        self.core.borrow_mut().calls = Calls::new();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(mut core) = self.core.try_borrow_mut() {
            core.abort();
            drop(core);
            self.make_calls();
        }
    }
}

// === impl Core ===

impl Core {
    /// One turn; whether there is more to do at once.
    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> bool {
        self.ready.take(cx.waker(), &mut scratch.keys);
        self.session.may_grow = self.account.may_grow();
        for at in 0..scratch.keys.len() {
            match (Key::from_bits(scratch.keys[at]), &mut self.link) {
                (Key::LINK, Some(link)) => link.woken(),
                (Key::LINK, None) => {}
                (Key::TIMER, _) => self.alarmed = true,
                (Key::NEWS, _) => self.judge_again(),
                (key, _) => self.woken(key),
            }
        }
        let turned = match self.phase {
            Phase::Running => self.run(scratch),
            Phase::Parting => self.part_further(scratch),
            Phase::Over => Ok(false),
        };
        let again = match turned {
            Ok(again) => again,
            Err(over) => self.end_because(over),
        };
        if self.phase != Phase::Running {
            self.serve_down();
        }
        again
    }

    fn run(&mut self, scratch: &mut Scratch) -> Result<bool, Over> {
        self.receive(scratch)?;
        let waiting = self.session.control.len();
        if self.yielding.lets_speak(waiting, self.queue.is_empty()) {
            self.ready.wake();
            return Ok(false);
        }
        self.send(scratch)?;
        if self.is_finished() {
            self.part(Code::NO_ERROR, "");
            return Ok(true);
        }
        Ok(self.may_receive() || self.can_send())
    }

    /// Whether there is something to read, from a peer that is not asking and asking without reading
    /// our answers. A full socket of ours is no reason not to read: the peer's may be full, too.
    fn may_receive(&self) -> bool {
        let patient = self.session.control.len() <= BACKLOG;
        patient && self.link.as_ref().is_some_and(|link| link.readable)
    }

    /// Reads the tunnel once, and hands out what came.
    fn receive(&mut self, scratch: &mut Scratch) -> Result<(), Over> {
        let Some(link) = &mut self.link else {
            return Err(Over::Closed);
        };
        if self.session.control.len() > BACKLOG {
            // It asks and asks and reads no answers. When it does, control shrinks and this goes on.
            return Ok(());
        }
        link.receive(scratch)?;
        let greeted = self.session.is_greeted();
        let Scratch { read, plain, .. } = scratch;
        let mut run = down::Run::new();
        for range in plain.iter() {
            let mut input = &read[range.clone()];
            while let Some(event) = self.session.next(&mut input).map_err(Over::Broken)? {
                self.on_event(event, &mut run);
            }
        }
        self.deliver(&mut run);
        if !greeted
            && self.session.is_greeted()
            && let Some(acceptor) = self.acceptor.take()
        {
            acceptor.wake();
        }
        if self
            .link
            .as_ref()
            .is_some_and(|link| link.close_notify_seen)
        {
            return Err(Over::Closed);
        }
        Ok(())
    }

    fn on_event<'a>(&mut self, event: Event<'a>, run: &mut down::Run<'a>) {
        if let Event::Data { key, bytes } = event {
            if !run.add(key, bytes) {
                self.deliver(run);
                run.add(key, bytes);
            }
            return;
        }
        // Bytes first, then what came after them.
        self.deliver(run);
        match event {
            Event::Data { .. } => {}
            Event::Asked { key, request } => {
                self.yielding.told(self.session.control.len());
                self.asked(key, request);
            }
            Event::Answered { key, answer } => {
                self.yielding.told(self.session.control.len());
                self.answered(key, answer);
            }
            Event::End { key } => self.ended(key),
            Event::Lost { key, error } => self.lost(key, error),
            Event::Room(Some(key)) => self.room(key),
            Event::Room(None) => {
                self.flow_blocked = None;
                for key in std::mem::take(&mut self.starved) {
                    self.room(key);
                }
            }
            Event::GoAway => {
                for (key, error) in self.session.take_unseen() {
                    self.lost(key, error);
                }
            }
            Event::Pong => self.clock.pong(),
        }
    }

    /// Serves the streams that have something to do, and writes what came of it.
    fn send(&mut self, scratch: &mut Scratch) -> Result<(), Over> {
        let Some(mut link) = self.link.take() else {
            return Err(Over::Closed);
        };
        let sent = self.send_on(&mut link, scratch);
        self.link = Some(link);
        sent
    }

    fn send_on(&mut self, link: &mut Link, scratch: &mut Scratch) -> Result<(), Over> {
        let mut turns = self.queue.len();
        let more = turns > 0 || !self.session.control.is_empty();
        if !(more && link.has_little()) {
            link.flush()?;
        }
        link.send_urgent()?;
        loop {
            if turns == 0 && self.session.control.is_empty() {
                return Ok(());
            }
            if link.is_stuffed() {
                // What arrived still goes to the applications.
                self.serve_down();
                return Ok(());
            }
            let mut out = Out::new(&mut scratch.write, &mut link.records);
            self.put_control(&mut out).map_err(Over::Record)?;
            while turns > 0 && out.has_room() {
                turns -= 1;
                if let Some(key) = self.queue.pop() {
                    self.serve(key, &mut out).map_err(Over::Record)?;
                }
            }
            self.put_control(&mut out).map_err(Over::Record)?;
            let sealed = out.finish().map_err(Over::Record)?;
            link.write(&scratch.write[..sealed])?;
        }
    }

    fn put_control(&mut self, out: &mut Out<'_>) -> Result<(), RecordError> {
        let mut control = std::mem::take(&mut self.session.control);
        out.put(&control)?;
        // A connection without streams holds none.
        if control.capacity() <= KEPT_CONTROL && self.session.streams.len() > 0 {
            control.clear();
            self.session.control = control;
        }
        Ok(())
    }

    /// Whether anything could be sent at once.
    fn can_send(&self) -> bool {
        let stuffed = self.link.as_ref().is_none_or(|link| link.is_stuffed());
        let idle = self.queue.is_empty() && self.session.control.is_empty();
        !stuffed && !idle
    }

    /// Whether the connection has done all that it will be asked to do.
    fn is_finished(&self) -> bool {
        self.session.streams.len() == 0
            && self.asked.is_empty()
            && (self.session.is_going() || (self.role == Role::Client && self.retired))
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("addr", &self.addr)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Streams whose application side has something to do, in the order they asked.
impl Core {
    fn enqueue(&mut self, key: Key) {
        if let Some(stream) = self.session.streams.get_mut(key)
            && !std::mem::replace(&mut stream.app.queued, true)
        {
            self.queue.push_fresh(key);
        }
    }

    /// A stream that was served has more to send: behind those that begin to speak.
    fn enqueue_again(&mut self, key: Key) {
        if let Some(stream) = self.session.streams.get_mut(key)
            && !std::mem::replace(&mut stream.app.queued, true)
        {
            self.queue.push_long(key);
        }
    }

    /// There is room to send on a stream that may have been waiting for it.
    fn room(&mut self, key: Key) {
        if let Some(stream) = self.session.streams.get_mut(key) {
            if let App::Socket(socket) = &mut stream.app.app {
                socket.starved = false;
            }
            self.enqueue(key);
        }
    }
}
