//! Shows the mesh at work on the local cluster, step by step and with evidence.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(e2e::demo::run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\nthe demo failed: {why:#}");
            eprintln!("The cluster is left as it is; `make down` takes it away.");
            ExitCode::FAILURE
        }
    }
}
