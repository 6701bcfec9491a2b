//! `make bench-pair`: what the tunnel costs, beside the usual design and beside a plain TCP relay.
//!
//! Every measured thing is a fresh process: this program starts itself again in a role. The parent
//! pins all of them to one CPU, in a network namespace of its own, reads their CPU time and memory
//! from `/proc`, and compares round by round. It prints figures and passes no verdict by exit code.

use std::error::Error;
use std::process::ExitCode;

mod app;
mod bare;
mod certs;
mod child;
mod extras;
mod figures;
mod load;
mod net;
mod ours;
mod pairs;
mod relay;
mod report;
mod rounds;
mod sealing;
mod stage;
mod turns;
mod usual;

/// As in our programs.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What stops a bench: its text is all anybody needs.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match &arguments[..] {
        ["role", role @ ..] => child::enter().and_then(|()| play(role)),
        // `cargo bench` passes --bench.
        _ => rounds::all(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-pair {}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn play(role: &[&str]) -> Result<()> {
    match role {
        ["app"] => app::run(),
        ["sealing"] => sealing::run(),
        ["bare", count] => bare::run(count.parse()?),
        ["load", kind, to, numbers @ ..] => load::run(kind, to.parse()?, numbers),
        ["near", "ours", far, app, streams] => {
            ours::near(far.parse()?, app.parse()?, streams.parse()?)
        }
        ["far", "ours", _] => ours::far(),
        ["near", "usual", far, app, _] => usual::near(far.parse()?, app.parse()?),
        ["far", "usual", _] => usual::far(),
        ["near", "relay", far, _, _] => relay::run(far.parse()?),
        ["far", "relay", app] => relay::run(app.parse()?),
        other => Err(format!("no such role: {other:?}").into()),
    }
}
