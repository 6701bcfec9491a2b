//! The `ztunnel` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    if ztunnel::cni::is_plugin(std::env::args_os()) {
        return ztunnel::cni::plugin::main();
    }
    ExitCode::SUCCESS
}
