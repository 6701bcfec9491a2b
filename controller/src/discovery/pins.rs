//! What one waypoint's stream sees beyond its scope: addresses it asked for, and for a while what it no longer needs.
//!
//! A client may hear later than the waypoint that a service is no longer bound to it. Its requests are still served for
//! some seconds, for which the waypoint must know the service, so what leaves the scope stays visible for a while. What
//! is gone from the mesh goes at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use mesh::names::Network;
use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::xds::{Encoded, View};
use tokio::time::Instant;

use super::scope;
use super::snapshot::Snapshot;
use crate::index::names::Key;

/// Longer than a waypoint serves who has not heard of the change.
const LINGER: Duration = Duration::from_secs(30);
/// Addresses that one stream may have asked for at a time.
pub(super) const MAX_LOOKUPS: usize = 4096;

/// The addresses that one waypoint's stream sees.
#[derive(Debug)]
pub(super) struct Pins {
    waypoint: Key,
    /// Whose addresses may be asked for.
    network: Network,
    /// What was looked at last.
    scope: View,
    all: View,
    /// What the stream sees: the scope and what is pinned.
    target: View,
    /// Names as they were asked for, and whose they are.
    asked: BTreeMap<Arc<str>, Option<Arc<str>>>,
    /// How many of these a resource answers.
    answers: BTreeMap<Arc<str>, u32>,
    /// What left the scope, oldest first, and until when it is kept.
    left: VecDeque<(Instant, Arc<str>)>,
    lingering: BTreeMap<Arc<str>, Instant>,
}

// === impl Pins ===

impl Pins {
    /// Of a stream that has asked for nothing yet.
    pub(super) fn new(waypoint: Key, snapshot: &Snapshot) -> Self {
        let scope = snapshot.scope(&waypoint);
        Self {
            target: scope.clone(),
            scope,
            all: snapshot.addresses(),
            waypoint,
            network: snapshot.network().clone(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            left: VecDeque::new(),
            lingering: BTreeMap::new(),
        }
    }

    /// What the stream sees.
    pub(super) fn target(&self) -> &View {
        &self.target
    }

    /// When something is kept no longer.
    pub(super) fn next(&self) -> Option<Instant> {
        self.left.front().map(|(until, _)| *until)
    }

    /// Takes in what has changed and what time has passed. The cost is that of the changes.
    pub(super) fn advance(&mut self, snapshot: &Snapshot, now: Instant) {
        let before = std::mem::replace(&mut self.all, snapshot.addresses());
        self.follow_scope(snapshot, now);
        if !self.asked.is_empty() || !self.lingering.is_empty() {
            self.follow_all(&before, snapshot);
        }
        while let Some((until, _)) = self.left.front()
            && *until <= now
            && let Some((until, name)) = self.left.pop_front()
        {
            // It may have left once more since.
            if self.lingering.get(&name) == Some(&until) {
                self.lingering.remove(&name);
                self.settle(&name);
            }
        }
        if self.answers.is_empty() && self.lingering.is_empty() {
            // Shared with the other streams of this waypoint.
            self.target = self.scope.clone();
        }
    }

    /// Takes addresses that are asked for out of a request, as far as somebody has them; `allowed` counts them.
    ///
    /// What stays in the request is answered as what does not exist.
    pub(super) fn request(
        &mut self,
        request: &mut DeltaDiscoveryRequest,
        snapshot: &Snapshot,
        mut allowed: impl FnMut() -> bool,
    ) {
        for name in &request.resource_names_unsubscribe {
            if let Some(Some(whose)) = self.asked.remove(name.as_str()) {
                self.unanswer(&whose);
            }
        }
        request.resource_names_subscribe.retain(|name| {
            let Some(ip) = parse(name, &self.network) else {
                return true;
            };
            if self.asked.contains_key(name.as_str()) {
                return false;
            }
            if self.asked.len() >= MAX_LOOKUPS || !allowed() {
                tracing::debug!(waypoint = %self.waypoint, name, "too many addresses are asked for");
                return false;
            }
            let whose = snapshot.at(ip).cloned();
            self.asked.insert(name.as_str().into(), whose.clone());
            match whose {
                Some(whose) => {
                    self.answer(&whose);
                    false
                }
                None => true,
            }
        });
    }

    fn follow_scope(&mut self, snapshot: &Snapshot, now: Instant) {
        let before = std::mem::replace(&mut self.scope, snapshot.scope(&self.waypoint));
        if before.edition() == self.scope.edition() {
            return;
        }
        let scope = self.scope.clone();
        for difference in before.diff(&scope) {
            match difference {
                DiffItem::Add(name, new)
                | DiffItem::Update {
                    new: (name, new), ..
                } => self.show(name, Some(new)),
                DiffItem::Remove(name, _) => {
                    if self.all.contains_key(name) {
                        let until = now + LINGER;
                        self.left.push_back((until, name.clone()));
                        self.lingering.insert(name.clone(), until);
                    }
                    self.settle(name);
                }
            }
        }
    }

    fn follow_all(&mut self, before: &View, snapshot: &Snapshot) {
        if before.edition() == self.all.edition() {
            return;
        }
        let all = self.all.clone();
        for difference in before.diff(&all) {
            let (name, old, new) = match difference {
                DiffItem::Add(name, new) => (name, None, Some(new)),
                DiffItem::Update {
                    old: (_, old),
                    new: (name, new),
                } => (name, Some(old), Some(new)),
                DiffItem::Remove(name, old) => (name, Some(old), None),
            };
            self.ask_again(old, new, snapshot);
            if new.is_none() {
                self.lingering.remove(name);
            }
            self.settle(name);
        }
    }

    /// Addresses that came or went with a resource may be somebody else's now.
    fn ask_again(&mut self, old: Option<&Encoded>, new: Option<&Encoded>, snapshot: &Snapshot) {
        if self.asked.is_empty() {
            return;
        }
        let touched: BTreeSet<IpAddr> = scope::addresses(old, &self.network)
            .union(&scope::addresses(new, &self.network))
            .copied()
            .collect();
        for ip in touched {
            let Some(whose) = self.asked.get_mut(name(ip, &self.network).as_str()) else {
                continue;
            };
            let before = std::mem::replace(whose, snapshot.at(ip).cloned());
            let now = whose.clone();
            if before != now {
                if let Some(now) = now {
                    self.answer(&now);
                }
                if let Some(before) = before {
                    self.unanswer(&before);
                }
            }
        }
    }

    fn answer(&mut self, whose: &Arc<str>) {
        *self.answers.entry(whose.clone()).or_default() += 1;
        self.settle(whose);
    }

    fn unanswer(&mut self, whose: &Arc<str>) {
        match self.answers.get_mut(whose) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.answers.remove(whose)),
        }
        self.settle(whose);
    }

    /// Makes the target have a resource exactly if it is to be seen.
    fn settle(&mut self, name: &Arc<str>) {
        let pinned = self.answers.contains_key(name) || self.lingering.contains_key(name);
        let now = match self.scope.get(name) {
            Some(scoped) => Some(scoped),
            None => self.all.get(name).filter(|_| pinned),
        };
        let now = now.cloned();
        self.show(name, now.as_ref());
    }

    fn show(&mut self, name: &Arc<str>, now: Option<&Encoded>) {
        match now {
            Some(now) if self.target.get(name) != Some(now) => {
                self.target.edit().insert(name.clone(), now.clone());
            }
            None if self.target.contains_key(name) => {
                self.target.edit().remove(name);
            }
            Some(_) | None => {}
        }
    }
}

// === free ===

/// `network/ip`, as proxies ask for addresses. We have those of our own network.
fn parse(name: &str, network: &Network) -> Option<IpAddr> {
    let ip = name.strip_prefix(network.as_str())?.strip_prefix('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    // Another spelling would be another name.
    (self::name(ip, network) == name).then_some(ip)
}

fn name(ip: IpAddr, network: &Network) -> String {
    format!("{network}/{ip}")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_addresses_of_our_network_in_their_one_spelling() {
        let address: IpAddr = [10, 1, 2, 3].into();
        for (network, name, found) in [
            ("", "/10.1.2.3", true),
            ("", "east/10.1.2.3", false),
            ("east", "east/10.1.2.3", true),
            ("east", "/10.1.2.3", false),
            ("east", "eastern/10.1.2.3", false),
            ("east", "east10.1.2.3", false),
        ] {
            let found = found.then_some(address);
            assert_eq!(parse(name, &network.into()), found, "{name} in {network:?}");
        }
        assert!(parse("/fd00::7", &Network::default()).is_some());
        for bad in ["", "/", "10.1.2.3", "/fd00:0::7", "/x", "*", "ns/host"] {
            assert!(parse(bad, &Network::default()).is_none(), "{bad}");
        }
    }
    #[test]
    fn a_stream_keeps_so_many_addresses_and_room_for_others_when_it_gives_some_up() {
        let snapshot = Snapshot::default();
        let mut pins = Pins::new(Key::new("shop", "gate"), &snapshot);
        let names = |from: usize, to: usize| -> Vec<String> {
            let ip = |at: usize| Ipv4Addr::from(u32::try_from(at).expect("few"));
            (from..to)
                .map(|at| name(ip(at).into(), &Network::default()))
                .collect()
        };
        let mut ask = DeltaDiscoveryRequest {
            resource_names_subscribe: names(0, MAX_LOOKUPS + 10),
            ..DeltaDiscoveryRequest::default()
        };
        pins.request(&mut ask, &snapshot, || true);
        assert_eq!(ask.resource_names_subscribe, names(0, MAX_LOOKUPS));
        let mut exchange = DeltaDiscoveryRequest {
            resource_names_subscribe: names(MAX_LOOKUPS, MAX_LOOKUPS + 2),
            resource_names_unsubscribe: names(0, 1),
            ..DeltaDiscoveryRequest::default()
        };
        // Nobody has any of these: what was asked for keeps its place all the same.
        pins.request(&mut exchange, &snapshot, || true);
        let taken = names(MAX_LOOKUPS, MAX_LOOKUPS + 1);
        assert_eq!(exchange.resource_names_subscribe, taken);
    }
}
