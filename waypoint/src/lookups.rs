//! Clients that the mesh's state does not name: their addresses are asked for, once they have proved who they are.
//!
//! The controller tells a waypoint what it needs to serve, and clients may be anybody. Names of clients are wanted by
//! telemetry only, so everything here is bounded, and nobody waits for it for long.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh::xds::client::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

/// Addresses asked for at a time; the controller allows about as many.
const MAX_ASKED: usize = 4000;
/// New addresses a second, after as many at once as a rollout of clients brings.
const PER_SECOND: f64 = 20.0;
const BURST: f64 = 500.0;
/// A client that has not come for so long is nobody's any more.
const IDLE: Duration = Duration::from_secs(600);
/// How often idle ones are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often one core speaks of one client.
const REMIND: Duration = Duration::from_secs(60);
/// Clients that one core remembers; beyond it the memory starts anew, which costs only reminders.
const MAX_REMEMBERED: usize = 8192;
/// Words of the cores that wait. When there are more, a client is spoken of the next time that it comes.
const WAITING: usize = 1024;

/// A client that has proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Met {
    address: IpAddr,
    /// The mesh's state names it.
    named: bool,
}

/// How cores speak of clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lookups(mpsc::Sender<Met>);

/// One core's share: it speaks of each client now and then only.
#[derive(Debug)]
pub(crate) struct Clients {
    lookups: Lookups,
    spoken: RefCell<HashMap<IpAddr, (Instant, bool)>>,
}

/// Which addresses are asked for. Pure.
#[derive(Debug)]
struct Asked {
    last_met: HashMap<IpAddr, Instant>,
    tokens: f64,
    filled: Instant,
}

/// The task that asks.
#[derive(Debug)]
pub struct Asker(mpsc::Receiver<Met>);

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

    /// A client has proved who it is. True: it was not named, and is asked for just now.
    pub(crate) fn met(&self, address: IpAddr, named: bool) -> bool {
        let address = address.to_canonical();
        let now = Instant::now();
        let mut spoken = self.spoken.borrow_mut();
        let lately = |(at, as_named): &(Instant, bool)| now - *at < REMIND && *as_named == named;
        if spoken.get(&address).is_some_and(lately) {
            return false;
        }
        // Its owner lags, or has ended and the process with it.
        if self.lookups.0.try_send(Met { address, named }).is_err() {
            return false;
        }
        if spoken.len() >= MAX_REMEMBERED {
            spoken.clear();
        }
        spoken.insert(address, (now, named));
        !named
    }
}

// === impl Asker ===

impl Asker {
    /// Asks on this stream and gives up, for as long as the process lives.
    pub async fn run(mut self, stream: Handle) {
        let mut asked = Asked::new(Instant::now());
        let mut sweep = interval(SWEEP);
        loop {
            tokio::select! {
                word = self.0.recv() => match word {
                    Some(met) if asked.met(met, Instant::now()) => {
                        stream.ask_address(&name(met.address));
                    }
                    Some(_) => {}
                    None => break,
                },
                _ = sweep.tick() => for address in asked.idle(Instant::now()) {
                    stream.forget_address(&name(address));
                },
            }
        }
    }
}

/// `network/ip`, in the network without a name.
fn name(address: IpAddr) -> String {
    format!("/{address}")
}

// === impl Asked ===

impl Asked {
    fn new(now: Instant) -> Self {
        Self {
            last_met: HashMap::new(),
            tokens: BURST,
            filled: now,
        }
    }

    /// True: the address is to be asked for.
    fn met(&mut self, Met { address, named }: Met, now: Instant) -> bool {
        if let Some(last) = self.last_met.get_mut(&address) {
            *last = now;
            return false;
        }
        let passed = now.duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST);
        self.filled = now;
        if named || self.last_met.len() >= MAX_ASKED || self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        self.last_met.insert(address, now);
        true
    }

    /// Takes out what is to be given up.
    fn idle(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut idle = Vec::new();
        self.last_met.retain(|address, last| {
            let keep = now.duration_since(*last) < IDLE;
            if !keep {
                idle.push(*address);
            }
            keep
        });
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn met(number: u32, named: bool) -> Met {
        Met {
            address: ip(number),
            named,
        }
    }

    #[test]
    fn an_unknown_client_is_asked_for_once_and_given_up_when_it_stays_away() {
        let start = Instant::now();
        let mut asked = Asked::new(start);
        assert!(
            !asked.met(met(1, true), start),
            "it is named without asking"
        );
        assert!(asked.met(met(2, false), start));
        assert!(!asked.met(met(2, false), start));
        let later = start + IDLE - Duration::from_secs(1);
        assert!(asked.idle(later).is_empty());
        // It is named by now because it was asked for, and must stay asked for while it comes.
        assert!(!asked.met(met(2, true), later));
        assert!(asked.idle(start + IDLE).is_empty());
        assert_eq!(asked.idle(later + IDLE), [ip(2)]);
        assert!(asked.met(met(2, false), later + IDLE), "it came back");
    }

    #[test]
    fn a_client_of_many_addresses_does_not_list_the_mesh() {
        let start = Instant::now();
        let mut asked = Asked::new(start);
        let mut number = 0;
        let mut count = |asked: &mut Asked, now: Instant| {
            (0..1000)
                .filter(|_| {
                    number += 1;
                    asked.met(met(number, false), now)
                })
                .count()
        };
        assert_eq!(count(&mut asked, start), 500);
        assert_eq!(count(&mut asked, start + Duration::from_secs(2)), 40);
        for second in 1..1000 {
            count(&mut asked, start + Duration::from_secs(2 + second));
        }
        assert!(asked.last_met.len() <= MAX_ASKED);
    }

    #[test]
    fn a_core_speaks_of_a_client_once_a_minute() {
        let (tx, mut words) = mpsc::channel(4);
        let clients = Clients::new(Lookups(tx));
        assert!(clients.met(ip(1), false));
        assert!(!clients.met(ip(1), false), "just now");
        assert!(!clients.met(ip(1), true), "named: nobody waits");
        assert_eq!(words.try_recv(), Ok(met(1, false)));
        assert_eq!(words.try_recv(), Ok(met(1, true)));
        assert!(words.try_recv().is_err());
        for number in 2..10 {
            clients.met(ip(number), false);
        }
        // When nobody takes the words, the core goes on, and speaks again.
        assert!(!clients.met(ip(20), false));
        while words.try_recv().is_ok() {}
        assert!(clients.met(ip(20), false));
    }
}
