//! What is measured, and what it amounts to: sums of slices in, figures out. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::echo::{BenchSummary, Histogram};

/// How connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// Between pods that are not in the mesh.
    Plain,
    /// Through the ztunnels of two nodes.
    L4,
    /// Through a waypoint, too.
    Waypoint,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Load {
    /// One request at a time, on a connection that stays.
    One,
    /// Sixteen at a time.
    Sixteen,
    /// A connection for each request, four at a time.
    Fresh,
    /// Large answers, one after another.
    Bulk,
}

/// Whose proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tree {
    /// This workspace's.
    Now,
    /// Those of the earlier commit.
    Previous,
}

/// CPU time of the mesh's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    /// Of all ztunnels.
    pub(super) ztunnels: Duration,
    /// Of the waypoint's pods.
    pub(super) waypoints: Duration,
}

/// Resident memory in bytes, of the largest process of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// A ztunnel's.
    pub(super) ztunnel: u64,
    /// A waypoint's.
    pub(super) waypoint: u64,
}

/// All slices of one load on one way in one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    requests: u64,
    bytes: u64,
    /// Requests that failed.
    pub(super) failed: u64,
    wall: Duration,
    client: Duration,
    mesh: Cpu,
    machine: Duration,
    latencies: Histogram,
}

/// Everything once, with one tree's proxies.
#[derive(Clone, Debug)]
pub(super) struct Round {
    /// Which one; two trees share a number, and are compared by it.
    pub(super) number: usize,
    /// Whose proxies.
    pub(super) tree: Tree,
    /// What was done.
    pub(super) sums: BTreeMap<(Load, Way), Sum>,
    /// CPU seconds of the mesh per second without load.
    pub(super) rest: f64,
    /// After the last load.
    pub(super) memory: Memory,
}

/// One line of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    /// CPU seconds of the mesh for a load's unit.
    Mesh(Load),
    /// The waypoint's part of them.
    Waypoint(Load),
    /// CPU seconds of the whole machine, applications included.
    Machine(Load),
    /// Microseconds that half of the requests did not exceed.
    P50(Load),
    /// Microseconds that 99 of 100 did not exceed.
    P99(Load),
    /// Requests, connections or megabytes per second.
    Rate(Load),
}

// === impl Load ===

impl Load {
    /// All, in the order in which they are measured.
    pub(super) const ALL: [Self; 4] = [Self::One, Self::Sixteen, Self::Fresh, Self::Bulk];

    /// As people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "requests, c=1",
            Self::Sixteen => "requests, c=16",
            Self::Fresh => "fresh connections, c=4",
            Self::Bulk => "bulk, 1 stream",
        }
    }

    /// What CPU is told for.
    fn unit(self) -> &'static str {
        match self {
            Self::One => "100 k requests, c=1",
            Self::Sixteen => "100 k requests, c=16",
            Self::Fresh => "10 k fresh connections, c=4",
            Self::Bulk => "GB, 1 stream",
        }
    }

    /// How many such units were done.
    fn units(self, sum: &Sum) -> f64 {
        match self {
            Self::One | Self::Sixteen => float(sum.requests) / 1e5,
            Self::Fresh => float(sum.requests) / 1e4,
            Self::Bulk => float(sum.bytes) / 1e9,
        }
    }
}

// === impl Tree ===

impl Tree {
    /// As people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Now => "this tree",
            Self::Previous => "the previous tree",
        }
    }
}

// === impl Cpu ===

impl Cpu {
    /// All processes of the mesh.
    pub(super) fn all(self) -> Duration {
        self.ztunnels + self.waypoints
    }

    /// What was used since an earlier reading.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            ztunnels: self.ztunnels.saturating_sub(before.ztunnels),
            waypoints: self.waypoints.saturating_sub(before.waypoints),
        }
    }
}

// === impl Sum ===

impl Sum {
    /// One more slice, and what it took of the mesh and of the whole machine.
    pub(super) fn add(&mut self, slice: &BenchSummary, mesh: Cpu, machine: Duration) {
        self.requests += slice.requests;
        self.bytes += slice.bytes;
        self.failed += slice.failed;
        self.wall += Duration::from_micros(slice.wall_us);
        self.client += Duration::from_micros(slice.cpu_us);
        self.mesh.ztunnels += mesh.ztunnels;
        self.mesh.waypoints += mesh.waypoints;
        self.machine += machine;
        self.latencies.add(&slice.latencies);
    }

    /// Which part of the time the load itself was computing: at 1 it is the load that is measured.
    pub(super) fn client_busy(&self) -> f64 {
        self.client.as_secs_f64() / self.wall.as_secs_f64()
    }
}

// === impl Round ===

impl Round {
    /// A round of which nothing is known yet.
    pub(super) fn new(number: usize, tree: Tree) -> Self {
        Self {
            number,
            tree,
            sums: BTreeMap::new(),
            rest: 0.0,
            memory: Memory::default(),
        }
    }

    /// A figure of one way; nothing where it has no meaning, or where nothing was done.
    pub(super) fn value(&self, figure: Figure, way: Way) -> Option<f64> {
        let sum = self.sums.get(&(figure.load(), way))?;
        figure.of(sum, way).filter(|value| value.is_finite())
    }

    /// One way's figure to another's.
    pub(super) fn ratio(&self, figure: Figure, way: Way, to: Way) -> Option<f64> {
        Some(self.value(figure, way)? / self.value(figure, to)?)
    }
}

// === impl Figure ===

impl Figure {
    /// Every line, grouped by load.
    pub(super) fn all() -> Vec<Self> {
        let of = |load| match load {
            Load::Bulk => vec![
                Self::Mesh(load),
                Self::Waypoint(load),
                Self::Machine(load),
                Self::Rate(load),
            ],
            _ => vec![
                Self::Mesh(load),
                Self::Waypoint(load),
                Self::Machine(load),
                Self::P50(load),
                Self::P99(load),
                Self::Rate(load),
            ],
        };
        Load::ALL.into_iter().flat_map(of).collect()
    }

    /// As the tables call it, with its unit.
    pub(super) fn name(self) -> String {
        let load = self.load();
        match self {
            Self::Mesh(_) => format!("mesh, cpu-s per {}", load.unit()),
            Self::Waypoint(_) => format!("  of it the waypoint, per {}", load.unit()),
            Self::Machine(_) => format!("machine, cpu-s per {}", load.unit()),
            Self::P50(_) => format!("p50, us, {}", load.name()),
            Self::P99(_) => format!("p99, us, {}", load.name()),
            Self::Rate(Load::Bulk) => format!("MB/s, {}", load.name()),
            Self::Rate(_) => format!("per second, {}", load.name()),
        }
    }

    fn load(self) -> Load {
        match self {
            Self::Mesh(load)
            | Self::Waypoint(load)
            | Self::Machine(load)
            | Self::P50(load)
            | Self::P99(load)
            | Self::Rate(load) => load,
        }
    }

    fn of(self, sum: &Sum, way: Way) -> Option<f64> {
        let per_unit = |cpu: Duration| cpu.as_secs_f64() / self.load().units(sum);
        let micros = |percent| Some(sum.latencies.percentile(percent)?.as_secs_f64() * 1e6);
        let seconds = sum.wall.as_secs_f64();
        match self {
            // What the mesh does while connections pass it by is not their cost.
            Self::Mesh(_) => (way != Way::Plain).then(|| per_unit(sum.mesh.all())),
            Self::Waypoint(_) => (way == Way::Waypoint).then(|| per_unit(sum.mesh.waypoints)),
            Self::Machine(_) => Some(per_unit(sum.machine)),
            Self::P50(_) => micros(50),
            Self::P99(_) => micros(99),
            Self::Rate(Load::Bulk) => Some(float(sum.bytes) / 1e6 / seconds),
            Self::Rate(_) => Some(float(sum.requests) / seconds),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few minutes")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slice of a second with so many requests, each of so many microseconds.
    pub(in super::super) fn slice(requests: u64, micros: u64) -> BenchSummary {
        let mut latencies = Histogram::default();
        (0..requests).for_each(|_| latencies.record(Duration::from_micros(micros)));
        BenchSummary {
            requests,
            bytes: requests * 1000,
            wall_us: 1_000_000,
            cpu_us: 250_000,
            latencies,
            ..BenchSummary::default()
        }
    }

    fn cpu(ztunnels: u64, waypoints: u64) -> Cpu {
        Cpu {
            ztunnels: Duration::from_millis(ztunnels),
            waypoints: Duration::from_millis(waypoints),
        }
    }

    fn close(found: Option<f64>, wanted: f64) -> bool {
        found.is_some_and(|found| (found / wanted - 1.0).abs() < 0.01)
    }

    #[test]
    fn slices_add_up_to_figures() {
        let mut round = Round::new(0, Tree::Now);
        for (way, micros) in [(Way::Plain, 50), (Way::L4, 100), (Way::Waypoint, 200)] {
            let mut sum = Sum::default();
            for _ in 0..2 {
                sum.add(
                    &slice(1000, micros),
                    cpu(60, 40),
                    Duration::from_millis(500),
                );
            }
            assert!(close(Some(sum.client_busy()), 0.25));
            round.sums.insert((Load::One, way), sum);
        }
        let one = Load::One;
        let table: [(Figure, Way, Option<f64>); 9] = [
            (Figure::Mesh(one), Way::Plain, None),
            (Figure::Mesh(one), Way::L4, Some(10.0)),
            (Figure::Waypoint(one), Way::L4, None),
            (Figure::Waypoint(one), Way::Waypoint, Some(4.0)),
            (Figure::Machine(one), Way::Plain, Some(50.0)),
            (Figure::P50(one), Way::L4, Some(100.0)),
            (Figure::P99(one), Way::Waypoint, Some(200.0)),
            (Figure::Rate(one), Way::Plain, Some(1000.0)),
            (Figure::Rate(Load::Bulk), Way::Plain, None),
        ];
        for (figure, way, wanted) in table {
            let found = round.value(figure, way);
            let good = wanted.map_or(found.is_none(), |wanted| close(found, wanted));
            assert!(good, "{figure:?} {way:?}: {found:?}, not {wanted:?}");
        }
        assert!(close(
            round.ratio(Figure::P50(one), Way::L4, Way::Plain),
            2.0
        ));
        assert_eq!(round.ratio(Figure::Mesh(one), Way::L4, Way::Plain), None);
    }

    #[test]
    fn units_are_those_that_the_name_says() {
        let mut sum = Sum::default();
        sum.add(&slice(2000, 10), cpu(1000, 1000), Duration::ZERO);
        for (load, wanted) in [
            (Load::Sixteen, 100.0),
            (Load::Fresh, 10.0),
            (Load::Bulk, 1000.0),
        ] {
            let found = Figure::Mesh(load).of(&sum, Way::L4);
            assert!(close(found, wanted), "{load:?}: {found:?}");
        }
        // Nothing was done: no figure, rather than an endless one.
        let mut round = Round::new(0, Tree::Now);
        round.sums.insert((Load::One, Way::L4), Sum::default());
        assert_eq!(round.value(Figure::Mesh(Load::One), Way::L4), None);
        assert_eq!(round.value(Figure::P99(Load::One), Way::L4), None);
    }
}
