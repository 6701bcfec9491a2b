//! What the control plane costs at scale: synthetic events through the real index and hub, the real discovery service
//! over TLS on loopback, and real proxies' clients and worlds at the other end.
//!
//! `make bench-scale`, best on a machine that does nothing else. Each scenario is a process of its own, so that its memory
//! is its own. `BENCH_QUICK=1` is a few seconds with a small cluster, which shows that it runs; its figures mean nothing.
//! `BENCH_ONLY=10000x100` takes one scenario. Wanted figures stand beside the measured ones; what misses is printed as MISS with its reason.
#![allow(clippy::disallowed_methods, reason = "a bench prints")]

mod allocator;
mod child;
mod cluster;
mod controller;
mod measure;
mod parts;
mod proxies;
mod report;
#[path = "../../tests/support/server.rs"]
mod server;

use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// One cluster, and who looks at it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Scenario {
    pub(crate) pods: usize,
    pub(crate) services: usize,
    pub(crate) streams: usize,
    /// How many of the streams have a real world behind them; the others only acknowledge.
    pub(crate) worlds: usize,
    /// How long changes are made, [`RATE`] in each second.
    pub(crate) seconds: u64,
    /// Memory is measured: pages go back to the system at once, which costs time.
    pub(crate) memory: bool,
    /// Of the memory only what it is for.
    pub(crate) parts: bool,
}

/// Changes in a second.
pub(crate) const RATE: u64 = 100;
/// Tells a child its scenario.
const CHILD: &str = "AMBIT_SCALE_SCENARIO";

const fn at(pods: usize, services: usize, streams: usize, worlds: usize) -> Scenario {
    Scenario {
        pods,
        services,
        streams,
        worlds,
        seconds: 20,
        memory: false,
        parts: false,
    }
}

const fn memory(pods: usize, services: usize, worlds: usize) -> Scenario {
    Scenario {
        memory: true,
        seconds: 0,
        ..at(pods, services, worlds, worlds)
    }
}

/// Worlds as many as 24 GiB hold. 1 000 streams of a million pods would first be told 300 GB: they are left out.
const ALL: &[Scenario] = &[
    memory(10_000, 1_000, 10),
    memory(100_000, 10_000, 3),
    memory(1_000_000, 1_000, 1),
    at(10_000, 1_000, 10, 10),
    at(10_000, 1_000, 100, 100),
    at(10_000, 1_000, 1_000, 100),
    at(100_000, 10_000, 10, 10),
    at(100_000, 10_000, 100, 10),
    at(100_000, 10_000, 1_000, 10),
    at(1_000_000, 1_000, 1, 1),
    at(1_000_000, 1_000, 10, 1),
];

/// Shows that it runs.
const QUICK: &[Scenario] = &[
    memory(500, 50, 1),
    Scenario {
        seconds: 1,
        ..at(500, 50, 6, 3)
    },
];

fn main() -> ExitCode {
    if let Ok(scenario) = std::env::var(CHILD) {
        return child::main(&scenario);
    }
    let quick = std::env::var_os("BENCH_QUICK").is_some();
    let only = std::env::var("BENCH_ONLY").ok();
    let mut failed = false;
    report::head(quick);
    for scenario in if quick { QUICK } else { ALL } {
        let name = format!("{}x{}", scenario.pods, scenario.streams);
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        match measure(scenario) {
            Ok(outcome) => failed |= !report::print(scenario, &outcome, quick),
            Err(error) => {
                println!("{name}: FAILED: {error}");
                failed = true;
            }
        }
    }
    // Figures that miss are no failure; a scenario that does not run is.
    ExitCode::from(u8::from(failed))
}

/// A scenario's figures; where memory is measured, a second process says what it is for.
fn measure(scenario: &Scenario) -> Result<child::Outcome, String> {
    let mut outcome = run(scenario)?;
    if scenario.memory {
        let alone = Scenario {
            parts: true,
            ..*scenario
        };
        outcome.parts = run(&alone)?.parts;
    }
    Ok(outcome)
}

fn run(scenario: &Scenario) -> Result<child::Outcome, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let myself = std::env::current_exe().map_err(|error| text(&error))?;
    let mut command = Command::new(myself);
    let told = serde_json::to_string(scenario).map_err(|error| text(&error))?;
    command.env(CHILD, told).stdout(Stdio::piped());
    if scenario.memory {
        command.env("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");
    }
    let output = command.output().map_err(|error| text(&error))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| {
        format!(
            "{}: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })
}
