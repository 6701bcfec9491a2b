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
    memory_of(outcome, *pods, quick);
    let (first, last) = outcome.first_state;
    line(
        "first state",
        &format!("{first:.0} ms for the first, {last:.0} ms until all have it"),
        Verdict::None,
    );
    latencies_of(outcome, scenario, quick);
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
            verdict.because(&resumed(*pods)),
        );
    }
    if outcome.missed > 0 {
        println!("  FAILED: {} of the changes did not arrive", outcome.missed);
    }
    outcome.missed == 0
}

fn memory_of(outcome: &Outcome, pods: usize, quick: bool) {
    if let Some(bytes) = outcome.controller {
        let verdict = Verdict::at_most(bytes, PER_POD, "bytes", quick);
        let reason = outcome
            .parts
            .map_or_else(String::new, |parts| parts.sentence(bytes));
        line(
            "controller",
            &format!("{bytes:.0} bytes for each pod"),
            verdict.because(&reason),
        );
    }
    if let Some(bytes) = outcome.world {
        let verdict = Verdict::at_most(bytes, PER_POD, "bytes", quick);
        line(
            "world",
            &format!(
                "{bytes:.0} bytes for each pod, client and the controller's end of the stream included"
            ),
            verdict.because(BOTH_ENDS),
        );
        if pods >= 1_000_000 {
            let all = bytes * count(pods);
            let verdict = Verdict::at_most(all / 1e6, MILLION / 1e6, "MB", quick);
            let figures = format!("{:.0} MB in all", all / 1e6);
            line("", &figures, verdict.because(BOTH_ENDS));
        }
    }
}

fn latencies_of(outcome: &Outcome, scenario: &Scenario, quick: bool) {
    if let (Some(arrived), Some(effective)) = (outcome.arrived, outcome.effective) {
        line(
            "event to stream",
            &format!("p50 {:.2} ms, p99 {:.2} ms", arrived.0, arrived.1),
            Verdict::None,
        );
        let reason = contention(outcome);
        let judged = scenario.pods <= 10_000 && scenario.streams <= 100 && !quick;
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
            verdict(effective.0, EFFECT.0).because(&reason),
        );
        line(
            "",
            &format!("p99 {:.2} ms", effective.1),
            verdict(effective.1, EFFECT.1).because(&reason),
        );
    }
}

/// What a world's figure has in it that a proxy elsewhere would not.
const BOTH_ENDS: &str = "one process has both ends: the world and its client, and what the controller keeps of a stream \
    (which version of each resource the proxy has)";

/// Why changes may come late: how busy the cores are that both ends share.
fn contention(outcome: &Outcome) -> String {
    let have = std::thread::available_parallelism().map_or(1, usize::from);
    let (controller, proxies) = outcome.cores.unwrap_or_default();
    let used = controller + proxies;
    let waiting = load();
    if cfg!(debug_assertions) {
        "this build is not optimised".to_owned()
    } else if used > 0.7 * count(have) {
        format!(
            "{used:.2} of {have} cores are in use, {proxies:.2} of them by the proxies at the other end"
        )
    } else if waiting > count(have) {
        format!("others use the machine: {waiting:.1} want one of {have} cores")
    } else {
        format!("not for want of cores ({used:.2} of {have} in use): what else is not known here")
    }
}

/// How many threads of the whole machine wanted a core in the last minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next();
    first.and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// Why a proxy may come back late.
fn resumed(pods: usize) -> String {
    format!(
        "besides TCP and TLS anew the proxy names the version of each of {pods} resources, and the controller compares them"
    )
}

/// Beside what is wanted.
enum Verdict {
    None,
    Good(String),
    Miss { wanted: String, reason: String },
}

impl Verdict {
    fn at_most(figure: f64, wanted: f64, unit: &str, quick: bool) -> Self {
        let text = format!("wanted: {wanted} {unit} at most");
        match figure <= wanted {
            _ if quick => Self::None,
            true => Self::Good(text),
            // Also what is not a number.
            false => Self::Miss {
                wanted: text,
                reason: String::new(),
            },
        }
    }

    /// Says why it misses, if it does.
    fn because(mut self, why: &str) -> Self {
        if let Self::Miss { reason, .. } = &mut self {
            why.clone_into(reason);
        }
        self
    }
}

fn line(what: &str, figures: &str, verdict: Verdict) {
    let beside = match &verdict {
        Verdict::None => String::new(),
        Verdict::Good(wanted) => format!("  [{wanted}]"),
        Verdict::Miss { wanted, .. } => format!("  MISS [{wanted}]"),
    };
    println!("  {what:<16}{figures}{beside}");
    if let Verdict::Miss { reason, .. } = verdict {
        println!("  {:<16}reason: {reason}", "");
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}
