//! Brings a local Kubernetes cluster up and down.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use e2e::cluster::{self, Cluster, Taken, components, init, machine};
use e2e::images;

/// Prints a line; that nobody reads it is no reason to fail.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

#[derive(Parser)]
#[command(about = "A real Kubernetes on this machine: two nodes, no virtual machines, no Docker")]
struct Arguments {
    /// Which cluster: several can run at once, numbered from 0.
    #[arg(long, default_value_t = 0, global = true, env = "AMBIT_LAB")]
    lab: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the cluster up, or find the one that runs.
    Up {
        /// Print the kubeconfig's path and nothing else.
        #[arg(long)]
        quiet: bool,
    },
    /// Take the cluster down, or what is left of it.
    Down,
    /// Say how every process of the cluster is.
    Status,
    /// Build the images of this workspace's programs and bring them onto the nodes.
    Images,
    /// Install the Gateway API's kinds.
    GatewayApi,
    /// Print the path of the kubeconfig.
    Kubeconfig,
    /// Run a command on a machine of the cluster: worker-1, worker-2 or control-plane.
    Exec {
        /// The machine.
        machine: String,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Keep a machine.
    #[command(hide = true)]
    Machine {
        /// What it is to be.
        spec: PathBuf,
    },
    /// Be the first process of a machine.
    #[command(hide = true)]
    NodeInit {
        /// What it is to be.
        spec: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("ambit-lab: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let lab = arguments.lab;
    match arguments.command {
        // These two make namespaces and have to be processes of one thread, without a runtime.
        Command::Machine { spec } => machine::keep(&spec)?,
        Command::NodeInit { spec } => init::run(&read(&spec)?)?,
        Command::Up { quiet } => runtime()?.block_on(up(lab, quiet))?,
        Command::Down => down(lab)?,
        Command::Status => return status(lab),
        Command::Images => refresh(lab)?,
        Command::GatewayApi => runtime()?.block_on(gateway_api(lab))?,
        Command::Kubeconfig => say!("{}", running(lab)?.kubeconfig.display()),
        Command::Exec { machine, command } => return exec(&running(lab)?, &machine, &command),
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn read(spec: &Path) -> anyhow::Result<init::Spec> {
    serde_json::from_slice(&std::fs::read(spec)?).with_context(|| spec.display().to_string())
}

async fn up(lab: u8, quiet: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    let cluster = cluster::up_numbered(lab).await?;
    if quiet {
        say!("{}", cluster.kubeconfig.display());
        return Ok(());
    }
    say!(
        "the cluster is up ({:.1} s): {} nodes",
        begun.elapsed().as_secs_f32(),
        cluster.nodes.len()
    );
    say!(
        "  kubectl --kubeconfig {} get pods -A",
        cluster.kubeconfig.display()
    );
    say!(
        "  kubectl is {}; logs are in {}",
        cluster.tools.join("kubectl").display(),
        cluster.logs.display()
    );
    Ok(())
}

fn down(lab: u8) -> anyhow::Result<()> {
    let begun = Instant::now();
    let what = match cluster::down(lab)? {
        Taken::Cluster => "the cluster is taken down",
        Taken::Remains => "what was left of a cluster is taken away",
        Taken::Nothing => "no cluster was running",
    };
    say!("{what} ({:.1} s)", begun.elapsed().as_secs_f32());
    Ok(())
}

fn running(lab: u8) -> anyhow::Result<Cluster> {
    cluster::find_numbered(lab)?.context("no cluster is running: `ambit-lab up` starts one")
}

fn status(lab: u8) -> anyhow::Result<ExitCode> {
    let Some(cluster) = cluster::find_numbered(lab)? else {
        say!("no cluster is running");
        return Ok(ExitCode::FAILURE);
    };
    say!(
        "{}\nkubeconfig: {}\nlogs: {}",
        cluster.report(),
        cluster.kubeconfig.display(),
        cluster.logs.display()
    );
    Ok(if cluster.check().is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn refresh(lab: u8) -> anyhow::Result<()> {
    match cluster::find_numbered(lab)? {
        Some(cluster) => say!(
            "{} images brought to nodes that had another or none",
            images::refresh(&cluster)?
        ),
        None => say!(
            "{} images built; no cluster is running to bring them to",
            images::ours()?.len()
        ),
    }
    Ok(())
}

async fn gateway_api(lab: u8) -> anyhow::Result<()> {
    components::gateway_api(&running(lab)?.client().await?).await?;
    say!("the Gateway API is installed");
    Ok(())
}

fn exec(cluster: &Cluster, machine: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let machine = cluster
        .machines()
        .find(|m| m.name == machine)
        .context("the cluster has no such machine")?;
    let status = machine
        .command(command)
        .stdin(std::process::Stdio::inherit())
        .status()
        .context("running nsenter")?;
    Ok(status
        .code()
        .and_then(|c| u8::try_from(c).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
