//! Builds everything and owns every task that must live.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kube::Client;
use mesh::process::admin::{self, Admin};
use mesh::process::readiness::Readiness;
use mesh::process::shutdown::{Exit, Signals, Supervisor};
use mesh::process::telemetry::Logs;
use tokio::sync::{mpsc, watch};

use crate::ca::Certificates;
use crate::ca::authority::Authority;
use crate::ca::store::Store;
use crate::config::Config;
use crate::discovery::authenticate::checked::Checked;
use crate::discovery::authenticate::{Authenticate, TokenReviews};
use crate::discovery::refusals::Refusals;
use crate::discovery::snapshot::Snapshot;
use crate::discovery::{Discovery, Streams};
use crate::hub::{Hub, IndexState, Outputs};
use crate::index::Input;
use crate::index::desired::DesiredState;
use crate::lease::{self, Candidate, Term};
use crate::listen::listen;
use crate::metrics::Metrics;
use crate::reconcile::{self, Reconciler, seen};
use crate::server;
use crate::uninstall::Installation;
use crate::uninstall::withdraw::{NODES_HEAR, Uninstaller};
use crate::watch::liveness::Liveness;
use crate::watch::{self as watches, Reporting};
use crate::waypoint::render::Mesh;

/// Inputs that wait for the index.
const INPUT_QUEUE: usize = 16_384;
/// Objects that cannot be read and shall have an Event: as many as anybody looks at.
const NOTICE_QUEUE: usize = 256;
/// What happened to things that were made, and waits for the reconciler. It never waits for a call: they are soon taken.
const SEEN_QUEUE: usize = 1024;
/// How long an uninstallation may take before the rest is left to people.
const UNINSTALL: Duration = Duration::from_secs(45);
// Or nodes that come back would find nobody.
const _: () = assert!(NODES_HEAR.as_secs() < UNINSTALL.as_secs());
/// How long giving back the lease may take; others take it anyhow when it ends.
const RELEASE: Duration = Duration::from_secs(4);

/// What others are told through.
struct Channels {
    inputs: mpsc::Sender<Input>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    desired: watch::Receiver<DesiredState>,
    state: watch::Receiver<IndexState>,
}

/// The signing key, once it is there. Without one nothing is served and nothing is written; but this replica ends when it
/// is told to, leads, and takes everything back when the mesh is deleted.
#[derive(Clone)]
struct Key(watch::Receiver<Option<Arc<Authority>>>);

/// Where the index says how far it is.
struct Progress {
    pending: mesh::process::readiness::Pending,
    state: watch::Sender<IndexState>,
    summary: Arc<ArcSwap<serde_json::Value>>,
}

/// Whether this replica writes, and how it ceases to.
struct Leadership {
    term: Term,
    stop: watch::Sender<bool>,
    released: watch::Receiver<bool>,
}

/// Runs until told to stop.
pub async fn run(config: Config, logs: &Logs) -> anyhow::Result<Exit> {
    let signals = Signals::new()?;
    let client = crate::kubernetes::client().await?;
    let metrics = Metrics::default();
    let mut registry = mesh::process::metrics::registry("controller");
    logs.register(&mut registry);
    metrics.register(&mut registry);
    let ready = Readiness::new();
    let index = ready.wait_for("index");
    let serving = ready.wait_for("server");
    let mut tasks = Supervisor::new();

    let summary = Arc::new(ArcSwap::from_pointee(serde_json::Value::Null));
    let shown = summary.clone();
    let admin = Admin::new(registry, ready.clone(), logs.filter(), move || {
        (**shown.load()).clone()
    });
    tasks.must_live(
        "admin",
        admin::serve(listen(config.admin_listen)?, admin.clone()),
    );
    tasks.must_live(
        "readiness",
        admin::serve(listen(config.ready_listen)?, admin),
    );

    let key = find_key(&client, &config, &mut tasks);
    let state = watch::Sender::new(IndexState::default());
    let leadership = lead(&client, &config, state.subscribe(), &metrics, &mut tasks);
    let progress = Progress {
        pending: index,
        state,
        summary,
    };
    let (notices, noticed) = mpsc::channel(NOTICE_QUEUE);
    let reporting = Reporting {
        metrics: metrics.clone(),
        notices,
        liveness: Liveness::default(),
    };
    let (liveness, term) = (reporting.liveness.clone(), leadership.term.clone());
    tasks.must_live("liveness", liveness.keep(ready, move || term.leads()));
    let channels = join(&client, &config, progress, &reporting, &mut tasks);
    // The roots are known with the key.
    let settings = reconcile::Settings {
        client: client.clone(),
        instance: config.pod_name.clone(),
        namespace: config.namespace.clone(),
        mesh: waypoints(&config),
        roots: watch::channel(String::new()).1,
        revocations: config.revocations.clone(),
    };
    let (seen, happened) = mpsc::channel(SEEN_QUEUE);
    seen::all(&client, &seen, &mut tasks);
    let inputs = reconcile::Inputs {
        desired: channels.desired.clone(),
        term: leadership.term.clone(),
        seen: happened,
        notices: noticed,
    };
    bring_about(settings, &key, &metrics, inputs, &mut tasks);

    let installation = config
        .installed_as
        .as_ref()
        .map(|name| Installation::new(client.clone(), &config.namespace, name));
    if let Some(installation) = &installation {
        tasks.must_live("guard", installation.clone().guard());
    }
    let (done, when_done) = watch::channel(false);
    let uninstaller = Uninstaller {
        client: lease::fenced(client.clone(), leadership.term.clone()),
        installation: installation.clone(),
        state: channels.state.clone(),
        term: leadership.term.clone(),
        done,
    };
    tasks.must_live("uninstaller", uninstaller.run());
    tasks.must_live(
        "server",
        serve(config, client, key, metrics, &channels, serving)?,
    );
    let inputs = channels.inputs.clone();
    let drain = async move {
        uninstalled(inputs, installation, when_done).await;
        leadership.give_back().await;
    };
    let most = UNINSTALL + RELEASE + Duration::from_secs(1);
    Ok(tasks.run(signals, drain, most).await)
}

/// Seeks the lease. The name is this process's alone: one that is started again is another candidate.
fn lead(
    client: &Client,
    config: &Config,
    index: watch::Receiver<IndexState>,
    metrics: &Metrics,
    tasks: &mut Supervisor,
) -> Leadership {
    let metrics = metrics.clone();
    let identity = format!("{}_{:016x}", config.pod_name, fastrand::u64(..));
    let candidate = Candidate::new(client.clone(), &config.namespace, identity, index, metrics);
    let (stop, stopped) = watch::channel(false);
    let leadership = Leadership {
        term: candidate.term(),
        released: candidate.released(),
        stop,
    };
    tasks.must_live("lease", candidate.run(stopped));
    leadership
}

/// Watches, and the index that they tell.
fn join(
    client: &Client,
    config: &Config,
    progress: Progress,
    reporting: &Reporting,
    tasks: &mut Supervisor,
) -> Channels {
    let Progress {
        pending,
        state,
        summary,
    } = progress;
    let (inputs, taken) = mpsc::channel(INPUT_QUEUE);
    let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
    let desired = watch::Sender::new(DesiredState::default());
    let channels = Channels {
        inputs: inputs.clone(),
        snapshots: snapshots.subscribe(),
        desired: desired.subscribe(),
        state: state.subscribe(),
    };
    watches::all(client, &config.settings(), &inputs, reporting, tasks);
    let out = Outputs {
        snapshots,
        desired,
        state,
        summary,
    };
    tasks.must_live(
        "index",
        Hub::new(config.settings(), pending, out).run(taken),
    );
    channels
}

/// Looks for the signing key, for as long as it takes.
fn find_key(client: &Client, config: &Config, tasks: &mut Supervisor) -> Key {
    let (found, key) = watch::channel(None);
    let store = Store::new(
        client.clone(),
        &config.namespace,
        config.trust_domain.as_str(),
        &config.pod_name,
    );
    tasks.must_live("signing key", async move {
        let authority = Arc::new(store.wait().await);
        found.send_replace(Some(authority.clone()));
        store.keep(&authority).await
    });
    Key(key)
}

/// Brings the cluster to what the index wants, once there are roots to publish.
fn bring_about(
    settings: reconcile::Settings,
    key: &Key,
    metrics: &Metrics,
    inputs: reconcile::Inputs,
    tasks: &mut Supervisor,
) {
    let (key, term, metrics) = (key.clone(), inputs.term.clone(), metrics.clone());
    tasks.must_live("reconciler", async move {
        let Some(authority) = key.found().await else {
            return;
        };
        let settings = reconcile::Settings {
            roots: authority.watch_roots(),
            ..settings
        };
        Reconciler::new(settings, term, metrics).run(inputs).await;
    });
}

/// What waypoints have in common.
fn waypoints(config: &Config) -> Mesh {
    let json = config.log_format == mesh::process::telemetry::LogFormat::Json;
    Mesh {
        image: config.waypoint_image.clone(),
        pull_policy: config.waypoint_pull_policy.clone(),
        xds_address: config.xds_address(),
        trust_domain: config.trust_domain.as_str().to_owned(),
        cluster_id: config.cluster_id.clone(),
        network: config.network.clone(),
        cluster_domain: config.cluster_domain.clone(),
        log_format: if json { "json" } else { "text" }.to_owned(),
    }
}

/// Serves as soon as there is something whole to serve: a proxy must never be told that the mesh is empty.
fn serve(
    config: Config,
    client: Client,
    key: Key,
    metrics: Metrics,
    channels: &Channels,
    serving: mesh::process::readiness::Pending,
) -> anyhow::Result<impl Future<Output = Result<(), server::ServeError>> + Send + use<>> {
    let listener = listen(config.listen)?;
    let authenticate: Arc<dyn Authenticate> =
        Arc::new(Checked::new(TokenReviews::new(client), metrics.clone()));
    let refusals = Refusals::new(metrics.clone());
    let discovery = Discovery {
        authenticate: authenticate.clone(),
        snapshots: channels.snapshots.clone(),
        index: channels.inputs.clone(),
        metrics: metrics.clone(),
        refusals: refusals.clone(),
        streams: Streams::default(),
    };
    let rules = config.rules();
    let snapshots = channels.snapshots.clone();
    let mut state = channels.state.clone();
    Ok(async move {
        if state.wait_for(|state| state.synced).await.is_err() {
            return Ok(());
        }
        let Some(authority) = key.found().await else {
            return Ok(());
        };
        let certificates = Certificates {
            authenticate,
            rules: Arc::new(rules),
            snapshots,
            authority: authority.clone(),
            refusals,
            metrics,
        };
        drop(serving);
        server::serve(
            listener,
            authority,
            config.dns_names(),
            discovery,
            certificates,
        )
        .await
    })
}

/// On a signal: leaves things as they are, unless the mesh is being deleted.
async fn uninstalled(
    inputs: mpsc::Sender<Input>,
    installation: Option<Installation>,
    mut done: watch::Receiver<bool>,
) {
    let Some(installation) = installation else {
        return;
    };
    if !*done.borrow() && !installation.leaving().await {
        return;
    }
    // The index may have seen it already; saying it twice does no harm.
    let _ = inputs.send(Input::Leave).await;
    let finished = async { done.wait_for(|done| *done).await.is_ok() };
    if tokio::time::timeout(UNINSTALL, finished).await != Ok(true) {
        tracing::error!("the mesh could not be withdrawn in time");
    }
}

// === impl Key ===

impl Key {
    /// Waits for it; `None` when the process ends without.
    async fn found(mut self) -> Option<Arc<Authority>> {
        let found = self.0.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }
}

// === impl Leadership ===

impl Leadership {
    /// So that another replica need not wait for the lease's end.
    async fn give_back(mut self) {
        self.stop.send_replace(true);
        let released = self.released.wait_for(|released| *released);
        let _ = tokio::time::timeout(RELEASE, released).await;
    }
}
