//! The run as a whole: rounds of all designs in alternating order, noisy rounds put aside, then the
//! figures that are not compared round by round.

use std::time::Instant;

use crate::certs::Certs;
use crate::child::Cast;
use crate::figures::COUNT;
use crate::net::Net;
use crate::pairs::{self, Design, Direct, Sizes};
use crate::sealing::{self, Sealing};
use crate::{Result, extras, report, stage};

const ROUNDS: usize = 5;

/// Rounds that may be added for noisy ones, as a part of those asked for.
const SPARE: usize = 2;

/// Fewer quiet rounds than this are no basis: then all count, and the report says so.
const LEAST_QUIET: usize = 3;

/// How much longer than at its best a direct request may take in a round that counts.
const NOISE: f64 = 1.15;

/// Other load on the machine that makes figures doubtful.
const BUSY: f64 = 0.5;

/// All designs once.
pub(crate) struct Round {
    /// Each design's figures, in the order of [`Design::ALL`].
    pub(crate) values: [[f64; COUNT]; 3],
    /// The slowest direct probe around them, in seconds.
    probe: f64,
}

/// What was measured under one congestion control.
pub(crate) struct Series {
    pub(crate) control: String,
    /// Those that count.
    pub(crate) rounds: Vec<Round>,
    /// How many were put aside for noise, and whether noise had to be accepted.
    pub(crate) noisy: usize,
    pub(crate) accepted: bool,
    /// What no tunnel can leave out.
    pub(crate) sealing: Sealing,
}

/// Runs everything and prints it.
pub(crate) fn all() -> Result<()> {
    let began = Instant::now();
    let quick = std::env::var_os("BENCH_QUICK").is_some();
    let rounds = match std::env::var("BENCH_ROUNDS") {
        Ok(rounds) => rounds.parse()?,
        Err(_) => {
            if quick {
                1
            } else {
                ROUNDS
            }
        }
    };
    let load = stage::load_average()?;
    stage::raise_file_limit()?;
    let sizes = if quick { Sizes::quick() } else { Sizes::full() };
    if load > BUSY {
        println!("The machine is not quiet: load average {load:.2} before the start.\n");
    }
    let cpu = stage::last_cpu()?;
    stage::leave(cpu)?;
    let mut cast = Cast {
        cpu,
        net: Net::make()?,
        certs: Certs::make()?,
        thrifty: false,
    };
    report::introduce(&cast, rounds, &sizes);
    let controls = if rounds > 0 {
        cast.net.controls()?
    } else {
        Vec::new()
    };
    for control in &controls {
        let series = series(&cast, control, rounds, &sizes)?;
        report::series(&series);
    }
    report::extras(&extras::all(&mut cast, rounds.clamp(1, 3), &sizes)?);
    println!("\n{:.0} s in all.", began.elapsed().as_secs_f64());
    Ok(())
}

/// All rounds under one congestion control.
fn series(cast: &Cast, control: &str, wanted: usize, sizes: &Sizes) -> Result<Series> {
    cast.net.control(control)?;
    let mut direct = Direct::start(cast)?;
    let mut rounds: Vec<Round> = Vec::new();
    let best = |rounds: &[Round]| rounds.iter().map(|r| r.probe).fold(f64::MAX, f64::min);
    let mut least = direct.probe(cast, sizes)?;
    for number in 0..wanted + wanted / SPARE {
        let quiet = rounds.iter().filter(|r| r.probe <= least * NOISE).count();
        if quiet >= wanted {
            break;
        }
        let began = Instant::now();
        let (round, lowest) = round(cast, &mut direct, number, sizes)?;
        least = least.min(lowest).min(best(&rounds));
        eprintln!(
            "{control}, round {}: direct {:.1} us, {:.0} s",
            number + 1,
            round.probe * 1e6,
            began.elapsed().as_secs_f64(),
        );
        rounds.push(round);
    }
    let (quiet, noisy): (Vec<_>, Vec<_>) =
        rounds.into_iter().partition(|r| r.probe <= least * NOISE);
    let accepted = quiet.len() < LEAST_QUIET.min(wanted);
    let noisy_count = noisy.len();
    let rounds = if accepted {
        quiet.into_iter().chain(noisy).collect()
    } else {
        quiet
    };
    Ok(Series {
        control: control.to_owned(),
        rounds,
        noisy: noisy_count,
        accepted,
        sealing: sealing::measure(cast)?,
    })
}

/// All designs, forwards or backwards, with probes between them; and the fastest probe.
fn round(cast: &Cast, direct: &mut Direct, number: usize, sizes: &Sizes) -> Result<(Round, f64)> {
    let mut order = [0, 1, 2];
    if number % 2 == 1 {
        order.reverse();
    }
    let mut values = [[0.0; COUNT]; 3];
    let mut probes = vec![direct.probe(cast, sizes)?];
    for at in order {
        values[at] = pairs::figures(cast, Design::ALL[at], sizes)?;
        probes.push(direct.probe(cast, sizes)?);
    }
    let probe = probes.iter().copied().fold(0.0, f64::max);
    let lowest = probes.into_iter().fold(f64::MAX, f64::min);
    Ok((Round { values, probe }, lowest))
}

// === impl Sizes ===

impl Sizes {
    fn full() -> Self {
        Self {
            bulk: 800_000_000,
            requests: 30_000,
            connections: 4_000,
            idle: 5_000,
            open: 20_000,
            tunnels: 1_000,
            probes: 20_000,
            download: 200_000_000,
            direct: 20_000,
        }
    }

    fn quick() -> Self {
        Self {
            bulk: 160_000_000,
            requests: 5_000,
            connections: 500,
            idle: 1_000,
            open: 3_000,
            tunnels: 200,
            probes: 3_000,
            download: 200_000_000,
            direct: 5_000,
        }
    }
}
