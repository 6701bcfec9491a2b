//! Connections kept for their next tunnel: one dial per destination at a time, a stream budget each.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::task::coop::unconstrained;
use tokio::time::timeout;

use crate::client::{self, Client};
use crate::engine::Engine;
use crate::{Credentials, Error, Expect, PoolLimits, Request, Response, SpiffeId, Tunnel};
use retry::Tries;

mod retry;

/// How a pool reaches a peer's address: in which network namespace, with which mark and source.
pub trait Dial: Clone + 'static {
    /// Connects; the pool bounds how long it may take.
    fn dial(&self, to: SocketAddr) -> impl Future<Output = io::Result<TcpStream>>;
}

/// Dials from where the process is.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDial;

/// Where a connection leads, and who must be there.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Destination {
    /// The peer's tunnel address, usually port 15008.
    pub addr: SocketAddr,
    /// Who may answer there.
    pub expect: Expect,
    /// The workload there, for [`Pool::evict`].
    pub workload: Arc<str>,
}

/// Connections of one source identity on one core. Cheap to clone; the last clone ends the dials in
/// flight, while open tunnels live on.
#[derive(Clone)]
pub struct Pool<D: Dial> {
    inner: Rc<Inner<D>>,
}

/// A tunnel, and what the far side said when opening it.
#[derive(Debug)]
pub struct Opened {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// The answer's head.
    pub response: Response,
    /// Who answered.
    pub peer: SpiffeId,
}

struct Inner<D> {
    credentials: Credentials,
    dial: D,
    limits: PoolLimits,
    connections: Rc<Connections>,
}

/// What the pool holds, apart from how it dials: drivers take their own connection off it.
#[derive(Default)]
struct Connections {
    slots: RefCell<HashMap<Destination, Slot>>,
    /// Connections and dials in all slots.
    size: Cell<usize>,
    next: Cell<u64>,
    draining: Cell<bool>,
}

/// All there is for one destination.
#[derive(Default)]
struct Slot {
    clients: Vec<(u64, Rc<Client>)>,
    flights: Vec<Flight>,
}

/// A dial that is under way, for everybody who waits for it.
struct Flight {
    number: u64,
    landed: Landing,
    task: AbortHandle,
    /// Whoever waits holds a clone, so that no more wait than the connection will take.
    waiting: Rc<()>,
}

type Landing = watch::Receiver<Option<Result<(), Error>>>;

/// What was found among the connections.
enum Found {
    /// A place on a connection.
    Place(u64, Rc<Client>),
    /// A dial to wait for.
    Flight(Landing, Rc<()>),
}

// === impl TcpDial ===

impl Dial for TcpDial {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(to).await
    }
}

// === impl Pool ===

impl<D: Dial> Pool<D> {
    /// An empty pool that is known to its peers by `credentials`.
    pub fn new(credentials: Credentials, dial: D, limits: PoolLimits) -> Self {
        let connections = Rc::new(Connections::default());
        Self {
            inner: Rc::new(Inner {
                credentials,
                dial,
                limits,
                connections,
            }),
        }
    }

    /// Opens a tunnel, on a connection that is there or on a new one.
    ///
    /// Must run in a `LocalRuntime` or `LocalSet`. Where a connection turns out to be at its end before the far side
    /// has looked at the request, it is tried once more on another; and a few times where the far side
    /// says that it has not looked at it, because its limit of streams is known only from its answer.
    pub async fn open(&self, to: &Destination, request: &Request) -> Result<Opened, Error> {
        let mut tries = Tries::default();
        loop {
            let (number, client, reused) = self.place(to).await?;
            let opening = client.open(request);
            let opened = timeout(self.inner.limits.response_timeout, opening).await;
            match opened.unwrap_or(Err(Error::ResponseTimeout)) {
                Ok((tunnel, response)) => {
                    return Ok(Opened {
                        tunnel,
                        response,
                        peer: client.peer().clone(),
                    });
                }
                Err(error) => {
                    let next = tries.after(&error, reused);
                    if next.forget {
                        self.inner.connections.remove(to, number);
                    }
                    if !next.repeat {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Forgets a workload: no new streams on connections to it, while running ones finish.
    pub fn evict(&self, workload: &str) {
        self.inner
            .connections
            .clear(|destination| &*destination.workload == workload);
    }

    /// Opens nothing any more; running tunnels finish.
    pub fn drain(&self) {
        self.inner.connections.draining.set(true);
        self.inner.connections.clear(|_| true);
    }

    /// A place on a connection, and whether the connection was there before.
    async fn place(&self, to: &Destination) -> Result<(u64, Rc<Client>, bool), Error> {
        let mut reused = true;
        loop {
            let (mut landed, waiting) = match self.look(to)? {
                Found::Place(number, client) => return Ok((number, client, reused)),
                Found::Flight(landed, waiting) => (landed, waiting),
            };
            reused = false;
            let outcome = match landed.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                // Evicted or drained under way.
                Err(_) => return Err(Error::Draining),
            };
            drop(waiting);
            if let Some(Err(error)) = outcome {
                return Err(error);
            }
        }
    }

    /// A place, or a dial to wait for, begun here where there is none. Synchronous: nobody else
    /// looks meanwhile.
    fn look(&self, to: &Destination) -> Result<Found, Error> {
        let Inner {
            credentials,
            limits,
            connections,
            ..
        } = &*self.inner;
        if connections.draining.get() {
            return Err(Error::Draining);
        }
        let identity = credentials.current();
        identity.check()?;
        let mut slots = connections.slots.borrow_mut();
        if let Some(slot) = slots.get_mut(to) {
            let before = slot.clients.len();
            slot.clients
                .retain(|(_, client)| client.is_current(&identity));
            connections
                .size
                .set(connections.size.get() - (before - slot.clients.len()));
            let mut with_room = slot
                .clients
                .iter()
                .filter(|(_, c)| c.has_room(limits.max_streams));
            let hot = match with_room.clone().find(|(_, client)| !client.is_hot()) {
                Some((number, client)) => return Ok(Found::Place(*number, client.clone())),
                None => with_room.next().cloned(),
            };
            if let Some((number, client)) = hot {
                // Good for now; whoever comes next shall have a better one.
                let parallel = slot.clients.len() + slot.flights.len();
                if parallel < limits.max_parallel && connections.size.get() < limits.max_connections
                {
                    slot.flights.push(self.depart(to.clone()));
                    connections.size.set(connections.size.get() + 1);
                }
                return Ok(Found::Place(number, client));
            }
            for flight in &slot.flights {
                if Rc::strong_count(&flight.waiting) <= limits.max_streams {
                    return Ok(Found::Flight(flight.landed.clone(), flight.waiting.clone()));
                }
            }
        }
        if connections.size.get() >= limits.max_connections {
            connections.make_room(&mut slots)?;
        }
        let flight = self.depart(to.clone());
        let found = Found::Flight(flight.landed.clone(), flight.waiting.clone());
        slots.entry(to.clone()).or_default().flights.push(flight);
        connections.size.set(connections.size.get() + 1);
        Ok(found)
    }

    /// Has both sides prove themselves anew, where no connection stands for that already: streams that run on an old one
    /// live on by it.
    fn renew(&self, to: &Destination) {
        let Inner {
            credentials,
            limits,
            connections,
            ..
        } = &*self.inner;
        let identity = credentials.current();
        let full = connections.size.get() >= limits.max_connections;
        if connections.draining.get() || full || identity.check().is_err() {
            return;
        }
        let mut slots = connections.slots.borrow_mut();
        let slot = slots.entry(to.clone()).or_default();
        let mut clients = slot.clients.iter();
        if !slot.flights.is_empty() || clients.any(|(_, client)| client.is_current(&identity)) {
            return;
        }
        slot.flights.push(self.depart(to.clone()));
        connections.size.set(connections.size.get() + 1);
    }

    /// Starts a dial as a task of its own, so that no waiter who gives up ends it for the others.
    fn depart(&self, to: Destination) -> Flight {
        let number = self.inner.connections.next.get();
        self.inner.connections.next.set(number + 1);
        let (tell, landed) = watch::channel(None);
        let Inner {
            credentials,
            dial,
            limits,
            connections,
        } = &*self.inner;
        let (credentials, dial, limits) = (credentials.clone(), dial.clone(), limits.clone());
        let connections = Rc::downgrade(connections);
        let pool = Rc::downgrade(&self.inner);
        let task = tokio::task::spawn_local(async move {
            let outcome = client::connect(&dial, &credentials, &to, &limits).await;
            let Some(held) = connections.upgrade() else {
                return;
            };
            let (landed, engine) = match held.land(&to, number, outcome) {
                Ok(engine) => (Ok(()), Some(engine)),
                Err(error) => (Err(error), None),
            };
            // Nobody waits any more where this fails.
            let _ = tell.send(Some(landed));
            // After those who waited: what they ask goes with the end of the handshake.
            if let Some(engine) = engine {
                let again = to.clone();
                engine.on_renewal(move || renew(pool.clone(), again.clone()));
                drive(engine, connections, to, number);
            }
        });
        Flight {
            number,
            landed,
            task: task.abort_handle(),
            waiting: Rc::new(()),
        }
    }
}

impl<D: Dial> std::fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("credentials", &self.inner.credentials)
            .field("connections", &self.inner.connections.size.get())
            .finish_non_exhaustive()
    }
}

// === impl Connections ===

impl Connections {
    /// Replaces a dial by its connection, which is to be driven, or takes it away.
    fn land(
        &self,
        to: &Destination,
        number: u64,
        outcome: Result<(Client, Engine), Error>,
    ) -> Result<Engine, Error> {
        let mut slots = self.slots.borrow_mut();
        // An evicted dial is aborted, so its slot is always here.
        let slot = slots.entry(to.clone()).or_default();
        slot.flights.retain(|flight| flight.number != number);
        match outcome {
            Ok((client, engine)) => {
                slot.clients.push((number, Rc::new(client)));
                Ok(engine)
            }
            Err(error) => {
                self.size.set(self.size.get() - 1);
                if slot.is_empty() {
                    slots.remove(to);
                }
                Err(error)
            }
        }
    }

    /// Takes a connection off: it ends when its last tunnel ends.
    fn remove(&self, to: &Destination, number: u64) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(to) else {
            return;
        };
        let before = slot.clients.len();
        slot.clients.retain(|(n, _)| *n != number);
        self.size
            .set(self.size.get() - (before - slot.clients.len()));
        if slot.is_empty() {
            slots.remove(to);
        }
    }

    /// Takes a connection without tunnels off: to dial it again costs less than to refuse.
    fn make_room(&self, slots: &mut HashMap<Destination, Slot>) -> Result<(), Error> {
        let idle = slots.iter().find_map(|(to, slot)| {
            let at = slot.clients.iter().position(|(_, c)| c.is_idle())?;
            Some((to.clone(), at))
        });
        let (to, at) = idle.ok_or(Error::TooManyConnections)?;
        let Some(slot) = slots.get_mut(&to) else {
            return Err(Error::TooManyConnections);
        };
        slot.clients.swap_remove(at);
        self.size.set(self.size.get() - 1);
        if slot.is_empty() {
            slots.remove(&to);
        }
        Ok(())
    }

    fn clear(&self, which: impl Fn(&Destination) -> bool) {
        let mut slots = self.slots.borrow_mut();
        slots.retain(|destination, slot| {
            let gone = which(destination);
            if gone {
                let size = slot.clients.len() + slot.flights.len();
                self.size.set(self.size.get() - size);
            }
            !gone
        });
    }
}

/// As soon as no connection is in the middle of a turn.
fn renew<D: Dial>(pool: Weak<Inner<D>>, to: Destination) {
    tokio::task::spawn_local(async move {
        if let Some(inner) = pool.upgrade() {
            Pool { inner }.renew(&to);
        }
    });
}

/// The engine holds no part of the pool: it ends with the last client handle and tunnel.
fn drive(engine: Engine, connections: Weak<Connections>, to: Destination, number: u64) {
    tokio::task::spawn_local(async move {
        // A turn is bounded by itself.
        unconstrained(engine).await;
        if let Some(connections) = connections.upgrade() {
            connections.remove(&to, number);
        }
    });
}

// === impl Slot ===

impl Slot {
    fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.flights.is_empty()
    }
}

// === impl Flight ===

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
    }
}
