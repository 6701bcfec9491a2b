//! What a run found, as tables: printed at once, at the end.

use std::fmt;

use super::Options;
use super::figures::{Figure, Load, Round, Sum, Tree, Way};
use super::table::{cell, table};

/// From this part of the time on, the load is what is measured.
const BUSY: f64 = 0.8;
const MIB: f64 = 1024.0 * 1024.0;

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    options: Options,
    /// The rounds that succeeded.
    pub(super) rounds: Vec<Round>,
    /// What went wrong.
    pub(super) notes: Vec<String>,
}

impl Report {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            rounds: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn of(&self, tree: Tree) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |round| round.tree == tree)
    }

    /// One tree beside plain Kubernetes.
    fn beside_plain(&self, tree: Tree) -> String {
        let ways = [Way::Plain, Way::L4, Way::Waypoint];
        let row = |figure: Figure| {
            let value = |way| cell(self.of(tree).filter_map(|round| round.value(figure, way)));
            let ratio = |way, to| {
                cell(
                    self.of(tree)
                        .filter_map(|round| round.ratio(figure, way, to)),
                )
            };
            let [plain, l4, waypoint] = ways.map(value);
            let (l4_ratio, waypoint_ratio) =
                (ratio(Way::L4, Way::Plain), ratio(Way::Waypoint, Way::Plain));
            [figure.name(), plain, l4, waypoint, l4_ratio, waypoint_ratio]
        };
        let rows: Vec<_> = Figure::all().into_iter().map(row).collect();
        table(
            [
                "figure",
                "plain",
                "L4",
                "waypoint",
                "L4 to plain",
                "waypoint to plain",
            ],
            &rows,
        )
    }

    /// Both trees, compared within each round.
    fn beside_previous(&self) -> String {
        let row = |figure: Figure| {
            let value =
                |tree, way| cell(self.of(tree).filter_map(|round| round.value(figure, way)));
            let ratio = |way| {
                cell(self.pairs().filter_map(|(now, before)| {
                    Some(now.value(figure, way)? / before.value(figure, way)?)
                }))
            };
            let three = |way| {
                [
                    value(Tree::Now, way),
                    value(Tree::Previous, way),
                    ratio(way),
                ]
            };
            let [l4, l4_before, l4_ratio] = three(Way::L4);
            let [waypoint, waypoint_before, waypoint_ratio] = three(Way::Waypoint);
            let plain = ratio(Way::Plain);
            [
                figure.name(),
                l4,
                l4_before,
                l4_ratio,
                waypoint,
                waypoint_before,
                waypoint_ratio,
                plain,
            ]
        };
        let rows: Vec<_> = Figure::all().into_iter().map(row).collect();
        let headings = [
            "figure",
            "L4",
            "L4 before",
            "ratio",
            "waypoint",
            "waypoint before",
            "ratio",
            "plain's ratio",
        ];
        table(headings, &rows)
    }

    /// The same round with either tree.
    fn pairs(&self) -> impl Iterator<Item = (&Round, &Round)> {
        self.of(Tree::Now).filter_map(|now| {
            let same = |before: &&Round| before.number == now.number;
            Some((now, self.of(Tree::Previous).find(same)?))
        })
    }

    /// What does not belong to a load.
    fn processes(&self, trees: &[Tree]) -> String {
        let row = |tree: &Tree| {
            let of = |read: fn(&Round) -> f64| cell(self.of(*tree).map(read));
            [
                tree.name().to_owned(),
                of(|round| mib(round.memory.ztunnel)),
                of(|round| mib(round.memory.waypoint)),
                of(|round| round.rest * 1e3),
            ]
        };
        let headings = [
            "",
            "ztunnel's RSS, MiB",
            "waypoint's RSS, MiB",
            "all of the mesh at rest, CPU ms per s",
        ];
        table(headings, &trees.iter().map(row).collect::<Vec<_>>())
    }

    /// What makes figures doubtful.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = self.notes.clone();
        for round in &self.rounds {
            for ((load, way), sum) in &round.sums {
                doubts.extend(
                    doubt(*load, *way, sum).map(|why| format!("round {}: {why}", round.number + 1)),
                );
            }
        }
        doubts
    }
}

fn doubt(load: Load, way: Way, sum: &Sum) -> Option<String> {
    let (load, way) = (load.name(), format!("{way:?}").to_lowercase());
    if sum.failed > 0 {
        return Some(format!("{} failed: {load}, {way}", sum.failed));
    }
    let busy = sum.client_busy();
    (busy > BUSY).then(|| {
        let percent = busy * 100.0;
        format!("the load itself was busy for {percent:.0} % of the time, and its rate and latencies are its own: {load}, {way}")
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            rounds,
            slice,
            previous,
            ..
        } = &self.options;
        writeln!(
            f,
            "# The mesh beside plain Kubernetes\n\nOne client pod, two servers on another node; two slices of {slice:?} for each load and \
             way in each of {rounds} rounds, in turns. Cells: the rounds' median (lowest-highest); a ratio is taken within a \
             round. CPU of the mesh: ztunnels of both nodes and the waypoint's pods, nothing else.\n"
        )?;
        writeln!(f, "{}", self.beside_plain(Tree::Now))?;
        let mut trees = vec![Tree::Now];
        if let Some(commit) = previous {
            trees.push(Tree::Previous);
            writeln!(
                f,
                "## Beside the proxies of {commit}\n\n{}",
                self.beside_previous()
            )?;
            writeln!(
                f,
                "## The proxies of {commit} beside plain Kubernetes\n\n{}",
                self.beside_plain(Tree::Previous)
            )?;
        }
        writeln!(f, "## Processes\n\n{}", self.processes(&trees))?;
        for doubt in self.doubts() {
            writeln!(f, "* {doubt}")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of processes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::figures::{Cpu, Memory};
    use super::*;
    use crate::echo::{BenchSummary, Histogram};

    fn round(number: usize, tree: Tree, micros: u64) -> Round {
        let mut round = Round::new(number, tree);
        round.memory = Memory {
            ztunnel: 14 << 20,
            waypoint: 12 << 20,
        };
        round.rest = 0.003;
        for (factor, way) in [(1, Way::Plain), (2, Way::L4), (4, Way::Waypoint)] {
            let mut latencies = Histogram::default();
            latencies.record(Duration::from_micros(micros * factor));
            let slice = BenchSummary {
                requests: 1000,
                wall_us: 1_000_000,
                cpu_us: 100_000,
                latencies,
                ..BenchSummary::default()
            };
            let mut sum = Sum::default();
            sum.add(
                &slice,
                Cpu {
                    ztunnels: Duration::from_millis(micros),
                    ..Cpu::default()
                },
                Duration::from_secs(1),
            );
            round.sums.insert((Load::One, way), sum);
        }
        round
    }

    fn report(previous: bool) -> Report {
        let options = Options {
            rounds: 2,
            slice: Duration::from_secs(1),
            rest: Duration::from_secs(1),
            connections: 1,
            previous: previous.then(|| "e5a689c".to_owned()),
        };
        let mut report = Report::new(options);
        for number in 0..2 {
            report
                .rounds
                .push(round(number, Tree::Now, 100 + 10 * number as u64));
            if previous {
                report.rounds.push(round(number, Tree::Previous, 200));
            }
        }
        report
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let text = report(true).to_string();
        let find = |start: &str, nth: usize| {
            let mut rows = text.lines().filter(|line| line.starts_with(start));
            let row = rows
                .nth(nth)
                .unwrap_or_else(|| panic!("no {start} in\n{text}"));
            row.split('|')
                .map(|cell| cell.trim().to_owned())
                .collect::<Vec<_>>()
        };
        let plain = find("| p50, us, requests, c=1 ", 0);
        assert_eq!(
            plain[5..7],
            ["2.00 (2.00-2.00)", "4.00 (4.00-4.00)"],
            "{text}"
        );
        let before = find("| p50, us, requests, c=1 ", 1);
        assert_eq!(before[4], "0.52 (0.50-0.55)", "{text}");
        let mesh = find("| mesh, cpu-s per 100 k requests, c=1 ", 0);
        assert_eq!(mesh[2..4], ["-", "10.5 (10.0-11.0)"], "{text}");
        assert!(
            find("| this tree", 0)[2..5]
                .join(" ")
                .starts_with("14.0 (14.0-14.0) 12.0"),
            "{text}"
        );
        // Without another tree there is nothing to compare with.
        assert!(!report(false).to_string().contains("before"));
    }

    #[test]
    fn what_makes_figures_doubtful_is_said() {
        let mut report = report(false);
        assert!(report.doubts().is_empty(), "{:?}", report.doubts());
        report.notes.push("round 3 is left out".to_owned());
        let slice = |failed, cpu_us| BenchSummary {
            requests: 1,
            failed,
            wall_us: 100,
            cpu_us,
            ..BenchSummary::default()
        };
        for (load, slice) in [(Load::Fresh, slice(2, 0)), (Load::Sixteen, slice(0, 90))] {
            let mut sum = Sum::default();
            sum.add(&slice, Cpu::default(), Duration::ZERO);
            report.rounds[0].sums.insert((load, Way::L4), sum);
        }
        let doubts = report.doubts().join("\n");
        for wanted in [
            "round 3 is left out",
            "2 failed: fresh connections, c=4, l4",
            "busy for 90 %",
        ] {
            assert!(doubts.contains(wanted), "{wanted} in\n{doubts}");
        }
    }
}
