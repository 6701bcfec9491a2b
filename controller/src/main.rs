//! The controller program.

use std::process::ExitCode;

use clap::Parser;
use controller::config::Config;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = match mesh::process::telemetry::init(config.log_format, &config.log_filter) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(64);
        }
    };
    tracing::info!(?config, "controller {}", env!("CARGO_PKG_VERSION"));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(controller::app::run(config, filter)) {
        Ok(exit) => exit.code(),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
