//! A real Kubernetes on this machine: two workers and a control plane, each a set of namespaces.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use http::HeaderName;
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::Signal;

use self::machine::Machine;
use self::plan::Plan;
use self::state::State;
use crate::capture::{Capture, Packet};

mod bring_up;
mod certs;
mod cgroups;
pub mod components;
mod control_plane;
pub mod init;
pub mod machine;
mod mounts;
mod network;
pub mod plan;
pub(crate) mod prerequisites;
mod programs;
mod state;
pub(crate) mod worker;

pub use worker::STATIC_PODS;

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// For `kubectl --kubeconfig` and everything else that speaks to the API server.
    pub kubeconfig: PathBuf,
    /// The folder of Kubernetes' programs, `kubectl` among them.
    pub tools: PathBuf,
    /// Where every process of the cluster logs.
    pub logs: PathBuf,
    /// The machine with etcd and the API server; the underlay is in its network.
    pub control_plane: Machine,
    /// The workers.
    pub nodes: Vec<Node>,
    plan: Plan,
    folder: PathBuf,
}

/// A worker of a running cluster.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name of the Kubernetes node.
    pub name: String,
    /// Its first process, by its id on this machine.
    pub init_pid: i32,
    /// Address on the underlay.
    pub ip4: Ipv4Addr,
    /// Address on the underlay.
    pub ip6: Ipv6Addr,
    /// The machine that it is.
    pub machine: Machine,
}

/// Brings the cluster up, or finds the one that runs.
///
/// A start that fails or is interrupted leaves nothing behind but its logs.
pub async fn up() -> anyhow::Result<Cluster> {
    up_numbered(0).await
}

/// Brings up the cluster of this number; several can run at once.
pub async fn up_numbered(index: u8) -> anyhow::Result<Cluster> {
    let plan = Plan::new(index)?;
    let folder = plan.folder()?;
    let _hold = state::hold(&folder)?;
    if let Some(state) = State::read(&folder)? {
        match healthy(&state) {
            Ok(()) => return Cluster::of(state, plan),
            Err(why) => {
                eprintln!("the cluster that was here is broken and is made anew: {why:#}");
                bring_down(plan)?;
            }
        }
    }
    let layout = prerequisites::ensure()?;
    let tools = programs::ensure()?;
    let interrupted = interrupted()?;
    let done = tokio::select! {
        done = bring_up::run(plan, &folder, &layout, &tools) => done,
        why = interrupted => Err(anyhow::anyhow!("interrupted by {why}")),
    };
    match done {
        Ok(state) => Cluster::of(state, plan),
        Err(why) => {
            bring_down(plan).context("taking a half-made cluster down")?;
            Err(why)
        }
    }
}

/// The folder of Kubernetes' programs; builds them the first time.
pub fn tools() -> anyhow::Result<PathBuf> {
    programs::ensure()
}

/// The running cluster, if there is one.
pub fn find() -> anyhow::Result<Option<Cluster>> {
    find_numbered(0)
}

/// The running cluster of this number, if there is one.
pub fn find_numbered(index: u8) -> anyhow::Result<Option<Cluster>> {
    let plan = Plan::new(index)?;
    match State::read(&plan.folder()?)? {
        Some(state) if state.complete => Cluster::of(state, plan).map(Some),
        _ => Ok(None),
    }
}

/// What `down` found and took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A cluster that had come up.
    Cluster,
    /// What a start that failed, or another crash, had left.
    Remains,
    /// There was none.
    Nothing,
}

/// Takes a cluster down, or what is left of one; nothing to take down is no error.
pub fn down(index: u8) -> anyhow::Result<Taken> {
    let plan = Plan::new(index)?;
    let _hold = state::hold(&plan.folder()?)?;
    bring_down(plan)
}

/// Fails unless a cluster runs with every service it started with.
fn healthy(state: &State) -> anyhow::Result<()> {
    anyhow::ensure!(state.complete, "it did not start completely");
    state.machines.iter().try_for_each(Machine::check)
}

fn bring_down(plan: Plan) -> anyhow::Result<Taken> {
    let folder = plan.folder()?;
    let (groups, recorded) = match State::read(&folder) {
        Ok(Some(state)) if state.complete => (state.cgroups, Some(Taken::Cluster)),
        Ok(Some(state)) => (state.cgroups, Some(Taken::Remains)),
        // No record, or one that cannot be read: look where this process would have put them.
        Ok(None) => (bring_up::groups(&cgroups::detect()?, plan), None),
        Err(_) => (
            bring_up::groups(&cgroups::detect()?, plan),
            Some(Taken::Remains),
        ),
    };
    let unrecorded = || {
        let left = groups.iter().any(|group| group.is_dir());
        if left { Taken::Remains } else { Taken::Nothing }
    };
    let taken = recorded.unwrap_or_else(unrecorded);
    cgroups::clear(&groups)?;
    let mut labs: Vec<&Path> = groups.iter().filter_map(|g| g.parent()).collect();
    labs.dedup();
    for lab in labs.into_iter().filter(|lab| lab.is_dir()) {
        fs::remove_dir(lab).with_context(|| format!("removing {}", lab.display()))?;
    }
    // The logs stay until the next start, for whoever wants to know what happened.
    for entry in fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name() != "logs")
    {
        let path = entry.path();
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(taken)
}

/// Resolves when somebody wants this process to end; from the call on, that no longer ends it by itself.
fn interrupted() -> anyhow::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    })
}

impl Cluster {
    fn of(state: State, plan: Plan) -> anyhow::Result<Self> {
        let folder = plan.folder()?;
        let mut machines = state.machines.into_iter();
        let control_plane = machines.next().context("a cluster without control plane")?;
        let node = |(worker, machine): (plan::Worker, Machine)| Node {
            name: worker.name,
            init_pid: machine.init.pid,
            ip4: worker.ip4,
            ip6: worker.ip6,
            machine,
        };
        Ok(Self {
            kubeconfig: folder.join("kubeconfig"),
            tools: state.tools,
            logs: folder.join("logs"),
            control_plane,
            nodes: plan.workers().into_iter().zip(machines).map(node).collect(),
            plan,
            folder,
        })
    }

    /// A client with all rights.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        client(&self.kubeconfig).await
    }

    /// A client with the rights of this user (`system:serviceaccount:NAMESPACE:NAME`, for instance).
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> anyhow::Result<kube::Client> {
        client_as(&self.kubeconfig, user, groups).await
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes
            .iter()
            .find(|n| n.name == name)
            .with_context(|| format!("the lab has no node {name}"))
    }

    /// Runs a command on a node, in all its namespaces, and returns what it printed.
    pub fn node_exec(&self, node: &str, argv: &[&str]) -> anyhow::Result<String> {
        self.node(node)?.machine.exec(argv)
    }

    /// Runs a command in the API server's network, where the underlay's bridge is.
    pub fn control_plane_exec(&self, argv: &[&str]) -> anyhow::Result<String> {
        self.control_plane.exec(argv)
    }

    /// Captures packets between the nodes.
    pub fn underlay_capture(
        &self,
        filter: impl Fn(&Packet) -> bool + Send + 'static,
    ) -> anyhow::Result<Capture> {
        Capture::start(&self.control_plane, filter)
    }

    /// Fails if a machine or a service of the cluster is dead, with the last of its log.
    pub fn check(&self) -> anyhow::Result<()> {
        self.machines().try_for_each(Machine::check)
    }

    /// All machines, the control plane first.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        std::iter::once(&self.control_plane).chain(self.nodes.iter().map(|n| &n.machine))
    }

    /// Takes a node's power away.
    pub fn kill_node(&self, name: &str) -> anyhow::Result<()> {
        self.node(name)?.machine.kill()
    }

    /// Brings a dead node back: a new machine of the same name, empty but for the lab's base images.
    pub async fn revive_node(&mut self, name: &str) -> anyhow::Result<()> {
        let _hold = state::hold(&self.folder)?;
        let machine = bring_up::revive(self.plan, &self.folder, name).await?;
        let node = self
            .nodes
            .iter_mut()
            .find(|n| n.name == name)
            .context("the lab has no such node")?;
        node.init_pid = machine.init.pid;
        node.machine = machine;
        Ok(())
    }

    /// Takes a node's cable out, or plugs it in again.
    pub fn plug(&self, name: &str, connected: bool) -> anyhow::Result<()> {
        network::plug(&self.control_plane, &self.node(name)?.name, connected)
    }

    /// Makes the API server hang, or go on.
    pub fn freeze_api_server(&self, frozen: bool) -> anyhow::Result<()> {
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        self.control_plane.signal("kube-apiserver", signal)
    }

    /// Where the API server is in its own network.
    pub fn api_server(&self) -> SocketAddr {
        SocketAddr::new(self.plan.control_plane4().into(), control_plane::API_PORT)
    }

    /// What is wrong with the cluster, or that nothing is.
    pub fn report(&self) -> String {
        let mut lines = Vec::new();
        for machine in self.machines() {
            lines.push(format!(
                "{} (first process {})",
                machine.name, machine.init.pid
            ));
            match machine.status() {
                Err(why) => lines.push(format!("  {why:#}")),
                Ok(services) => {
                    lines.extend(services.into_iter().map(|(name, health)| match health {
                        init::Health::Running(_) => format!("  {name}: runs"),
                        init::Health::Ended(how) => {
                            format!("  {name}: {how}\n{}", machine::tail(&machine.log(&name)))
                        }
                    }));
                }
            }
        }
        lines.join("\n")
    }
}

/// A client that acts as another user.
async fn client_as(kubeconfig: &Path, user: &str, groups: &[&str]) -> anyhow::Result<kube::Client> {
    let config = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    let mut config = config.context("using the kubeconfig")?;
    let name = |name| HeaderName::from_static(name);
    config.headers = vec![(
        name("impersonate-user"),
        user.parse().context("a user's name")?,
    )];
    for group in groups {
        let value = group.parse().context("a group's name")?;
        config.headers.push((name("impersonate-group"), value));
    }
    kube::Client::try_from(config).context("making a client")
}

/// A client by this kubeconfig.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    if !kubeconfig.is_file() {
        bail!("there is no {}: is the cluster up?", kubeconfig.display());
    }
    let config = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.context("using the kubeconfig")?).context("making a client")
}
