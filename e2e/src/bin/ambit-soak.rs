//! The replica storm on the local cluster: `make soak-control MINUTES=3`. It ends with 1 if anything was lost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

/// Kills and rolls the controllers in turn while pods, labels and routes change, under load.
#[derive(Parser)]
#[command(name = "ambit-soak")]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ambit-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report is what it is for")]
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let (cluster, client) = e2e::mesh::installed().await?;
        let lasts = Duration::from_secs(60 * arguments.minutes);
        let report = Box::pin(e2e::soak::run(&cluster, &client, lasts)).await?;
        println!("{report}");
        let faults = report.faults();
        for fault in &faults {
            println!("FAULT: {fault}");
        }
        Ok(faults.is_empty())
    })
}
