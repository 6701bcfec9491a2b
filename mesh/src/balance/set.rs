//! The endpoints of one port of one service, dense: what may be chosen is a run of numbers, or a list of them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::Family;
use super::policy::{Circle, Place, Readiness};
use super::stats::EndpointStats;
use crate::names::Uid;
use crate::workload::Workload;

/// The sets of one service, each built when it is first asked for.
///
/// One of these is of one snapshot of the service's workloads: whoever changes those puts an empty one in its place. So a
/// change costs the writer nothing, and whoever chooses next builds the set again, once for all cores.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    ports: ArcSwapOption<Vec<(u16, Arc<PortSets>)>>,
    /// One builds, the others wait for it.
    building: Mutex<()>,
}

/// The endpoints of one port, and those of them with an address of one family where that is not all.
#[derive(Debug)]
pub(crate) struct PortSets {
    all: EndpointSet,
    v4: Option<EndpointSet>,
    v6: Option<EndpointSet>,
}

/// Endpoints of one port, those that may receive traffic first.
#[derive(Debug)]
pub(crate) struct EndpointSet {
    members: Box<[Member]>,
    ready: usize,
    /// By readiness and circle, made when a service first asks for it.
    buckets: [[OnceLock<Buckets>; 3]; 2],
    /// Where each is, made when a service with session affinity first asks for it.
    places: OnceLock<HashMap<Uid, usize>>,
}

/// Members by the name of their node, zone or region.
type Buckets = HashMap<Arc<str>, Vec<u32>>;

/// One endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) workload: Arc<Workload>,
    /// Where it serves the port.
    pub(crate) target: u16,
    /// It may receive traffic.
    pub(crate) ready: bool,
    pub(crate) stats: Arc<EndpointStats>,
}

/// Members among which one is chosen, by their places in a set.
#[derive(Clone, Debug)]
pub(crate) enum Tier<'a> {
    Run(Range<usize>),
    List(&'a [u32]),
}

// === impl Sets ===

impl Sets {
    /// Calls `f` with the sets of a port, which are built now if nobody has asked for them yet.
    pub(crate) fn with<T>(
        &self,
        port: u16,
        build: impl FnOnce() -> PortSets,
        f: impl FnOnce(&PortSets) -> T,
    ) -> T {
        let find = |built: Option<&Vec<(u16, Arc<PortSets>)>>| {
            let found = built?.iter().find(|(known, _)| *known == port);
            found.map(|(_, sets)| Arc::clone(sets))
        };
        {
            let built = self.ports.load();
            let known = built.as_ref().map(|built| built.iter());
            if let Some((_, sets)) = known.and_then(|mut known| known.find(|(p, _)| *p == port)) {
                return f(sets);
            }
        }
        let turn = self.building.lock();
        let built = self.ports.load_full();
        let sets = find(built.as_deref()).unwrap_or_else(|| {
            let new = Arc::new(build());
            let mut all = built.as_deref().cloned().unwrap_or_default();
            all.push((port, Arc::clone(&new)));
            self.ports.store(Some(Arc::new(all)));
            new
        });
        drop(turn);
        f(&sets)
    }
}

// === impl PortSets ===

impl PortSets {
    pub(crate) fn new(members: Vec<Member>) -> Self {
        let only = |family: Family| {
            let has = |member: &&Member| {
                let mut addresses = member.workload.addresses.iter();
                addresses.any(|ip| family.has(*ip))
            };
            let fits = members.iter().filter(has).count();
            let differs = fits < members.len();
            differs.then(|| EndpointSet::new(members.iter().filter(has).cloned().collect()))
        };
        Self {
            v4: only(Family::V4),
            v6: only(Family::V6),
            all: EndpointSet::new(members),
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
    fn new(mut members: Vec<Member>) -> Self {
        // Stable, and nothing to do where all are ready.
        members.sort_by_key(|member| !member.ready);
        let ready = members.partition_point(|member| member.ready);
        Self {
            members: members.into(),
            ready,
            buckets: Default::default(),
            places: OnceLock::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self, readiness: Readiness) -> usize {
        match readiness {
            Readiness::Ready => self.ready,
            Readiness::Any => self.members.len(),
        }
    }

    pub(super) fn member(&self, at: usize) -> Option<&Member> {
        self.members.get(at)
    }

    pub(super) fn find(&self, uid: &Uid, readiness: Readiness) -> Option<&Member> {
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
