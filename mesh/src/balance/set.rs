//! The endpoints of one port of one service, dense: what may be chosen is a run of numbers, or a list of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::Family;
use super::policy::{Circle, Place, Readiness};
use super::stats::EndpointStats;
use crate::names::Uid;
use crate::workload::{Standing, Tunnel, Workload};

/// The sets of one service, each built when it is first asked for.
///
/// One of these is of one snapshot of the service's workloads: whoever changes those puts the [`next`](Self::next) in its
/// place. So a change costs the writer next to nothing, and whoever chooses next builds the set again, once for all cores, from the
/// one before: what is the same is not looked at.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    ports: ArcSwapOption<Built>,
    /// What was built of the snapshots before. One builds, the others wait for it.
    before: Mutex<Built>,
    /// Changes since anything was built.
    changes: u32,
}

/// After so many changes nobody seems to choose among these endpoints any more, and what was built of them is given up: it
/// holds workloads that have gone.
const KEPT_FOR: u32 = 1_000;

type Built = Vec<(u16, Arc<PortSets>)>;

/// The endpoints of one port, and those of them with an address of one family where that is not all.
#[derive(Debug)]
pub(crate) struct PortSets {
    all: EndpointSet,
    v4: Option<EndpointSet>,
    v6: Option<EndpointSet>,
}

/// Endpoints of one port: those that may receive traffic, then those that may where no other may, then those that may not,
/// then those that the mesh waits for.
#[derive(Debug)]
pub(crate) struct EndpointSet {
    /// Each part in the order of the workloads' uids.
    members: Box<[Arc<Member>]>,
    ready: usize,
    /// How many more are on their way out, and serve until then.
    draining: usize,
    /// How many can be reached, ready or not.
    reachable: usize,
    /// By readiness and circle, made when a service first asks for it.
    buckets: [[OnceLock<Buckets>; 3]; 2],
    /// Where each is, made when a service with session affinity first asks for it.
    places: OnceLock<HashMap<Uid, usize>>,
}

/// Members by the name of their node, zone or region.
type Buckets = HashMap<Arc<str>, Vec<u32>>;

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) workload: Arc<Workload>,
    /// Somebody only wrote down that it is there.
    pub(crate) said: bool,
    /// Where it serves the port.
    pub(crate) target: u16,
    pub(crate) stats: Arc<EndpointStats>,
    /// The first of each family: kept here, because what is elsewhere is in no cache.
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

/// Members among which one is chosen, by their places in a set.
#[derive(Clone, Debug)]
pub(crate) enum Tier<'a> {
    Run(Range<usize>),
    List(&'a [u32]),
}

/// The members of the set before, to be taken over in the order of their uids.
pub(crate) struct Reused<'a>([&'a [Arc<Member>]; 4]);

// === impl Sets ===

impl Sets {
    /// Calls `f` with the sets of a port, which are built now if nobody has asked for them yet.
    pub(crate) fn with<T>(
        &self,
        port: u16,
        build: impl FnOnce(Reused<'_>) -> Vec<Arc<Member>>,
        f: impl FnOnce(&PortSets) -> T,
    ) -> T {
        if let Some(built) = &*self.ports.load()
            && let Some(sets) = find(built, port)
        {
            return f(sets);
        }
        f(&self.build(port, build))
    }

    fn build(
        &self,
        port: u16,
        build: impl FnOnce(Reused<'_>) -> Vec<Arc<Member>>,
    ) -> Arc<PortSets> {
        let mut before = self.before.lock();
        let built = self.ports.load_full();
        let built = built.as_deref().map(Vec::as_slice).unwrap_or_default();
        if let Some(sets) = find(built, port) {
            return Arc::clone(sets);
        }
        let old = find(&before, port).map(|sets| &sets.all);
        let new = Arc::new(PortSets::new(build(Reused::of(old))));
        let mut all = built.to_vec();
        all.push((port, Arc::clone(&new)));
        self.ports.store(Some(Arc::new(all)));
        before.retain(|(known, _)| *known != port);
        new
    }

    /// For the snapshot after this one.
    pub(crate) fn next(&self) -> Self {
        let mut before = self.before.lock().clone();
        let built = self.ports.load();
        let changes = match &*built {
            Some(built) => {
                before.extend(built.iter().cloned());
                0
            }
            None => self.changes.saturating_add(1),
        };
        if changes > KEPT_FOR {
            before = Built::new();
        }
        Self {
            ports: ArcSwapOption::empty(),
            before: Mutex::new(before),
            changes,
        }
    }
}

fn find(built: &[(u16, Arc<PortSets>)], port: u16) -> Option<&Arc<PortSets>> {
    let found = built.iter().find(|(known, _)| *known == port);
    found.map(|(_, sets)| sets)
}

// === impl Reused ===

impl<'a> Reused<'a> {
    fn of(set: Option<&'a EndpointSet>) -> Self {
        Self(match set {
            Some(set) => {
                let (reachable, awaited) = set.members.split_at(set.reachable);
                let (ready, others) = reachable.split_at(set.ready);
                let (draining, rest) = others.split_at(set.draining);
                [ready, draining, rest, awaited]
            }
            None => [&[]; 4],
        })
    }

    /// The member that this very workload was. To be asked in the order of uids.
    pub(crate) fn take(&mut self, workload: &Arc<Workload>) -> Option<Arc<Member>> {
        self.0.iter_mut().find_map(|run| {
            let is = |member: &Arc<Member>| Arc::ptr_eq(&member.workload, workload);
            // Those before it have gone. Mostly nobody has, and no names are compared.
            while run
                .first()
                .is_some_and(|first| !is(first) && first.workload.uid < workload.uid)
            {
                *run = &run[1..];
            }
            let (first, rest) = run.split_first().filter(|(first, _)| is(first))?;
            *run = rest;
            Some(Arc::clone(first))
        })
    }
}

// === impl PortSets ===

impl PortSets {
    /// Of members in the order of their uids.
    pub(crate) fn new(members: Vec<Arc<Member>>) -> Self {
        let only = |family: Family| {
            let fits = |member: &&Arc<Member>| member.address(family).is_some();
            let differs = !members
                .iter()
                .all(|member| member.address(family).is_some());
            differs.then(|| EndpointSet::new(members.iter().filter(fits).cloned()))
        };
        Self {
            v4: only(Family::V4),
            v6: only(Family::V6),
            all: EndpointSet::new(members.into_iter()),
        }
    }

    /// All endpoints.
    pub(crate) fn all(&self) -> &EndpointSet {
        &self.all
    }

    /// Those with an address of a family, where they are not all.
    pub(super) fn only(&self, family: Family) -> Option<&EndpointSet> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

// === impl EndpointSet ===

impl EndpointSet {
    fn new(all: impl Iterator<Item = Arc<Member>>) -> Self {
        let (mut members, mut rest) = (Vec::with_capacity(all.size_hint().0), Vec::new());
        let (mut leaving, mut awaited) = (Vec::new(), Vec::new());
        for member in all {
            match &*member.workload {
                workload if workload.protocol == Tunnel::Awaited => awaited.push(member),
                workload if workload.healthy => members.push(member),
                workload if workload.draining => leaving.push(member),
                _ => rest.push(member),
            }
        }
        let (ready, draining) = (members.len(), leaving.len());
        members.append(&mut leaving);
        members.append(&mut rest);
        let reachable = members.len();
        members.append(&mut awaited);
        Self {
            members: members.into(),
            ready,
            draining,
            reachable,
            buckets: Default::default(),
            places: OnceLock::new(),
        }
    }

    /// How many may be chosen.
    pub(crate) fn len(&self, readiness: Readiness) -> usize {
        match readiness {
            // As kube-proxy does it (KEP-1669): nobody loses a request because the last endpoint is about to go.
            Readiness::Ready if self.ready == 0 => self.draining,
            Readiness::Ready => self.ready,
            Readiness::Any => self.reachable,
        }
    }

    /// Whether some are to be in the mesh and are not there: nobody of the mesh may choose them.
    pub(crate) fn awaits_some(&self) -> bool {
        self.reachable < self.members.len()
    }

    pub(super) fn member(&self, at: usize) -> Option<&Member> {
        self.members.get(at).map(|member| &**member)
    }

    pub(crate) fn find(&self, uid: &Uid, readiness: Readiness) -> Option<&Member> {
        let places = self.places.get_or_init(|| {
            let uids = self.members.iter().map(|m| m.workload.uid.clone());
            uids.zip(0..).collect()
        });
        let at = places.get(uid).filter(|at| **at < self.len(readiness))?;
        self.member(*at)
    }

    /// Those in a circle around a client.
    pub(super) fn tier(&self, circle: Circle, place: Place<'_>, readiness: Readiness) -> Tier<'_> {
        let (which, name) = match (circle, place.name(circle)) {
            (Circle::Node, Some(name)) => (0, name),
            (Circle::Zone, Some(name)) => (1, name),
            (Circle::Region, Some(name)) => (2, name),
            (Circle::Everywhere, _) | (_, None) => return Tier::Run(0..self.len(readiness)),
        };
        let kept = match readiness {
            Readiness::Ready => &self.buckets[0][which],
            Readiness::Any => &self.buckets[1][which],
        };
        let buckets = kept.get_or_init(|| self.bucket(circle, readiness));
        // What is not known is near nobody.
        let found = buckets.get(name).filter(|_| !name.is_empty());
        Tier::List(found.map(Vec::as_slice).unwrap_or_default())
    }

    fn bucket(&self, circle: Circle, readiness: Readiness) -> Buckets {
        let mut buckets = Buckets::new();
        for (at, member) in (0..).zip(self.members.iter().take(self.len(readiness))) {
            let name = member.name(circle);
            match buckets.get_mut(name) {
                Some(bucket) => bucket.push(at),
                None => drop(buckets.insert(Arc::clone(name), vec![at])),
            }
        }
        buckets
    }
}

// === impl Member ===

impl Member {
    pub(crate) fn new(workload: &Arc<Workload>, target: u16, stats: Arc<EndpointStats>) -> Self {
        let first = |family: Family| workload.addresses.iter().find(|ip| family.has(**ip));
        Self {
            v4: first(Family::V4).copied(),
            v6: first(Family::V6).copied(),
            workload: Arc::clone(workload),
            said: workload.standing() == Standing::Said,
            target,
            stats,
        }
    }

    /// Its address of a family.
    pub(crate) fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Whether it is in a circle around a client.
    pub(super) fn is_in(&self, circle: Circle, place: Place<'_>) -> bool {
        let name = place.name(circle);
        name.is_none_or(|name| !name.is_empty() && **self.name(circle) == *name)
    }

    fn name(&self, circle: Circle) -> &Arc<str> {
        let location = &self.workload.location;
        match circle {
            Circle::Node => &location.node,
            Circle::Zone => &location.zone,
            Circle::Region | Circle::Everywhere => &location.region,
        }
    }
}

// === impl Tier ===

impl Tier<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::List(list) => list.len(),
        }
    }

    /// The place in the set of the `n`th.
    pub(super) fn at(&self, n: usize) -> usize {
        match self {
            Self::Run(run) => run.start + n,
            Self::List(list) => list.get(n).map_or(usize::MAX, |at| *at as usize),
        }
    }
}
