//! The figures, each with what is wanted beside it.

use crate::child::Outcome;
use crate::{RATE, Scenario};

/// Wanted: bytes for each pod, in a controller and in a world.
const PER_POD: f64 = 1024.0;
/// Wanted: all of a world with a million pods.
const MILLION: f64 = 1e9;
/// Wanted at 10 000 pods and 100 streams, in milliseconds: p50 and p99 from event to effect.
const EFFECT: (f64, f64) = (3.0, 10.0);
/// Wanted, in milliseconds.
const RECONNECT: f64 = 50.0;

pub(crate) fn head(quick: bool) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("control plane at scale, {cores} cores shared by both ends, {RATE} changes/s");
    if quick {
        println!("short form: it shows that it runs; its figures mean nothing");
    }
}

/// Prints one scenario; false if it did not do what it should.
pub(crate) fn print(scenario: &Scenario, outcome: &Outcome, quick: bool) -> bool {
    let Scenario {
        pods,
        services,
        streams,
        worlds,
        memory,
        ..
    } = scenario;
    let readers = streams - worlds;
    println!(
        "\n{pods} pods, {services} services, {worlds} worlds, {readers} readers{}",
        if *memory { ", memory" } else { "" }
    );
    line(
        "index",
        &format!(
            "{:.0} ms to take everything in ({:.1} µs for each pod)",
            outcome.load,
            outcome.load * 1e3 / count(*pods)
        ),
        Verdict::None,
    );
    if let Some(bytes) = outcome.controller {
        let verdict = Verdict::at_most(bytes, PER_POD, "bytes", quick);
        line(
            "controller",
            &format!("{bytes:.0} bytes for each pod"),
            verdict,
        );
    }
    if let Some(bytes) = outcome.world {
        let verdict = Verdict::at_most(bytes, PER_POD, "bytes", quick);
        line(
            "world",
            &format!(
                "{bytes:.0} bytes for each pod, client and the controller's end of the stream included"
            ),
            verdict,
        );
        if *pods >= 1_000_000 {
            let all = bytes * count(*pods);
            let verdict = Verdict::at_most(all / 1e6, MILLION / 1e6, "MB", quick);
            line("", &format!("{:.0} MB in all", all / 1e6), verdict);
        }
    }
    let (first, last) = outcome.first_state;
    line(
        "first state",
        &format!("{first:.0} ms for the first, {last:.0} ms until all have it"),
        Verdict::None,
    );
    if let (Some(arrived), Some(effective)) = (outcome.arrived, outcome.effective) {
        line(
            "event to stream",
            &format!("p50 {:.2} ms, p99 {:.2} ms", arrived.0, arrived.1),
            Verdict::None,
        );
        let judged = *pods <= 10_000 && *streams <= 100 && !quick;
        let verdict = |figure, wanted| {
            if judged {
                Verdict::at_most(figure, wanted, "ms", quick)
            } else {
                Verdict::None
            }
        };
        line(
            "event to effect",
            &format!("p50 {:.2} ms", effective.0),
            verdict(effective.0, EFFECT.0),
        );
        line(
            "",
            &format!("p99 {:.2} ms", effective.1),
            verdict(effective.1, EFFECT.1),
        );
    }
    if let (Some(cpu), Some((controller, proxies))) = (outcome.cpu, outcome.cores) {
        line(
            "cpu",
            &format!(
                "{cpu:.1} µs in the controller for each change and stream; cores in use: {controller:.2} controller, {proxies:.2} proxies"
            ),
            Verdict::None,
        );
    }
    if let (Some((usual, longest)), Some(stall)) = (outcome.reconnect, outcome.stall) {
        let verdict = Verdict::at_most(longest, RECONNECT, "ms", quick);
        line(
            "reconnect",
            &format!(
                "p50 {usual:.1} ms, longest {longest:.1} ms; others waited {stall:.1} ms at most"
            ),
            verdict,
        );
    }
    if outcome.missed > 0 {
        println!("  FAILED: {} of the changes did not arrive", outcome.missed);
    }
    outcome.missed == 0
}

/// Beside what is wanted.
enum Verdict {
    None,
    Good(String),
    Miss(String),
}

impl Verdict {
    fn at_most(figure: f64, wanted: f64, unit: &str, quick: bool) -> Self {
        let text = format!("wanted: {wanted} {unit} at most");
        match figure <= wanted {
            _ if quick => Self::None,
            true => Self::Good(text),
            // Also what is not a number.
            false => Self::Miss(text),
        }
    }
}

fn line(what: &str, figures: &str, verdict: Verdict) {
    let beside = match verdict {
        Verdict::None => String::new(),
        Verdict::Good(wanted) => format!("  [{wanted}]"),
        Verdict::Miss(wanted) => format!("  MISS [{wanted}]"),
    };
    println!("  {what:<16}{figures}{beside}");
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}
