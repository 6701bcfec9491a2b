//! The `waypoint` program.

use std::process::ExitCode;

use waypoint::app;
use waypoint::config::Config;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// `EX_USAGE`: the environment cannot be used.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let config = match Config::from_env(&std::env::vars().collect()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("waypoint: {error}");
            return ExitCode::from(USAGE);
        }
    };
    match app::run(config) {
        Ok(exit) => exit.code(),
        Err(error) => {
            eprintln!("waypoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}
