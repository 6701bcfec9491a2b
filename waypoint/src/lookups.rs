//! Clients that the mesh's state does not name: their addresses are asked for, once they have proved who they are.
//!
//! The controller tells a waypoint what it needs to serve, and clients may be anybody. Names of clients are wanted by
//! telemetry, and by Services whose endpoints are to be near them, so everything here is bounded, and nobody waits for it
//! for long, nor where no answer can come.
//!
//! Asked for is where a peer's connection comes from, never what is only claimed: names are few, and shared by all.

mod asked;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use hbone::Peer;
use mesh::names::Network;
use mesh::xds::client::{Handle, State};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval};

use self::asked::{Asked, Met, Verdict};

/// How often idle ones are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often one core speaks of one client. One that has no name by then is asked for again, later each time: the
/// controller may have had too many questions when it was asked first.
const REMIND: Duration = Duration::from_secs(60);
/// To be asked for again, an address must first have been given up on the stream.
const GIVEN_UP: Duration = Duration::from_secs(1);
/// The first tunnel of a client that is asked for waits this long for its name: some round trips to the controller.
/// When there is no answer, the identity that it proved has to do.
pub(crate) const NAMED_WITHIN: Duration = Duration::from_millis(50);
/// Clients that one core remembers; beyond it the memory starts anew, which costs only reminders.
const MAX_REMEMBERED: usize = 8192;
/// Words of the cores that wait. When there are more, a client is spoken of the next time that it comes.
const WAITING: usize = 1024;

/// Who can be asked for addresses.
pub trait Directory {
    /// Whether answers can come now.
    fn answers(&self) -> bool;
    /// Asks for `name` (`network/ip`), until it is forgotten.
    fn ask(&self, name: &str);
    /// Nobody needs that name any more.
    fn forget(&self, name: &str);
}

/// A core's word: whom it has met, and whom to tell whether a name may come soon.
#[derive(Debug)]
struct Word(Met, oneshot::Sender<Hope>);

/// Whether it is worth while to wait for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hope {
    /// It was asked for just now.
    Soon,
    /// It is known, or cannot be, or was asked for long ago.
    None,
}

/// How cores speak of clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lookups(mpsc::Sender<Word>);

/// One core's share: it speaks of each client now and then only.
#[derive(Debug)]
pub(crate) struct Clients {
    lookups: Lookups,
    spoken: RefCell<HashMap<IpAddr, (Instant, bool)>>,
}

/// The task that asks.
#[derive(Debug)]
pub struct Asker(mpsc::Receiver<Word>);

/// Cores speak through the one, the other asks.
pub fn lookups() -> (Lookups, Asker) {
    let (words, heard) = mpsc::channel(WAITING);
    (Lookups(words), Asker(heard))
}

// === impl Clients ===

impl Clients {
    /// One core's.
    pub(crate) fn new(lookups: Lookups) -> Self {
        Self {
            lookups,
            spoken: RefCell::default(),
        }
    }

    /// A client has proved who it is. Says soon whether its name may come, if it has none and may get one.
    pub(crate) fn met(&self, peer: &Peer, named: bool) -> Option<oneshot::Receiver<Hope>> {
        let address = peer.addr.ip().to_canonical();
        let now = Instant::now();
        let mut spoken = self.spoken.borrow_mut();
        let lately = |(at, as_named): &(Instant, bool)| now - *at < REMIND && *as_named == named;
        if spoken.get(&address).is_some_and(lately) {
            return None;
        }
        let met = Met {
            address,
            id: peer.id.clone(),
            named,
        };
        let (say, hope) = oneshot::channel();
        // Its owner lags, or has ended and the process with it.
        if self.lookups.0.try_send(Word(met, say)).is_err() {
            return None;
        }
        if spoken.len() >= MAX_REMEMBERED {
            spoken.clear();
        }
        spoken.insert(address, (now, named));
        (!named).then_some(hope)
    }
}

// === impl Asker ===

impl Asker {
    /// Asks there for addresses of our `network`, and gives up, for as long as the process lives.
    pub async fn run(mut self, directory: impl Directory, network: Network) {
        let mut asked = Asked::new(Instant::now());
        let mut given_up = Vec::new();
        let (mut sweep, mut again) = (interval(SWEEP), interval(GIVEN_UP));
        let name = |address: IpAddr| format!("{network}/{address}");
        loop {
            tokio::select! {
                word = self.0.recv() => {
                    let Some(Word(met, say)) = word else { break };
                    let (address, now) = (met.address, Instant::now());
                    let verdict = asked.met(met, now);
                    match verdict {
                        Verdict::Ask => directory.ask(&name(address)),
                        Verdict::AskAgain => {
                            directory.forget(&name(address));
                            given_up.push((now, address));
                        }
                        Verdict::Asked(_) | Verdict::LetBe => {}
                    }
                    // A core that waits no longer need not know.
                    let _ = say.send(verdict.hope(directory.answers(), now));
                }
                now = again.tick(), if !given_up.is_empty() => given_up.retain(|(since, address)| {
                    let due = now - *since >= GIVEN_UP;
                    if due && asked.contains(*address) {
                        directory.ask(&name(*address));
                    }
                    !due
                }),
                now = sweep.tick() => for address in asked.idle(now) {
                    directory.forget(&name(address));
                },
            }
        }
    }
}

impl Directory for Handle {
    fn answers(&self) -> bool {
        *self.state().borrow() == State::Connected
    }

    fn ask(&self, name: &str) {
        self.ask_address(name);
    }

    fn forget(&self, name: &str) {
        self.forget_address(name);
    }
}

// === impl Verdict ===

impl Verdict {
    fn hope(self, answers: bool, now: Instant) -> Hope {
        match self {
            Self::Ask if answers => Hope::Soon,
            // Another core's tunnel has just had it asked for.
            Self::Asked(since) if answers && now - since < NAMED_WITHIN => Hope::Soon,
            Self::Ask | Self::AskAgain | Self::Asked(_) | Self::LetBe => Hope::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::rc::Rc;

    use hbone::SpiffeId;
    use tokio::task::LocalSet;

    use super::asked::IDLE;
    use super::*;

    fn ip(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn id() -> SpiffeId {
        "spiffe://cluster.local/ns/shop/sa/one"
            .parse()
            .expect("an id")
    }

    fn met(number: u32, named: bool) -> Met {
        Met {
            address: ip(number),
            id: id(),
            named,
        }
    }

    fn peer(number: u32) -> Peer {
        Peer {
            id: id(),
            addr: (ip(number), 40_000).into(),
        }
    }

    #[test]
    fn a_core_speaks_of_a_client_once_a_minute() {
        let (tx, mut words) = mpsc::channel(4);
        let clients = Clients::new(Lookups(tx));
        assert!(clients.met(&peer(1), false).is_some());
        assert!(clients.met(&peer(1), false).is_none(), "just now");
        assert!(clients.met(&peer(1), true).is_none(), "named: nobody waits");
        for named in [false, true] {
            let Word(said, _) = words.try_recv().expect("a word");
            assert_eq!(said, met(1, named));
        }
        assert!(words.try_recv().is_err());
        for number in 2..10 {
            clients.met(&peer(number), false);
        }
        // When nobody takes the words, the core goes on, and speaks again.
        assert!(clients.met(&peer(20), false).is_none());
        while words.try_recv().is_ok() {}
        assert!(clients.met(&peer(20), false).is_some());
    }

    /// What was asked for and given up, and whether answers can come.
    #[derive(Clone, Default)]
    struct Book(Rc<RefCell<(bool, Vec<String>)>>);

    impl Directory for Book {
        fn answers(&self) -> bool {
            self.0.borrow().0
        }

        fn ask(&self, name: &str) {
            self.0.borrow_mut().1.push(format!("+{name}"));
        }

        fn forget(&self, name: &str) {
            self.0.borrow_mut().1.push(format!("-{name}"));
        }
    }

    impl Book {
        fn said(&self) -> Vec<String> {
            std::mem::take(&mut self.0.borrow_mut().1)
        }
    }

    async fn hope(core: &Clients, number: u32) -> Option<Hope> {
        Some(core.met(&peer(number), false)?.await.expect("the asker"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_once_and_only_for_an_answer_that_can_come() {
        let (lookups, asker) = lookups();
        let cores = [(); 4].map(|()| Clients::new(lookups.clone()));
        let book = Book::default();
        let test = async {
            let directory = book.clone();
            tokio::task::spawn_local(asker.run(directory, "west".into()));
            // Nobody answers: it is asked for, and nobody waits.
            assert_eq!(hope(&cores[0], 1).await, Some(Hope::None));
            assert_eq!(book.said(), ["+west/10.0.0.1"]);
            book.0.borrow_mut().0 = true;
            assert_eq!(hope(&cores[0], 2).await, Some(Hope::Soon));
            assert_eq!(hope(&cores[0], 2).await, None);
            assert_eq!(hope(&cores[1], 2).await, Some(Hope::Soon), "at that moment");
            tokio::time::advance(NAMED_WITHIN).await;
            assert_eq!(hope(&cores[2], 2).await, Some(Hope::None), "too late");
            assert_eq!(book.said(), ["+west/10.0.0.2"]);
            // A minute later it still has no name: it is asked for again, and nobody waits.
            tokio::time::advance(REMIND).await;
            assert_eq!(hope(&cores[0], 2).await, Some(Hope::None));
            assert_eq!(book.said(), ["-west/10.0.0.2"]);
            tokio::time::sleep(GIVEN_UP * 2).await;
            assert_eq!(book.said(), ["+west/10.0.0.2"]);
            assert_eq!(hope(&cores[3], 2).await, Some(Hope::None));
            // Both stay away.
            tokio::time::sleep(IDLE + SWEEP).await;
            let mut left = book.said();
            left.sort();
            assert_eq!(left, ["-west/10.0.0.1", "-west/10.0.0.2"]);
        };
        LocalSet::new().run_until(test).await;
    }
}
