//! Which clients' addresses are asked for, when again, and when no more. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use hbone::SpiffeId;
use tokio::time::Instant;

use super::REMIND;

/// Addresses asked for at a time; the controller allows about as many.
const MAX_ASKED: usize = 4000;
/// Of these, one identity's: the others' clients are named, too.
const MAX_OF_ONE: usize = MAX_ASKED / 2;
/// New addresses a second, after as many at once as a rollout of clients brings.
const PER_SECOND: f64 = 20.0;
const BURST: f64 = 500.0;
/// Asking again is for when this much is left: new clients go first.
const SPARE: f64 = BURST / 2.0;
/// A client without a name is asked for again after this, then after twice as long. Less than the time between two
/// reminders of it, so that the first of them counts.
const PATIENCE: Duration = Duration::from_secs(REMIND.as_secs() * 3 / 4);
/// A client that has not come for so long is nobody's any more.
pub(super) const IDLE: Duration = Duration::from_secs(600);

/// A client that has proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Met {
    /// Where its connection comes from.
    pub(super) address: IpAddr,
    pub(super) id: SpiffeId,
    /// The mesh's state names it.
    pub(super) named: bool,
}

/// What is to be done about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its address is to be asked for.
    Ask,
    /// Once more.
    AskAgain,
    /// It is asked for, since then.
    Asked(Instant),
    /// It has a name, or there is no room for it.
    LetBe,
}

/// The addresses that are asked for.
#[derive(Debug)]
pub(super) struct Asked {
    addresses: HashMap<IpAddr, Entry>,
    /// How many are asked for because of each identity.
    shares: HashMap<SpiffeId, usize>,
    tokens: f64,
    filled: Instant,
}

/// An address that is asked for.
#[derive(Debug)]
struct Entry {
    because_of: SpiffeId,
    last_met: Instant,
    asked: Instant,
    /// How long after that it is asked for again, if it has no name.
    patience: Duration,
}

// === impl Asked ===

impl Asked {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            addresses: HashMap::new(),
            shares: HashMap::new(),
            tokens: BURST,
            filled: now,
        }
    }

    /// Whether it is still asked for.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Takes in that a client was met.
    pub(super) fn met(&mut self, met: Met, now: Instant) -> Verdict {
        let passed = now.duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST);
        self.filled = now;
        if let Some(entry) = self.addresses.get_mut(&met.address) {
            entry.last_met = now;
            if met.named {
                entry.patience = PATIENCE;
            } else if now - entry.asked >= entry.patience && self.tokens >= SPARE {
                self.tokens -= 1.0;
                entry.asked = now;
                entry.patience = (entry.patience * 2).min(IDLE);
                return Verdict::AskAgain;
            }
            return Verdict::Asked(entry.asked);
        }
        let share = self.shares.get(&met.id).copied().unwrap_or_default();
        let is_full = self.addresses.len() >= MAX_ASKED || share >= MAX_OF_ONE;
        if met.named || is_full || self.tokens < 1.0 {
            return Verdict::LetBe;
        }
        self.tokens -= 1.0;
        self.shares.insert(met.id.clone(), share + 1);
        let entry = Entry {
            because_of: met.id,
            last_met: now,
            asked: now,
            patience: PATIENCE,
        };
        self.addresses.insert(met.address, entry);
        Verdict::Ask
    }

    /// Takes out what is to be given up.
    pub(super) fn idle(&mut self, now: Instant) -> Vec<IpAddr> {
        let Self {
            addresses, shares, ..
        } = self;
        let is_idle = |_: &IpAddr, entry: &mut Entry| now.duration_since(entry.last_met) >= IDLE;
        let idle = addresses.extract_if(is_idle).map(|(address, entry)| {
            if let Some(share) = shares.get_mut(&entry.because_of) {
                *share -= 1;
                if *share == 0 {
                    shares.remove(&entry.because_of);
                }
            }
            address
        });
        idle.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: &str = "one";
    const OTHER: &str = "other";

    fn ip(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn id(account: &str) -> SpiffeId {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        id.parse().expect("an id")
    }

    fn of(account: &str, number: u32, named: bool) -> Met {
        Met {
            address: ip(number),
            id: id(account),
            named,
        }
    }

    fn met(number: u32, named: bool) -> Met {
        of(ONE, number, named)
    }

    #[test]
    fn an_unknown_client_is_asked_for_once_and_given_up_when_it_stays_away() {
        let start = Instant::now();
        let mut asked = Asked::new(start);
        assert_eq!(
            asked.met(met(1, true), start),
            Verdict::LetBe,
            "it is named without asking"
        );
        assert_eq!(asked.met(met(2, false), start), Verdict::Ask);
        assert_eq!(asked.met(met(2, false), start), Verdict::Asked(start));
        let later = start + IDLE - Duration::from_secs(1);
        assert!(asked.idle(later).is_empty());
        // It is named by now because it was asked for, and must stay asked for while it comes.
        assert_eq!(asked.met(met(2, true), later), Verdict::Asked(start));
        assert!(asked.idle(start + IDLE).is_empty());
        assert_eq!(asked.idle(later + IDLE), [ip(2)]);
        assert!(asked.shares.is_empty());
        assert_eq!(
            asked.met(met(2, false), later + IDLE),
            Verdict::Ask,
            "it came back"
        );
    }

    #[test]
    fn who_has_no_name_yet_is_asked_for_again_later_each_time() {
        let start = Instant::now();
        let mut asked = Asked::new(start);
        asked.met(met(1, false), start);
        let mut again = Vec::new();
        for minute in 1..=30 {
            let now = start + REMIND * minute;
            if asked.met(met(1, false), now) == Verdict::AskAgain {
                again.push(minute);
            }
        }
        assert_eq!(again, [1, 3, 6, 12, 22]);
        // It got one, and lost it with a replica that was asked too much.
        asked.met(met(1, true), start + REMIND * 31);
        let lost = start + REMIND * 32;
        assert_eq!(asked.met(met(1, false), lost), Verdict::AskAgain);
        // Those who are new go first.
        asked.tokens = SPARE - 1.0;
        let now = lost + REMIND;
        asked.filled = now;
        assert_eq!(asked.met(met(1, false), now), Verdict::Asked(lost));
        assert_eq!(asked.met(met(2, false), now), Verdict::Ask);
    }

    #[test]
    fn a_client_of_many_addresses_does_not_list_the_mesh() {
        let start = Instant::now();
        let mut asked = Asked::new(start);
        let mut number = 0;
        let id = id(ONE);
        let mut count = |asked: &mut Asked, now: Instant| {
            (0..1000)
                .filter(|_| {
                    number += 1;
                    let (address, id) = (ip(number), id.clone());
                    let named = false;
                    asked.met(Met { address, id, named }, now) == Verdict::Ask
                })
                .count()
        };
        assert_eq!(count(&mut asked, start), 500);
        assert_eq!(count(&mut asked, start + Duration::from_secs(2)), 40);
        let mut now = start;
        for second in 1..1000 {
            now = start + Duration::from_secs(2 + second);
            count(&mut asked, now);
        }
        assert_eq!(asked.addresses.len(), MAX_OF_ONE);
        // Others are named, too.
        assert_eq!(asked.met(of(OTHER, number + 1, false), now), Verdict::Ask);
    }
}
