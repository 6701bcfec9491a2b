//! What the mesh costs on the local cluster: `make bench-mesh`.

use std::process::ExitCode;

use anyhow::Context as _;
use e2e::bench_mesh::{self, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ambit-bench-mesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the tables are what it is for")]
fn run() -> anyhow::Result<()> {
    let options = Options::from_env()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    println!("{}", runtime.block_on(Box::pin(bench_mesh::run(&options)))?);
    Ok(())
}
