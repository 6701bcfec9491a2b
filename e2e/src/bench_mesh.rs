//! What the mesh costs beside plain Kubernetes on the local cluster, and beside an earlier tree's proxies, in one run.
//!
//! Requests, fresh connections and bulk go through nothing, through ztunnels, and through a waypoint. Slices of these ways take
//! turns, forwards and backwards, and a ratio is taken within a round: the machine's clock and its other work are the same for
//! both sides of it. What is told at the end is the median of the rounds and how far they lie apart.

mod figures;
mod processes;
mod report;
mod slices;
mod stage;
mod table;
mod trees;

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

pub use report::Report;

use self::figures::{Load, Round, Tree};
use self::stage::Stage;
use self::trees::Trees;

/// Rounds of a whole run.
const ROUNDS: usize = 3;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: usize,
    /// How long one load goes one way at a time.
    pub slice: Duration,
    /// How long the mesh is watched while it has nothing to do.
    pub rest: Duration,
    /// Fresh connections of one slice: each leaves a port waiting for a minute, so there may not be too many.
    pub connections: u32,
    /// The commit whose proxies are measured in turns with today's.
    pub previous: Option<String>,
}

impl Options {
    /// As the environment asks: `BENCH_QUICK=1`, `BENCH_ROUNDS=n`, `AMBIT_PREVIOUS=commit`.
    pub fn from_env() -> Result<Self> {
        let quick = std::env::var_os("BENCH_QUICK").is_some();
        let rounds = match std::env::var("BENCH_ROUNDS") {
            Ok(rounds) => rounds
                .parse()
                .with_context(|| format!("BENCH_ROUNDS={rounds}"))?,
            Err(_) => ROUNDS,
        };
        ensure!(rounds > 0, "BENCH_ROUNDS=0 measures nothing");
        let (slice, rest, connections) = if quick {
            (200, 1000, 300)
        } else {
            (2000, 5000, 2000)
        };
        Ok(Self {
            rounds,
            slice: Duration::from_millis(slice),
            rest: Duration::from_millis(rest),
            connections,
            previous: std::env::var("AMBIT_PREVIOUS").ok(),
        })
    }
}

/// Brings the cluster up, measures, and says what was found; the cluster stays, all else goes.
pub async fn run(options: &Options) -> Result<Report> {
    let trees = Trees::prepare(options.previous.as_deref()).await?;
    let mut found = None;
    let worked = Stage::within(trees.client(), async |stage| {
        found = Some(rounds(options, &trees, stage).await?);
        Ok(())
    })
    .await;
    // Whatever failed, who comes next finds today's proxies.
    let restored = trees.restore().await;
    let Some(mut report) = found else {
        return worked
            .and(restored)
            .and(Err(anyhow!("nothing was measured")));
    };
    // What was measured in many minutes is told, even if not all could be put away.
    for left in [worked, restored] {
        report.notes.extend(
            left.err()
                .map(|why| format!("something is left behind: {why:#}")),
        );
    }
    Ok(report)
}

/// All rounds; one that fails is noted and left out, as long as another one succeeds.
async fn rounds(options: &Options, trees: &Trees, stage: &Stage<'_>) -> Result<Report> {
    let mut report = Report::new(options.clone());
    for number in 0..options.rounds {
        for tree in trees.order(number) {
            let done = async {
                trees.switch(stage, tree).await?;
                round(options, stage, number, tree).await
            };
            match done.await {
                Ok(round) => report.rounds.push(round),
                Err(why) => {
                    let (number, tree) = (number + 1, tree.name());
                    report
                        .notes
                        .push(format!("round {number} of {tree} is left out: {why:#}"));
                }
            }
        }
    }
    let notes = report.notes.join("; ");
    ensure!(!report.rounds.is_empty(), "no round succeeded: {notes}");
    Ok(report)
}

async fn round(options: &Options, stage: &Stage<'_>, number: usize, tree: Tree) -> Result<Round> {
    let mesh = stage.processes().await?;
    let before = mesh.cpu()?;
    tokio::time::sleep(options.rest).await;
    let mut round = Round::new(number, tree);
    round.rest = mesh.cpu()?.since(before).all().as_secs_f64() / options.rest.as_secs_f64();
    for load in Load::ALL {
        eprintln!("round {}, {}: {}", number + 1, tree.name(), load.name());
        for (way, sum) in slices::of(options, stage, &mesh, load, number).await? {
            round.sums.insert((load, way), sum);
        }
    }
    round.memory = mesh.memory()?;
    Ok(round)
}
