//! The `ztunnel` program: the node proxy, or under its other name the node's CNI plugin.

use std::{
    collections::BTreeMap, env, num::NonZeroUsize, process::ExitCode, thread::available_parallelism,
};

use ztunnel::{
    app, cni,
    config::{Config, EXIT_USAGE},
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if cni::is_plugin(env::args_os()) {
        return cni::plugin::main();
    }
    if let Some(unknown) = env::args_os().nth(1) {
        eprintln!(
            "ztunnel: unknown argument {}; usage: ztunnel [cni]",
            unknown.display()
        );
        return ExitCode::from(EXIT_USAGE);
    }
    // What is not UTF-8 is none of our variables.
    let environment: BTreeMap<String, String> = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let cores = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match Config::from_env(&environment, cores) {
        Ok(config) => app::run(config),
        Err(error) => {
            eprintln!("ztunnel: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
