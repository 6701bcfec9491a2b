//! Which endpoint takes a request: of two at random, the one that has less to do on this core.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hbone::{Destination, Expect};
use mesh::names::Uid;
use mesh::verdict::waypoint::To;
use mesh::workload::{Tunnel, Workload};
use mesh::world::{Endpoint, Snapshot};

use crate::upstream::Hop;

/// How many requests of this core each workload is answering now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load(Rc<RefCell<HashMap<Uid, u32>>>);

/// One request that a workload is answering; over when dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    load: Load,
    uid: Uid,
}

/// What the choice depends on besides the endpoints.
pub(crate) struct Asking<'a> {
    pub(crate) load: &'a Load,
    /// Workloads that were tried already.
    pub(crate) avoid: &'a [Uid],
    /// An address of this one's family is preferred where a workload has both.
    pub(crate) like: SocketAddr,
    pub(crate) http2: bool,
}

/// The endpoint that takes a request.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) workload: Arc<Workload>,
    pub(crate) hop: Hop,
}

/// Picks a healthy endpoint of `to`; `None`: there is none.
pub(crate) fn pick(
    world: &Snapshot,
    to: &To,
    asking: &Asking<'_>,
    roll: &mut fastrand::Rng,
) -> Option<Chosen> {
    let fresh = |workload: &Workload| !asking.avoid.contains(&workload.uid);
    let (workload, ip, port) = match to {
        To::Service { service, port } => {
            let may = |endpoint: &Endpoint| {
                (endpoint.healthy || service.publish_not_ready) && fresh(&endpoint.workload)
            };
            let candidates = world
                .endpoints(&service.id, *port)
                .filter(may)
                .filter_map(|endpoint| Some((address(&endpoint.workload, asking.like)?, endpoint)));
            let load = |(_, endpoint): &(IpAddr, Endpoint)| asking.load.of(&endpoint.workload.uid);
            let (ip, endpoint) = choose(candidates, load, roll)?;
            (endpoint.workload, ip, endpoint.target)
        }
        // The pod itself was asked for: healthy or not.
        To::Workload { workload, port } => {
            let workload = world
                .workload(&workload.uid)
                .filter(|workload| fresh(workload))?;
            (Arc::clone(workload), address(workload, asking.like)?, *port)
        }
    };
    let tunnel = (workload.protocol == Tunnel::Hbone).then(|| Destination {
        addr: SocketAddr::new(ip, hbone::PORT),
        expect: Expect::one(workload.identity()),
        workload: Arc::from(workload.uid.as_str()),
    });
    let hop = Hop {
        target: SocketAddr::new(ip, port),
        uid: workload.uid.clone(),
        tunnel,
        http2: asking.http2,
    };
    Some(Chosen { workload, hop })
}

fn address(workload: &Workload, like: SocketAddr) -> Option<IpAddr> {
    let same = workload
        .addresses
        .iter()
        .find(|ip| ip.is_ipv4() == like.is_ipv4());
    same.or(workload.addresses.first()).copied()
}

/// Chooses among `candidates`: two of them at random, then the one with less to do.
pub(crate) fn choose<T>(
    candidates: impl Iterator<Item = T>,
    load: impl Fn(&T) -> u32,
    roll: &mut fastrand::Rng,
) -> Option<T> {
    let (mut one, mut other) = (None, None);
    // A reservoir of two: each pair is as likely as any other, without a list of all.
    for (seen, candidate) in candidates.enumerate() {
        match seen {
            0 => one = Some(candidate),
            1 => other = Some(candidate),
            _ => match roll.usize(..=seen) {
                0 => one = Some(candidate),
                1 => other = Some(candidate),
                _ => {}
            },
        }
    }
    let (Some(a), Some(b)) = (&one, &other) else {
        return one;
    };
    let (first, second) = (load(a), load(b));
    let take_first = first < second || (first == second && roll.bool());
    if take_first { one } else { other }
}

// === impl Load ===

impl Load {
    /// What a workload has to do.
    pub(crate) fn of(&self, uid: &Uid) -> u32 {
        self.0.borrow().get(uid).copied().unwrap_or(0)
    }

    /// Gives a workload one more.
    pub(crate) fn take(&self, uid: Uid) -> InFlight {
        *self.0.borrow_mut().entry(uid.clone()).or_default() += 1;
        InFlight {
            load: self.clone(),
            uid,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut all = self.load.0.borrow_mut();
        if let Some(count) = all.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of `n` candidates is chosen in 10 000 rounds.
    fn counts(n: usize, load: impl Fn(&usize) -> u32) -> Vec<u32> {
        let mut roll = fastrand::Rng::with_seed(7);
        let mut counts = vec![0; n];
        for _ in 0..10_000 {
            if let Some(chosen) = choose(0..n, &load, &mut roll) {
                counts[chosen] += 1;
            }
        }
        counts
    }

    #[test]
    fn without_load_every_candidate_has_the_same_share() {
        for n in [1, 2, 3, 10] {
            let share = 10_000 / u32::try_from(n).expect("few");
            for count in counts(n, |_| 0) {
                assert!(
                    count.abs_diff(share) <= share / 8,
                    "{count} of {share} among {n}"
                );
            }
        }
    }

    #[test]
    fn the_busiest_is_never_chosen_where_there_is_another() {
        assert_eq!(counts(2, |which| u32::from(*which == 0)), [0, 10_000]);
        assert_eq!(counts(5, |which| u32::from(*which == 3))[3], 0);
        assert!(choose(0..0, |_: &usize| 0, &mut fastrand::Rng::with_seed(7)).is_none());
    }

    #[test]
    fn what_is_answered_no_longer_counts() {
        let load = Load::default();
        let uid = Uid::from("a");
        let (first, second) = (load.take(uid.clone()), load.take(uid.clone()));
        assert_eq!(load.of(&uid), 2);
        drop(first);
        assert_eq!(load.of(&uid), 1);
        drop(second);
        assert_eq!(load.of(&uid), 0);
        assert!(load.0.borrow().is_empty());
    }
}
