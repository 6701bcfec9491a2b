//! The tables, as they stand in the README.

use crate::child::Cast;
use crate::extras::Extra;
use crate::figures::{FIGURES, Rounds};
use crate::pairs::Sizes;
use crate::rounds::Series;

/// What is measured, and where.
pub(crate) fn introduce(cast: &Cast, rounds: usize, sizes: &Sizes) {
    println!("# The tunnel pair: TCP in, mutual TLS and HTTP/2 CONNECT, TCP out\n");
    println!(
        "Everything on CPU {}; {}; {rounds} rounds wanted, fresh processes each, designs in alternating \
         order; jemalloc for all. Per round and design: {:.1} GB of bulk, half up and half down, over 1 \
         and over 8 streams; {} requests of 1 KB for c=1 and for c=32; {} new connections, 4 at a time.\n",
        cast.cpu,
        cast.net.told(),
        sizes.bulk as f64 / 1e9,
        sizes.requests,
        sizes.connections,
    );
}

/// One congestion control's table.
pub(crate) fn series(series: &Series) {
    println!("## Under {}\n", series.control);
    println!(
        "{} rounds count, {} were noisy{}. Figures: CPU of both ends, medians. Ratios: median / lowest round. A relay that seals: \
         the plain relay and AES-256-GCM once each way over every byte, {:.2} cpu-s per GB and {:.2} us per request, to the plain \
         relay; no tunnel can cost less.\n",
        series.rounds.len(),
        series.noisy,
        if series.accepted {
            ", and count all the same: too few were quiet"
        } else {
            " and do not"
        },
        series.sealing.per_gb,
        series.sealing.per_request * 1e6,
    );
    let mut rows = vec![
        [
            "figure",
            "ours",
            "usual",
            "relay",
            "ours to usual",
            "ours to relay",
            "relay that seals",
        ]
        .map(str::to_owned),
    ];
    for (at, figure) in FIGURES.iter().enumerate() {
        let median = |design: usize| {
            let rounds = series.rounds.iter().map(|round| round.values[design][at]);
            amount(Rounds::new(rounds).median())
        };
        let ratio = |to: usize| {
            let rounds = series
                .rounds
                .iter()
                .map(|r| r.values[0][at] / r.values[to][at]);
            Rounds::new(rounds).verdict(figure.wanted[to - 1])
        };
        let relay = Rounds::new(series.rounds.iter().map(|round| round.values[2][at])).median();
        let sealed = figure.sealed.cost(&series.sealing);
        let least = sealed.map_or("".into(), |sealed| format!("{:.2}", 1.0 + sealed / relay));
        rows.push([
            figure.name.to_owned(),
            median(0),
            median(1),
            median(2),
            ratio(1),
            ratio(2),
            least,
        ]);
    }
    table(&rows);
}

/// What stands beside the rounds.
pub(crate) fn extras(extras: &[Extra]) {
    println!("## Beside the rounds\n");
    let mut rows = vec![["figure", "measured", "wanted"].map(str::to_owned)];
    for extra in extras {
        rows.push([
            extra.name.clone(),
            extra.value.clone(),
            extra.wanted.clone(),
        ]);
    }
    table(&rows);
}

fn amount(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for (at, row) in rows.iter().enumerate() {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!(" {cell:width$} |"));
        println!("|{}", cells.collect::<String>());
        if at == 0 {
            let rule = widths.map(|width| format!("{}|", "-".repeat(width + 2)));
            println!("|{}", rule.concat());
        }
    }
    println!();
}
