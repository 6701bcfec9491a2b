//! The order in which a cluster comes to life.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use super::certs::Pki;
use super::cgroups::Hierarchy;
use super::machine::{Blueprint, Machine};
use super::plan::{CONTROL_PLANE, Plan, Worker};
use super::state::State;
use super::{cgroups, client, components, control_plane, network, worker};
use crate::image::Tarball;
use crate::images;

/// How long one step of the start may take; the machine may be busy.
const STEP: Duration = Duration::from_secs(90);
/// How often a step's end is looked for.
const TICK: Duration = Duration::from_millis(25);
/// The loopback port of the API server, if it is free.
const PORT: u16 = 16443;

/// Everything that a start carries from step to step.
struct Start<'a> {
    plan: Plan,
    folder: &'a Path,
    layout: &'a [Hierarchy],
    tools: &'a Path,
    program: PathBuf,
    pki: Pki,
}

/// Tells how far the start is.
struct Steps(Instant);

impl Steps {
    fn done(&self, what: &str) {
        eprintln!("{:5.1} s  {what}", self.0.elapsed().as_secs_f32());
    }
}

/// Brings a cluster up in an empty folder. If it fails, [`super::down`] has to clean up.
pub(super) async fn run(
    plan: Plan,
    folder: &Path,
    layout: &[Hierarchy],
    tools: &Path,
) -> anyhow::Result<State> {
    let steps = Steps(Instant::now());
    let program = program()?;
    let images = tokio::task::spawn_blocking({
        let tools = tools.to_owned();
        move || images::base(&tools).map(Arc::new)
    });
    let _ = fs::remove_dir_all(folder.join("logs"));
    let listener = listen(plan)?;
    let port = listener.local_addr()?.port();
    let mut state = State {
        index: plan.index(),
        complete: false,
        port,
        tools: tools.to_owned(),
        cgroups: groups(layout, plan),
        machines: vec![],
    };
    // From here on there is something to take down.
    state.write(folder)?;
    let pki = Pki::create(
        &folder.join("pki"),
        plan,
        &format!("https://127.0.0.1:{port}"),
    )?;
    let start = Start {
        plan,
        folder,
        layout,
        tools,
        program,
        pki,
    };

    let (control_plane, workers) = start.machines(listener).await?;
    state.machines = std::iter::once(&control_plane)
        .chain(workers.iter().map(|(_, m)| m))
        .cloned()
        .collect();
    state.write(folder)?;
    network::bridge(plan, &control_plane)?;
    for (worker, machine) in &workers {
        network::attach(plan, &control_plane, worker, machine)?;
    }
    steps.done("machines and their network");
    let images = images.await??;
    steps.done("images packed");
    let kubeconfig = folder.join("kubeconfig");
    fs::copy(start.pki.path("admin.kubeconfig"), &kubeconfig).context("writing the kubeconfig")?;
    let api = client(&kubeconfig).await?;
    let nodes = try_join_all(
        workers
            .iter()
            .map(|(worker, machine)| start.containers(worker, machine, &images)),
    );
    let (services, ()) = tokio::try_join!(nodes, start.api_server(&control_plane, &api))?;
    steps.done("etcd, API server and containerd ready");
    for service in control_plane::services(tools, &start.pki, plan).rest {
        control_plane.start(&service)?;
    }
    for ((_, machine), services) in workers.iter().zip(services) {
        machine.start(&services.kubelet)?;
        machine.start(&services.kube_proxy)?;
    }
    components::coredns(&api, plan).await?;
    until_ready(&state.machines, &api, Timestamp::UNIX_EPOCH).await?;
    steps.done("nodes and name server ready");
    state.complete = true;
    state.write(folder)?;
    Ok(state)
}

/// Replaces a dead worker by a new machine and puts it to work.
pub(super) async fn revive(plan: Plan, folder: &Path, name: &str) -> anyhow::Result<Machine> {
    let mut state = State::read(folder)?.context("there is no cluster")?;
    let layout = cgroups::detect()?;
    let at = plan
        .workers()
        .iter()
        .position(|w| w.name == name)
        .context("the lab has no such node")?;
    let worker = plan.workers().swap_remove(at);
    let old = state
        .machines
        .get(at + 1)
        .context("a machine is missing in the record")?;
    anyhow::ensure!(!old.alive(), "{name} is alive");
    // Its record may still call it ready; only what it says from now on counts. Such times are whole seconds.
    let begun = Timestamp::now() + Duration::from_secs(1);
    old.kill()?;
    fs::remove_dir_all(&old.folder)
        .with_context(|| format!("emptying {}", old.folder.display()))?;

    let tools = state.tools.clone();
    let pki = Pki::open(&folder.join("pki"));
    let start = Start {
        plan,
        folder,
        layout: &layout,
        tools: &tools,
        program: program()?,
        pki,
    };
    let machine = start.machine(name, true, None).await?;
    network::attach(plan, &state.machines[0], &worker, &machine)?;
    state.machines[at + 1] = machine.clone();
    state.write(folder)?;
    let services = start
        .containers(&worker, &machine, &Arc::new(images::base(&tools)?))
        .await?;
    machine.start(&services.kubelet)?;
    machine.start(&services.kube_proxy)?;
    let api = client(&folder.join("kubeconfig")).await?;
    until_ready(&state.machines, &api, begun).await?;
    Ok(machine)
}

/// Every control group that a lab may have.
pub(super) fn groups(layout: &[Hierarchy], plan: Plan) -> Vec<PathBuf> {
    let workers = plan.workers();
    let names = std::iter::once(CONTROL_PLANE).chain(workers.iter().map(|w| w.name.as_str()));
    names
        .flat_map(|name| cgroups::places(layout, &plan.label(), name))
        .collect()
}

impl Start<'_> {
    async fn machine(
        &self,
        name: &str,
        worker: bool,
        forward: Option<(TcpListener, SocketAddr)>,
    ) -> anyhow::Result<Machine> {
        let label = self.plan.label();
        let (program, tools, layout, lab) =
            (self.program.as_path(), self.tools, self.layout, self.folder);
        Machine::create(Blueprint {
            program,
            tools,
            layout,
            label: &label,
            lab,
            name,
            worker,
            forward,
        })
        .await
    }

    async fn machines(
        &self,
        listener: TcpListener,
    ) -> anyhow::Result<(Machine, Vec<(Worker, Machine)>)> {
        let inside = SocketAddr::from((Ipv4Addr::LOCALHOST, control_plane::API_PORT));
        let control_plane = self.machine(CONTROL_PLANE, false, Some((listener, inside)));
        let workers = self.plan.workers();
        let machines = try_join_all(workers.iter().map(|w| self.machine(&w.name, true, None)));
        let (control_plane, machines) = tokio::try_join!(control_plane, machines)?;
        Ok((control_plane, workers.into_iter().zip(machines).collect()))
    }

    /// Starts etcd and the API server and waits until the latter is ready.
    async fn api_server(&self, on: &Machine, api: &Client) -> anyhow::Result<()> {
        let services = control_plane::services(self.tools, &self.pki, self.plan);
        on.start(&services.etcd)?;
        until(&[on], "etcd to listen", || {
            on.listens(control_plane::ETCD_PORT)
        })
        .await?;
        on.start(&services.api_server)?;
        until(&[on], "the API server to listen", || {
            on.listens(control_plane::API_PORT)
        })
        .await?;
        let by = Instant::now() + STEP;
        while api
            .request_text(http::Request::get("/readyz").body(vec![])?)
            .await
            .is_err()
        {
            on.check()?;
            if Instant::now() > by {
                bail!(
                    "waited {} s for the API server to be ready\n{}",
                    STEP.as_secs(),
                    super::machine::tail(&on.log("kube-apiserver"))
                );
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Makes a worker able to run containers, and says what else to run on it.
    async fn containers(
        &self,
        worker: &Worker,
        on: &Machine,
        base: &Arc<Vec<Tarball>>,
    ) -> anyhow::Result<worker::Services> {
        let services = worker::services(self.tools, &self.pki, self.plan, worker, on)?;
        on.start(&services.containerd)?;
        let socket = on.path(worker::CONTAINERD);
        until(&[on], "containerd to listen", || socket.exists()).await?;
        let (machine, images) = (on.clone(), base.clone());
        let imports = move || {
            images
                .iter()
                .try_for_each(|image| images::import(&machine, image).map(drop))
        };
        tokio::task::spawn_blocking(imports)
            .await?
            .context("importing the base images")?;
        Ok(services)
    }
}

/// The API server's address for the host: a listener out here that the control plane serves from within.
fn listen(plan: Plan) -> anyhow::Result<TcpListener> {
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    at(PORT + u16::from(plan.index()))
        .or_else(|_| at(0))
        .context("listening on loopback")
}

/// The program that has the machines' hidden commands: this one, or the one built beside it.
fn program() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("finding this program")?;
    // Tests are one folder further down than programs.
    let found = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("ambit-lab"))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "there is no ambit-lab beside {}: run `cargo build -p e2e --bins`",
            me.display()
        )
    })
}

/// Waits until something is so; fails when a service dies over it or it takes too long.
async fn until(machines: &[&Machine], what: &str, so: impl Fn() -> bool) -> anyhow::Result<()> {
    let by = Instant::now() + STEP;
    while !so() {
        machines.iter().try_for_each(|m| m.check())?;
        if Instant::now() > by {
            bail!(
                "waited {} s for {what}; logs are in {}",
                STEP.as_secs(),
                machines[0].logs.display()
            );
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// Waits until every node says that it is ready, and has said so since then, and names resolve.
async fn until_ready(machines: &[Machine], api: &Client, since: Timestamp) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(api.clone());
    let deployments: Api<Deployment> = Api::namespaced(api.clone(), "kube-system");
    let workers = machines.len() - 1;
    let by = Instant::now() + STEP;
    loop {
        let listed = nodes.list(&ListParams::default()).await?.items;
        let ready = listed.iter().filter(|n| is_ready(n, since)).count();
        let dns = deployments.get_status("coredns").await?.status;
        let dns = dns.and_then(|s| s.available_replicas).unwrap_or(0);
        if ready >= workers && dns > 0 {
            return Ok(());
        }
        machines.iter().try_for_each(Machine::check)?;
        if Instant::now() > by {
            let (waited, logs) = (STEP.as_secs(), machines[0].logs.display());
            bail!(
                "after {waited} s {ready} of {workers} nodes are ready and {dns} name servers; logs are in {logs}"
            );
        }
        tokio::time::sleep(TICK * 4).await;
    }
}

fn is_ready(node: &Node, since: Timestamp) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let recent = |said: Option<&Time>| said.is_some_and(|at| at.0 >= since);
    conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True" && recent(c.last_heartbeat_time.as_ref()))
}
