//! The echo app of tests and demo: server, client, load, hold and sleep in one static binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::echo::main(std::env::args())
}
