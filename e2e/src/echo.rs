//! The echo app: a server that answers with what it saw, and a client that prints what it got, in the format the Gateway API suite reads.

mod answer;
mod client;
mod flags;
mod histogram;
mod orders;
mod report;
mod server;
mod summary;

/// Generated from `e2e/proto/echo.proto`; `tests/echo_gen.rs` fails if it is stale.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
#[rustfmt::skip]
#[path = "echo/gen/proto.rs"]
pub mod proto;

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

pub use answer::Answer;
pub use histogram::Histogram;
pub use server::{Listen, Server, ServerConfig, Speaks};
pub use summary::{BenchSummary, Failure, HoldSummary, LoadSummary};

const USAGE: &str = "\
usage: ambit-echo server [--port=8080]... [--grpc=7070]... [--tcp=9090]... [--server-first=9091]...
                         [--tls=PORT]... [--crt=FILE --key=FILE] [--version=v1] [--bind=IP] [--drain=0s]
       ambit-echo client URL [--method=GET] [-H K:V]... [--msg=TEXT] [--count=1] [--qps=0] [--concurrency=20]
                         [--timeout=5s] [--http2] [--new-connection-per-request=true] [--server-first]
       ambit-echo client load --url=URL [--rate=50] [--duration=0s] [--timeout=5s] [-H K:V]... [--stdin]
       ambit-echo client hold --url=tcp://HOST:PORT [--every=200ms] [--duration=0s] [--timeout=5s] [--server-first] [--stdin]
       ambit-echo client bench --url=http://HOST/ [--connections=1] [--slice=1s] [--most=0] [--new-connection-per-request]
       ambit-echo sleep
URL is http://, https:// (the certificate is not verified), grpc:// or tcp://; a duration of 0s means until SIGTERM.
With --stdin the line `now` prints a summary so far, and `stop` or the end of input ends the run. A bench measures a slice
at each `now`.
Called as `server` or `client`, the first word is left out.";

/// Exit code for arguments that cannot be understood (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;

/// Runs the mode that the program's name or first argument asks for, to its end.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let mut args = args.into_iter();
    let called = args.next().unwrap_or_default();
    let called = Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    let mut rest: Vec<String> = args.collect();
    let mode = match called.as_str() {
        "server" | "client" => called,
        _ if rest.is_empty() => return usage("which mode?"),
        _ => rest.remove(0),
    };
    match mode.as_str() {
        "server" => match ServerConfig::from_args(rest) {
            Ok(config) => block_on(server::main(config)),
            Err(error) => usage(&format!("{error:#}")),
        },
        "client" => match client::Job::from_args(rest) {
            Ok(job) => block_on(client::main(job)),
            Err(error) => usage(&format!("{error:#}")),
        },
        "sleep" => block_on(orders::sleep()),
        other => usage(&format!("no mode is called {other:?}")),
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("ambit-echo: {problem}\n{USAGE}");
    ExitCode::from(EXIT_USAGE)
}

fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("ambit-echo: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(work);
    // A thread may still wait for a line on stdin: do not wait for it.
    runtime.shutdown_background();
    code
}

/// The only TLS provider of this program, named so that a second one in the graph cannot matter.
fn crypto() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
