//! Builds the program from its configuration, owns every long-lived task, and takes it all down in order.

use std::{
    cell::RefCell,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use mesh::{
    ca::{Caller, CertificateClient},
    certs::{Certificates, Clock},
    control::Control,
    process::{
        admin::{self, Admin},
        metrics,
        readiness::{Pending, Readiness},
        shutdown::{Signals, Supervisor},
        telemetry::{self, Logs},
    },
    revocations::RevocationFile,
    world::{World, world_in},
    xds::{
        ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, MESH_STATE_TYPE,
        client::{self, Client, Handle, State},
        node::NodeInfo,
    },
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::{oneshot, watch},
    task::spawn_local,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cni::install::Installer,
    config::{Config, EXIT_USAGE},
    leaving::leave,
    metrics::Metrics,
    plugin::{Plugin, Standing},
    pods::{Pods, handover::Ztunnels, node::Node},
    proxy::Shared,
    workers::{Run, Workers},
};

/// Readiness, for the kubelet.
const READY_PORT: u16 = 15021;
/// Metrics, for Prometheus.
const METRICS_PORT: u16 = 15020;
/// Everything, for whoever is inside the pod.
const ADMIN_PORT: u16 = 15000;

/// The exit code of a program that could not start (`EX_OSERR`).
const CANNOT_START: u8 = 71;

/// Runs the node proxy until it is told to end.
pub fn run(config: Config) -> ExitCode {
    let logs = match telemetry::init(config.log_format, &config.log_filter) {
        Ok(logs) => logs,
        Err(error) => {
            eprintln!("ztunnel: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    tracing::info!(?config, version = env!("CARGO_PKG_VERSION"), "starting");
    raise_file_limit();
    let started = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .and_then(|runtime| runtime.block_on(serve(config, &logs)));
    started.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot start");
        ExitCode::from(CANNOT_START)
    })
}

async fn serve(config: Config, logs: &Logs) -> io::Result<ExitCode> {
    let signals = Signals::new()?;
    let mut supervisor = Supervisor::new();
    let mut registry = metrics::registry("ztunnel");
    logs.register(&mut registry);
    let ready = Readiness::new();
    let awaits_xds = ready.wait_for("xds");

    let (world, control) = follow_controller(&config, &mut registry, &mut supervisor);
    let certificates = keep_certificates(&config, &mut registry, &mut supervisor);
    let metrics = Metrics::register(&mut registry);
    let standing = Standing::new(&ready, metrics.plugin_written.clone());
    let shared = Arc::new(Shared {
        world: world.clone(),
        metrics,
        trust_domain: config.trust_domain.clone(),
        cluster: config.cluster.clone(),
        node: config.node.clone(),
    });
    let spawn = |name, body| supervisor.must_live_thread(name, body);
    let workers = Arc::new(Workers::start(config.workers, &shared, spawn)?);
    supervisor.must_live("series", shared.metrics.clone().keep_current(world.clone()));
    supervisor.must_live("byte counters", workers.clone().keep_reporting());

    let synced = is_told(&control, &world);
    spawn_local(on_sync(synced.clone(), awaits_xds));
    let node = Node {
        shared,
        workers: workers.clone(),
        certificates: certificates.clone(),
        report: Box::new({
            let control = control.clone();
            move |report| control.report(report)
        }),
        forget: Box::new({
            let control = control.clone();
            move |uid| control.forget(uid)
        }),
        proc: config.paths.proc.clone(),
        connected: is_connected(&control),
        synced,
        end: CancellationToken::new(),
        runs: RefCell::new(Run::NONE),
        ztunnels: Ztunnels::new(config.paths.cni_socket.clone()),
        running: RefCell::default(),
    };
    let pods = Pods::new(node, config.paths.state.join("namespaces.json"));
    let installer = Installer {
        system_namespace: config.pod_namespace.to_string(),
        socket: config.paths.cni_socket.clone(),
        enrolled: config.paths.state.join("namespaces.json"),
        // CRI-O.
        replaying: vec![config.paths.proc.join("1/root/run/crio/crio.sock")],
        ..Installer::new(&config.paths.cni_conf, &config.paths.cni_bin)
    };
    let answering = pods.clone();
    let answer = async move |request| answering.answer(request).await;
    let plugin = Plugin::start(installer, answer, standing, supervisor.draining())?;

    let state = debug(&config, &world, &certificates, &workers);
    let admin = Admin::new(registry, ready, logs.filter(), state);
    for port in [READY_PORT, METRICS_PORT, ADMIN_PORT] {
        let listener = listen(port).await?;
        supervisor.must_live(
            format!("port {port}"),
            admin::serve(listener, admin.clone()),
        );
    }
    let draining = supervisor.draining();
    must_live_local(&mut supervisor, "pods", {
        let pods = pods.clone();
        async move {
            tokio::select! {
                () = pods.run() => {}
                () = draining.cancelled() => {}
            }
        }
    });
    let grace = drain_time(config.grace);
    let drain = Box::pin(async move {
        let successor = plugin.succeeded();
        let give_back = async || {
            plugin.remove().await;
            // Only if nothing else is in it.
            let _ = fs::remove_dir(&config.paths.state);
        };
        leave(&world, &pods, grace, successor, give_back).await;
    });
    Ok(supervisor
        .run(signals, drain, grace + LAST_RESORT)
        .await
        .code())
}

// === the control plane ===

fn follow_controller(
    config: &Config,
    registry: &mut Registry,
    supervisor: &mut Supervisor,
) -> (World, Handle) {
    let (mut writer, world) = world_in(config.network.clone());
    let config = client::Config {
        control: control(config, &config.xds_address),
        node: NodeInfo {
            kind: "ztunnel".into(),
            pod: config.pod_name.to_string(),
            namespace: config.pod_namespace.to_string(),
            node_name: config.node.to_string(),
            ip: config.pod_ip,
            cluster: config.cluster.to_string(),
            metadata: [("NETWORK".to_owned(), config.network.to_string())].into(),
        },
        types: vec![
            ADDRESS_TYPE,
            ENROLMENT_TYPE,
            ENROLLED_NAMESPACE_TYPE,
            MESH_STATE_TYPE,
        ],
    };
    let (client, handle) = Client::new(config, move |update| writer.apply(update));
    client.metrics().register(registry);
    supervisor.must_live("xds", client.run());
    (world, handle)
}

fn keep_certificates(
    config: &Config,
    registry: &mut Registry,
    supervisor: &mut Supervisor,
) -> Certificates {
    let control = control(config, &config.ca_address);
    let authority = CertificateClient::new(control, &*config.cluster, Caller::Node);
    let (file, in_force) = RevocationFile::open(config.revocations.clone());
    file.register(registry);
    supervisor.must_live("revocation lists", file.run());
    let (certificates, keeper) = Certificates::new(authority, Clock::system());
    keeper.metrics().register(registry);
    supervisor.must_live("certificates", keeper.judging_by(in_force).run());
    certificates
}

fn control(config: &Config, address: &str) -> Control {
    Control {
        address: address.to_owned(),
        server_name: None,
        roots: config.root_ca.clone(),
        token: Some(config.token.clone()),
    }
}

fn is_connected(control: &Handle) -> watch::Receiver<bool> {
    let (say, connected) = watch::channel(false);
    let mut state = control.state();
    spawn_local(async move {
        loop {
            say.send_replace(*state.borrow_and_update() == State::Connected);
            if state.changed().await.is_err() {
                return;
            }
        }
    });
    connected
}

/// True once the controller has told everything, in terms of the network that we are in; stays true.
fn is_told(control: &Handle, world: &World) -> watch::Receiver<bool> {
    let (say, told) = watch::channel(false);
    let (mut synced, world) = (control.synced(), world.clone());
    spawn_local(async move {
        if synced.wait_for(|synced| *synced).await.is_ok() {
            world.located().await;
            say.send_replace(true);
            // Nobody may take its end for a change.
            say.closed().await;
        }
    });
    told
}

async fn on_sync(mut synced: watch::Receiver<bool>, awaits: Pending) {
    if synced.wait_for(|synced| *synced).await.is_ok() {
        tracing::info!("the controller has told everything once");
        drop(awaits);
    }
}

// === leaving ===

/// What the termination grace leaves for connections, after what the rest needs.
fn drain_time(grace: Duration) -> Duration {
    let reserve = if grace <= Duration::from_secs(10) {
        1
    } else {
        5
    };
    grace.saturating_sub(Duration::from_secs(reserve))
}

/// After the drain's own deadline: the kernel's tables must still be cleaned.
const LAST_RESORT: Duration = Duration::from_secs(3);

// === household ===

/// As [`Supervisor::must_live`], for a task that stays on this thread.
fn must_live_local<T: Send + 'static>(
    supervisor: &mut Supervisor,
    name: &'static str,
    task: impl Future<Output = T> + 'static,
) {
    let (say, said) = oneshot::channel();
    spawn_local(async move {
        let _ = say.send(task.await);
    });
    supervisor.must_live(name, async move {
        let _ = said.await;
    });
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    let address: std::net::SocketAddr = match port {
        ADMIN_PORT => return TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await,
        _ => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        // No IPv6 here.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// Every connection is two sockets: the kernel's most is just enough.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn debug(
    config: &Config,
    world: &World,
    certificates: &Certificates,
    workers: &Arc<Workers>,
) -> impl Fn() -> serde_json::Value + Send + Sync + 'static {
    let config = format!("{config:?}");
    let (world, certificates, workers) = (world.clone(), certificates.clone(), workers.clone());
    move || {
        let enrolments = world.look(|w| {
            let each = w.enrolments().map(|e| {
                json!({
                    "uid": e.uid.to_string(),
                    "pod": format!("{}/{}", e.namespace, e.name),
                    "capture": e.capture,
                })
            });
            each.collect::<Vec<_>>()
        });
        json!({
            "config": config,
            "enrolments": enrolments,
            "certificates": *certificates.list(),
            "proxies": workers.list(),
        })
    }
}
