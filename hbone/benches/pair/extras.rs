//! What is measured beside the rounds: memory, many streams, new tunnels, and who disturbs whom.

use std::time::Duration;

use crate::child::Cast;
use crate::figures::Rounds;
use crate::pairs::{Design, Pair, Sizes, numbers_of};
use crate::{Result, stage};

/// Connections that are there before memory is read for the first time.
const BEFORE: &str = "100";

/// Files a proxy has open beside its applications' sockets and tunnels.
const OTHER_FILES: usize = 64;

/// Streams of one tunnel, as the node proxy has them.
const STREAMS: usize = 100;

/// Readers that stall, and how long the one that does not may take beside them.
const STALLED: &str = "20";
const PATIENCE: Duration = Duration::from_secs(5);

/// One line of the report.
pub(crate) struct Extra {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) wanted: String,
}

/// Everything, one after the other.
pub(crate) fn all(cast: &mut Cast, rounds: usize, sizes: &Sizes) -> Result<Vec<Extra>> {
    let mut extras = Vec::new();
    cast.thrifty = true;
    eprintln!("memory");
    extras.extend(memory(cast, sizes)?);
    eprintln!("{} open streams", sizes.open);
    extras.push(many(cast, sizes)?);
    cast.thrifty = false;
    eprintln!("new tunnels");
    extras.extend(tunnels(cast, rounds, sizes)?);
    eprintln!("beside bulk");
    extras.extend(beside_bulk(cast, rounds, sizes)?);
    eprintln!("beside stalled readers");
    extras.extend(beside_stalled(cast, rounds, sizes)?);
    Ok(extras)
}

/// What an idle stream and an idle tunnel hold, both ends together.
fn memory(cast: &Cast, sizes: &Sizes) -> Result<Vec<Extra>> {
    let mut pair = Pair::start(cast, Design::Ours)?;
    let tunnels = sizes.tunnels.min(1000);
    order(&mut pair, "resumed", STREAMS)?;
    pair.settle()?;
    let before = pair.rss()?;
    order(&mut pair, "resumed", tunnels)?;
    pair.settle()?;
    let per_tunnel = (pair.rss()? - before) / tunnels as f64;
    drop(pair);
    let [ours, usual, relay] = Design::ALL.map(|design| per_stream(cast, design, sizes));
    let share = per_tunnel / STREAMS as f64;
    let ours = ours? - share;
    let judged = |value: f64, most: f64| if value <= most * 1024.0 { "ok" } else { "MISS" };
    Ok(vec![
        Extra {
            name: "RSS per idle stream, both ends".into(),
            value: format!(
                "{} (usual {}, relay {})",
                kib(ours),
                kib(usual?),
                kib(relay?)
            ),
            wanted: format!("<= 1 KB {}", judged(ours, 1.0)),
        },
        Extra {
            name: "RSS per idle tunnel, both ends".into(),
            value: kib(per_tunnel),
            wanted: format!("<= 40 KB {}", judged(per_tunnel, 40.0)),
        },
    ])
}

fn per_stream(cast: &Cast, design: Design, sizes: &Sizes) -> Result<f64> {
    let pair = Pair::start(cast, design)?;
    let _first = pair.load(cast, "idle", &[BEFORE])?;
    pair.settle()?;
    let before = pair.rss()?;
    let _idle = pair.load(cast, "idle", &[&sizes.idle.to_string()])?;
    pair.settle()?;
    Ok((pair.rss()? - before) / sizes.idle as f64)
}

/// So many open streams through one pair; those beyond the limit of files have no sockets.
fn many(cast: &Cast, sizes: &Sizes) -> Result<Extra> {
    let mut pair = Pair::start(cast, Design::Ours)?;
    let room = stage::file_limit()?.saturating_sub(OTHER_FILES + sizes.open / STREAMS);
    let sockets = sizes.open.min(room);
    let before = pair.rss()?;
    let _idle = pair.load(cast, "idle", &[&sockets.to_string()])?;
    order(&mut pair, "hold", sizes.open - sockets)?;
    pair.settle()?;
    let held = pair.rss()? - before;
    let asked = pair.measure(cast, "requests", &["1", "2000"])?;
    let p50 = asked.told.get(1).ok_or("requests tell three numbers")? * 1e6;
    Ok(Extra {
        name: format!("{} open streams through one pair", sizes.open),
        value: format!(
            "all open, {} of them without sockets; {:.1} MiB held; p50 of one more {p50:.0} us",
            sizes.open - sockets,
            held / f64::from(1 << 20),
        ),
        wanted: "opens".into(),
    })
}

/// New tunnels against handshakes in memory, per CPU-second.
fn tunnels(cast: &Cast, rounds: usize, sizes: &Sizes) -> Result<Vec<Extra>> {
    let (mut floor, mut full, mut resumed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut bare = cast.start(&["bare", &sizes.tunnels.to_string()])?;
        floor.push(numbers_of(&bare.line()?)?[0]);
        for (verb, rates) in [("tunnels", &mut full), ("resumed", &mut resumed)] {
            let mut pair = Pair::start(cast, Design::Ours)?;
            order(&mut pair, verb, 50)?;
            let before = pair.cpu()?;
            order(&mut pair, verb, sizes.tunnels)?;
            rates.push(sizes.tunnels as f64 / (pair.cpu()? - before));
        }
    }
    let bare = Rounds::new(floor.iter().copied()).median();
    let extra = |name: &str, rates: &[f64], wanted: Option<f64>| {
        let ratio = Rounds::new(rates.iter().zip(&floor).map(|(rate, floor)| rate / floor));
        let rate = Rounds::new(rates.iter().copied()).median();
        Extra {
            name: format!("{name} per CPU-second, to bare full handshakes"),
            value: format!("{} ({rate:.0} to {bare:.0})", told(&ratio)),
            wanted: wanted.map_or_else(String::new, |least| {
                let word = if ratio.median() >= least {
                    "ok"
                } else {
                    "MISS"
                };
                format!(">= {least} {word}")
            }),
        }
    };
    Ok(vec![
        extra("new tunnels, full handshakes,", &full, Some(0.8)),
        extra("new tunnels, resumed,", &resumed, None),
    ])
}

/// How much longer small requests take while one bulk stream shares their tunnel: one of 1 Gbit/s,
/// and one that takes all of the only CPU there is.
fn beside_bulk(cast: &Cast, rounds: usize, sizes: &Sizes) -> Result<Vec<Extra>> {
    let endless = u64::MAX.to_string();
    // On a CPU that is full the scheduler decides, and a request takes long: few tell enough.
    let loads: [(&str, &str, &[&str], usize, usize); 2] = [
        ("1 Gbit/s", "paced", &["125000000"], rounds, sizes.probes),
        ("all the CPU gives", "download", &["1", &endless], 1, 500),
    ];
    let mut extras = Vec::new();
    for (name, kind, numbers, rounds, probes) in loads {
        for design in Design::ALL {
            let (mut ratios, mut latencies) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let pair = Pair::start(cast, design)?;
                let alone = p99(cast, &pair, probes)?;
                let mut bulk = pair.load(cast, kind, numbers)?;
                bulk.say("go")?;
                let beside = p99(cast, &pair, probes)?;
                ratios.push(beside / alone);
                latencies.push((alone, beside));
            }
            let ratio = Rounds::new(ratios);
            let alone = Rounds::new(latencies.iter().map(|l| l.0)).median() * 1e6;
            let beside = Rounds::new(latencies.iter().map(|l| l.1)).median() * 1e6;
            let judged = match () {
                () if ratio.highest() <= 3.0 => "ok",
                () if ratio.lowest() > 3.0 => "MISS",
                () if !ratio.can_tell() => "?",
                () if ratio.median() <= 3.0 => "ok",
                () => "MISS",
            };
            extras.push(Extra {
                name: format!("p99 beside bulk of {name}, to alone: {}", design.name()),
                value: format!("{} ({alone:.0} to {beside:.0} us)", told(&ratio)),
                wanted: match (design, kind) {
                    (Design::Ours, "paced") => format!("<= 3 {judged}"),
                    _ => String::new(),
                },
            });
        }
    }
    Ok(extras)
}

fn p99(cast: &Cast, pair: &Pair, probes: usize) -> Result<f64> {
    let asked = pair.measure(cast, "requests", &["1", &probes.to_string()])?;
    let p99 = asked.told.get(2).copied();
    p99.ok_or_else(|| "requests tell three numbers".into())
}

/// How much longer a download takes beside readers that stall.
fn beside_stalled(cast: &Cast, rounds: usize, sizes: &Sizes) -> Result<Vec<Extra>> {
    let mut extras = Vec::new();
    let bytes = sizes.download.to_string();
    for design in [Design::Ours, Design::Usual] {
        let (mut ratios, mut frozen) = (Vec::new(), 0);
        for _ in 0..rounds {
            let pair = Pair::start(cast, design)?;
            pair.measure(cast, "download", &["1", &bytes])?;
            let alone = pair.measure(cast, "download", &["1", &bytes])?.told[0];
            let _stalled = pair.load(cast, "stalled", &[STALLED])?;
            pair.settle()?;
            let mut load = pair.load(cast, "download", &["1", &bytes])?;
            load.say("go")?;
            match load.line_within(PATIENCE)? {
                Some(line) => ratios.push(numbers_of(&line)?[0] / alone),
                None => frozen += 1,
            }
        }
        let ratio = Rounds::new(ratios);
        let value = match frozen {
            0 => told(&ratio),
            n => format!(
                "frozen for {} s in {n} of {rounds} rounds",
                PATIENCE.as_secs()
            ),
        };
        let free = frozen == 0 && ratio.median() <= 1.5;
        extras.push(Extra {
            name: format!(
                "a download beside {STALLED} stalled readers, to alone: {}",
                design.name()
            ),
            value,
            wanted: match (design, free) {
                (Design::Ours, true) => "not slowed ok".into(),
                (Design::Ours, false) => "not slowed MISS".into(),
                _ => String::new(),
            },
        });
    }
    Ok(extras)
}

fn order(pair: &mut Pair, verb: &str, count: usize) -> Result<()> {
    pair.near.say(&format!("{verb} {count}"))?;
    match pair.near.line()?.as_str() {
        "done" => Ok(()),
        other => Err(format!("the near end said {other:?} to {verb}").into()),
    }
}

fn kib(bytes: f64) -> String {
    format!("{:.2} KB", bytes / 1024.0)
}

fn told(rounds: &Rounds) -> String {
    if rounds.can_tell() {
        format!("{:.2} / {:.2}", rounds.median(), rounds.lowest())
    } else {
        format!(
            "cannot tell: {:.2} to {:.2}",
            rounds.lowest(),
            rounds.highest()
        )
    }
}
