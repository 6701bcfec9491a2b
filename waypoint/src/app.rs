//! Builds everything and owns every long-lived task: one thread per core for clients, one for the controller.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hbone::Credentials;
use mesh::ca::{Caller, CertificateClient};
use mesh::certs::{Certificates, Clock};
use mesh::control::Control;
use mesh::process::admin::{self, Admin, bounded};
use mesh::process::metrics::registry;
use mesh::process::readiness::Readiness;
use mesh::process::shutdown::{Exit, Signals, Supervisor};
use mesh::process::telemetry::{self, Logs};
use mesh::revocations::RevocationFile;
use mesh::verdict::waypoint::SelfInfo;
use mesh::world::{World, world_in};
use mesh::xds::client::{self, Client};
use mesh::xds::node::NodeInfo;
use mesh::xds::{ADDRESS_TYPE, ROUTE_TYPE};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::limits::Limits;
use crate::lookups::{Lookups, lookups};
use crate::metrics::Metrics;
use crate::proxy::{Phase, Shared};
use crate::serve;

/// Ports of the process itself: metrics, readiness, and the state for whoever is on loopback.
const METRICS_PORT: u16 = 15020;
const READY_PORT: u16 = 15021;
const ADMIN_PORT: u16 = 15000;

/// Connections that wait to be accepted, per core and family.
const BACKLOG: u32 = 1024;

/// After SIGTERM, who still comes is served this long: clients hear of it from the controller.
const LINGER: Duration = Duration::from_secs(5);

/// Between two attempts to get the first certificate.
const RETRY: Duration = Duration::from_secs(1);

/// Of the mesh as a page shows it: some thousand workloads. All of a large one would be as large as what this pod may take.
const MOST_MESH: usize = 4 * 1024 * 1024;

/// What the control thread has for the workers.
struct ControlHandles {
    world: World,
    stream: client::Handle,
    certificates: Certificates,
    lookups: Lookups,
    metrics: Arc<Metrics>,
}

/// Runs until a signal comes or something that must live dies.
pub fn run(config: Config) -> anyhow::Result<Exit> {
    let logs = telemetry::init(config.log_format, &config.log_filter)?;
    tracing::info!(?config, "starting");
    // Said while there are logs.
    start(config, &logs).inspect_err(|error| tracing::error!("{error:#}"))
}

fn start(config: Config, logs: &Logs) -> anyhow::Result<Exit> {
    let control = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("the control thread's runtime")?;
    control.block_on(control_thread(config, logs))
}

async fn control_thread(config: Config, logs: &Logs) -> anyhow::Result<Exit> {
    let mut signals = Signals::new().context("signals")?;
    let readiness = Readiness::new();
    let starting = readiness.wait_for("first certificate and state of the mesh");
    let mut supervisor = Supervisor::new();
    let household = household(&config, logs, &readiness, &mut supervisor)?;

    let (phase, phases) = watch::channel(Phase::Serving);
    let (running, ended) = mpsc::channel(1);
    let shared = tokio::select! {
        shared = household.shared(&config, phases) => shared,
        signal = signals.next() => return Ok(Exit::Drained(signal)),
    };
    let limits = Limits::of_cores(config.threads);
    for index in 0..config.threads {
        let (shared, running) = (shared.clone(), running.clone());
        let body = move || {
            let ended = worker(shared, limits);
            drop(running);
            ended
        };
        supervisor
            .must_live_thread(format!("worker {index}"), body)
            .context("a worker thread")?;
    }
    drop((shared, running, starting));
    tracing::info!(id = %config.id, threads = config.threads, "serving");

    let begun = supervisor.draining();
    let drain = async {
        begun.cancelled().await;
        drain(&readiness, &phase, ended, config.drain).await;
    };
    Ok(supervisor.run(signals, drain, config.drain).await)
}

/// Everything that is not a client's: discovery, certificates, pages.
fn household(
    config: &Config,
    logs: &Logs,
    readiness: &Readiness,
    supervisor: &mut Supervisor,
) -> anyhow::Result<ControlHandles> {
    let mut registry = registry("waypoint");
    logs.register(&mut registry);
    let metrics = Metrics::register(&mut registry);
    let (mut writer, world) = world_in(config.network.clone());
    let (discovery, stream) = Client::new(discovery(config), move |update| writer.apply(update));
    discovery.metrics().register(&mut registry);
    let authority = CertificateClient::new(
        endpoint(config, &config.ca_address),
        config.cluster.clone(),
        Caller::Workload,
    );
    let (file, in_force) = RevocationFile::open(config.revocations.clone());
    file.register(&mut registry);
    supervisor.must_live("revocation lists", file.run());
    let (certificates, keeper) = Certificates::new(authority, Clock::system());
    let keeper = keeper.judging_by(in_force);
    keeper.metrics().register(&mut registry);
    let state = debug(config, &world, &stream, &certificates);
    let pages = Admin::new(registry, readiness.clone(), logs.filter(), state);
    for address in admin_addresses() {
        let listener = listen(address).with_context(|| format!("admin on {address}"))?;
        let Some(listener) = listener else { continue };
        supervisor.must_live(
            format!("admin on {address}"),
            admin::serve(listener, pages.clone()),
        );
    }
    supervisor.must_live("certificates", keeper.run());
    supervisor.must_live("discovery", discovery.run());
    let (lookups, asker) = lookups();
    supervisor.must_live("lookups", asker.run(stream.clone(), config.network.clone()));
    Ok(ControlHandles {
        world,
        stream,
        certificates,
        lookups,
        metrics,
    })
}

/// Asks clients to go elsewhere, serves who still comes for a while, and waits for what runs.
async fn drain(
    readiness: &Readiness,
    phase: &watch::Sender<Phase>,
    mut ended: mpsc::Receiver<()>,
    deadline: Duration,
) {
    let _leaving = readiness.wait_for("the end: draining");
    phase.send_replace(Phase::Draining);
    tokio::time::sleep(LINGER.min(deadline / 2)).await;
    phase.send_replace(Phase::Closing);
    // Every worker holds a sender until its last connection has ended.
    let _ = ended.recv().await;
}

/// One core: its own runtime, listeners and connections.
fn worker(shared: Shared, limits: Limits) -> io::Result<()> {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let listeners: Vec<TcpListener> = both_families(hbone::PORT)
            .into_iter()
            .filter_map(|address| listen(address).transpose())
            .collect::<io::Result<_>>()?;
        serve::serve(shared, limits, listeners).await;
        Ok(())
    })
}

// === impl ControlHandles ===

impl ControlHandles {
    /// What every core needs, once there is a certificate and the controller has told all of the mesh.
    async fn shared(&self, config: &Config, phase: watch::Receiver<Phase>) -> Shared {
        let credentials = self.first_certificate(config).await;
        // Fails only when the client has ended, which ends the process.
        let _ = self.stream.synced().wait_for(|synced| *synced).await;
        self.world.located().await;
        Shared {
            me: SelfInfo {
                service: config.service(),
                address: Some(config.ip),
                trust_domain: config.trust_domain.clone(),
            },
            world: self.world.clone(),
            credentials,
            lookups: self.lookups.clone(),
            metrics: Arc::clone(&self.metrics),
            phase,
        }
    }

    async fn first_certificate(&self, config: &Config) -> Credentials {
        loop {
            match self.certificates.get(&config.id).await {
                Ok(credentials) => return credentials,
                Err(error) => {
                    tracing::warn!(%error, "no certificate yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

// === what each part is told ===

fn endpoint(config: &Config, address: &str) -> Control {
    Control {
        address: address.to_owned(),
        server_name: None,
        roots: config.root.clone(),
        token: Some(config.token.clone()),
    }
}

fn discovery(config: &Config) -> client::Config {
    client::Config {
        control: endpoint(config, &config.xds_address),
        node: NodeInfo {
            kind: "waypoint".to_owned(),
            pod: config.pod.clone(),
            namespace: config.namespace.clone(),
            node_name: config.node.clone(),
            ip: config.ip,
            cluster: config.cluster.clone(),
            metadata: [
                ("GATEWAY_NAME".to_owned(), config.gateway.clone()),
                ("NETWORK".to_owned(), config.network.to_string()),
            ]
            .into(),
        },
        types: vec![ADDRESS_TYPE, ROUTE_TYPE],
    }
}

/// What `/debug/config_dump` shows.
fn debug(
    config: &Config,
    world: &World,
    stream: &client::Handle,
    certificates: &Certificates,
) -> impl Fn() -> serde_json::Value + Send + Sync + 'static {
    let id = config.id.to_string();
    let (world, stream, certificates) = (world.clone(), stream.clone(), certificates.clone());
    move || {
        let stream = format!("{:?}", *stream.state().borrow());
        json!({
            "identity": id,
            "discovery": stream,
            "certificates": &*certificates.list(),
            "mesh": world.look(|world| bounded(MOST_MESH, format_args!("{world:?}"))),
        })
    }
}

// === sockets ===

fn admin_addresses() -> Vec<SocketAddr> {
    let mut all = both_families(METRICS_PORT);
    all.extend(both_families(READY_PORT));
    all.push((Ipv4Addr::LOCALHOST, ADMIN_PORT).into());
    all
}

fn both_families(port: u16) -> Vec<SocketAddr> {
    vec![
        (Ipv4Addr::UNSPECIFIED, port).into(),
        (Ipv6Addr::UNSPECIFIED, port).into(),
    ]
}

/// Listens; nothing where the machine does not have the address's family.
fn listen(address: SocketAddr) -> io::Result<Option<TcpListener>> {
    match bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if address.is_ipv6() && is_no_family(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let kind = if address.is_ipv4() {
        socket2::Domain::IPV4
    } else {
        socket2::Domain::IPV6
    };
    let socket = socket2::Socket::new(kind, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_no_family(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(97) // EAFNOSUPPORT
}
