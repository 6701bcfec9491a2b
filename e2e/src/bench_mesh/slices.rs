//! Slices of one load take turns on all ways: forwards, then backwards.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::Options;
use super::figures::{Load, Sum, Way};
use super::processes::{self, Processes};
use super::stage::Stage;
use crate::echo::BenchSummary;
use crate::probe::Run;

/// Forwards; rounds of odd numbers begin backwards.
const WAYS: [Way; 3] = [Way::Plain, Way::L4, Way::Waypoint];
/// Bytes of an answer in bulk.
const BULK: u32 = 16 << 20;

/// Measures one load on every way.
///
/// The clients are new for each round: where a connection comes to lie is a matter of luck that one draw does not show.
pub(super) async fn of(
    options: &Options,
    stage: &Stage<'_>,
    mesh: &Processes,
    load: Load,
    round: usize,
) -> Result<BTreeMap<Way, Sum>> {
    let mut clients = BTreeMap::new();
    for way in WAYS {
        clients.insert(way, start(options, stage, load, way).await?);
    }
    let mut sums = BTreeMap::<Way, Sum>::new();
    for way in order(round) {
        let client = clients.get_mut(&way).context("a way without a client")?;
        let (before, machine) = (mesh.cpu()?, processes::machine()?);
        let slice = client.now().await?;
        let (mesh, machine) = (
            mesh.cpu()?.since(before),
            processes::machine()?.saturating_sub(machine),
        );
        for error in &slice.errors {
            eprintln!("{}, {way:?}: {error}", load.name());
        }
        sums.entry(way).or_default().add(&slice, mesh, machine);
    }
    for client in clients.into_values() {
        client.stop().await?;
    }
    Ok(sums)
}

/// Each way twice, such that none is always after another one.
fn order(round: usize) -> Vec<Way> {
    let backwards = WAYS.iter().rev().copied();
    let both = WAYS.into_iter().chain(backwards);
    if round.is_multiple_of(2) {
        both.collect()
    } else {
        let (first, second) = WAYS.split_at(1);
        let mut turned = [second, first].concat();
        turned.extend(turned.clone().into_iter().rev());
        turned
    }
}

async fn start(
    options: &Options,
    stage: &Stage<'_>,
    load: Load,
    way: Way,
) -> Result<Run<BenchSummary>> {
    let (client, url) = stage.client(way);
    let slice = format!("--slice={}ms", options.slice.as_millis());
    let most = format!("--most={}", options.connections);
    let more: &[&str] = match load {
        Load::One | Load::Bulk => &["--connections=1"],
        Load::Sixteen => &["--connections=16"],
        Load::Fresh => &["--connections=4", "--new-connection-per-request", &most],
    };
    let url = match load {
        Load::Bulk => format!("{url}?size={BULK}"),
        _ => url.to_owned(),
    };
    client
        .bench(&url, &[&[slice.as_str()], more].concat())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_two_turns_and_the_same_place_on_average() {
        for round in 0..4 {
            let order = order(round);
            for way in WAYS {
                let at: Vec<usize> = (0..order.len()).filter(|at| order[*at] == way).collect();
                assert_eq!(at.len(), 2, "{order:?}");
                assert_eq!(at.iter().sum::<usize>(), order.len() - 1, "{order:?}");
            }
        }
        assert_ne!(order(0), order(1));
    }
}
