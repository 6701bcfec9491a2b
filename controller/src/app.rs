//! Builds everything and owns every task that must live.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use kube::Client;
use mesh::process::admin::{self, Admin};
use mesh::process::readiness::Readiness;
use mesh::process::shutdown::{Exit, Signals, Supervisor};
use mesh::process::telemetry::FilterHandle;
use tokio::sync::{mpsc, watch};

use crate::ca::authority::Authority;
use crate::ca::authorize::Rules;
use crate::ca::store::Store;
use crate::ca::{Certificates, roots};
use crate::config::Config;
use crate::desired::DesiredState;
use crate::discovery::Discovery;
use crate::discovery::authenticate::checked::Checked;
use crate::discovery::authenticate::{Authenticate, TokenReviews};
use crate::discovery::snapshot::Snapshot;
use crate::hub::{Hub, IndexState, Outputs};
use crate::index::Input;
use crate::listen::listen;
use crate::metrics::Metrics;
use crate::reconcile;
use crate::refusals::Refusals;
use crate::server;
use crate::status::{Order, Writer};
use crate::uninstall::Installation;
use crate::watch as watches;
use crate::waypoint::render::Mesh;
use crate::waypoint::{self, Deployer, Task};

/// Inputs that wait for the index.
const TOLD: usize = 16_384;
/// Orders that wait for the writer.
const ORDERS: usize = 1024;
/// How long an uninstallation may take before the rest is left to people.
const UNINSTALL: Duration = Duration::from_secs(40);
/// How long the writes of an uninstallation may take.
const WITHDRAW: Duration = Duration::from_secs(20);

/// What others are told through.
struct Channels {
    told: mpsc::Sender<Input>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    roots: watch::Receiver<BTreeSet<Arc<str>>>,
    state: watch::Receiver<IndexState>,
}

/// Runs until told to stop.
pub async fn run(config: Config, filter: FilterHandle) -> anyhow::Result<Exit> {
    let signals = Signals::new()?;
    let client = crate::kubernetes::client().await?;
    let metrics = Metrics::default();
    let mut registry = mesh::process::metrics::registry("controller");
    metrics.register(&mut registry);
    let ready = Readiness::new();
    let index = ready.wait_for("index");
    let serving = ready.wait_for("server");
    let mut tasks = Supervisor::new();

    let summary = Arc::new(ArcSwap::from_pointee(serde_json::Value::Null));
    let admin = Admin {
        registry: Arc::new(registry),
        ready,
        filter,
        debug: {
            let summary = summary.clone();
            Arc::new(move || (**summary.load()).clone())
        },
    };
    tasks.must_live(
        "admin",
        admin::serve(listen(config.admin_listen)?, admin.clone()),
    );
    tasks.must_live(
        "readiness",
        admin::serve(listen(config.ready_listen)?, admin),
    );

    let authority = Arc::new(
        Store::new(
            client.clone(),
            &config.namespace,
            config.trust_domain.as_str(),
            &config.pod_name,
        )
        .wait()
        .await,
    );
    let channels = join(&client, &config, &metrics, index, summary, &mut tasks);
    let publisher = roots::publish(
        client.clone(),
        authority.roots().to_owned(),
        channels.roots.clone(),
    );
    tasks.must_live("roots", publisher);

    let installation = config
        .installed_as
        .as_ref()
        .map(|name| Installation::new(client.clone(), &config.namespace, name));
    if let Some(installation) = &installation {
        tasks.must_live("guard", installation.clone().guard());
    }
    tasks.must_live(
        "server",
        serve(
            config.clone(),
            client.clone(),
            authority,
            metrics,
            &channels,
            serving,
        )
        .await?,
    );

    let done = uninstaller(client, installation, &channels, &mut tasks);
    let told = channels.told.clone();
    let exit = tasks
        .run(
            signals,
            wind_down(told, done),
            UNINSTALL + Duration::from_secs(5),
        )
        .await;
    Ok(exit)
}

/// Watches, the index, and those who act on what it says.
fn join(
    client: &Client,
    config: &Config,
    metrics: &Metrics,
    index: mesh::process::readiness::Pending,
    summary: Arc<ArcSwap<serde_json::Value>>,
    tasks: &mut Supervisor,
) -> Channels {
    let (told, inputs) = mpsc::channel(TOLD);
    let (orders, ordered) = mpsc::channel::<Order>(ORDERS);
    let (work, worked) = mpsc::channel::<Task>(ORDERS);
    let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
    // Proxies of the system itself wait for them.
    let roots = watch::Sender::new(BTreeSet::from([Arc::from(config.namespace.as_str())]));
    let state = watch::Sender::new(IndexState::default());
    let desired = watch::Sender::new(DesiredState::default());
    let channels = Channels {
        told: told.clone(),
        snapshots: snapshots.subscribe(),
        roots: roots.subscribe(),
        state: state.subscribe(),
    };

    tasks.must_live(
        "status",
        Writer::new(client.clone(), &config.pod_name, metrics.clone()).run(ordered),
    );
    let mesh = Mesh {
        image: config.waypoint_image.clone(),
        pull_policy: config.waypoint_pull_policy.clone(),
        xds_address: config.xds_address(),
        trust_domain: config.trust_domain.as_str().to_owned(),
        cluster_id: config.cluster_id.clone(),
        cluster_domain: config.cluster_domain.clone(),
        log_format: if config.log_format == mesh::process::telemetry::LogFormat::Json {
            "json"
        } else {
            "text"
        }
        .to_owned(),
    };
    tasks.must_live(
        "deployer",
        Deployer::new(client.clone(), mesh, orders.clone()).run(worked),
    );
    tasks.must_live(
        "watch deployments",
        waypoint::watch_children::<Deployment>(client.clone(), work.clone()),
    );
    tasks.must_live(
        "watch own services",
        waypoint::watch_children::<Service>(client.clone(), work.clone()),
    );
    tasks.must_live(
        "watch accounts",
        waypoint::watch_children::<ServiceAccount>(client.clone(), work.clone()),
    );
    watches::all(client, &config.settings(), &told, tasks);
    tasks.must_live(
        "desired state",
        reconcile::distribute(desired.subscribe(), orders, work, roots),
    );
    let out = Outputs {
        snapshots,
        desired,
        state,
        summary,
    };
    tasks.must_live("index", Hub::new(config.settings(), index, out).run(inputs));
    channels
}

/// Serves as soon as there is something whole to serve: a proxy must never be told that the mesh is empty.
async fn serve(
    config: Config,
    client: Client,
    authority: Arc<Authority>,
    metrics: Metrics,
    channels: &Channels,
    serving: mesh::process::readiness::Pending,
) -> anyhow::Result<impl Future<Output = Result<(), server::ServeError>> + Send + use<>> {
    let listener = listen(config.listen)?;
    let authenticate: Arc<dyn Authenticate> =
        Arc::new(Checked::new(TokenReviews::new(client), metrics.clone()));
    let discovery = Discovery {
        authenticate: authenticate.clone(),
        node_accounts: config.node_accounts().into(),
        snapshots: channels.snapshots.clone(),
        index: channels.told.clone(),
        metrics: metrics.clone(),
    };
    let rules = Rules {
        trust_domain: config.trust_domain.clone(),
        allow_self_issue: config.allow_self_issue,
    };
    let certificates = Certificates {
        authenticate,
        rules: Arc::new(rules),
        snapshots: channels.snapshots.clone(),
        authority: authority.clone(),
        refusals: Refusals::new(metrics.clone()),
        metrics,
    };
    let mut state = channels.state.clone();
    Ok(async move {
        if state.wait_for(|state| state.synced).await.is_err() {
            return Ok(());
        }
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

/// Cleans up once the mesh is being deleted, and says (`true`) when that is done. Before, it says whether it must be.
fn uninstaller(
    client: Client,
    installation: Option<Installation>,
    channels: &Channels,
    tasks: &mut Supervisor,
) -> (Option<Installation>, watch::Receiver<bool>) {
    let (done, when_done) = watch::channel(false);
    let mut state = channels.state.clone();
    let roots = channels.roots.clone();
    let owned = installation.clone();
    tasks.must_live("uninstaller", async move {
        let kept = loop {
            // What is there before it is withdrawn.
            let kept = roots.borrow().clone();
            tokio::select! {
                left = state.wait_for(|state| state.uninstalling) => {
                    if left.is_err() {
                        return;
                    }
                    break kept;
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        };
        tracing::info!("the mesh is being deleted: withdrawing everything that was written");
        let settled = async { state.wait_for(|state| state.writes_settled).await.is_ok() };
        if tokio::time::timeout(WITHDRAW, settled).await != Ok(true) {
            tracing::error!("not everything could be withdrawn in time");
        }
        for namespace in &kept {
            if let Err(error) = roots::remove(&client, namespace).await {
                tracing::warn!(%namespace, %error, "the roots cannot be withdrawn");
            }
        }
        if let Err(error) = waypoint::remove_all(&client).await {
            tracing::error!(%error, "waypoints or classes are left");
        }
        if let Some(installation) = owned {
            installation.release().await;
        }
        tracing::info!("nothing is left");
        done.send_replace(true);
        // It must live: what follows is the signal.
        std::future::pending::<()>().await;
    });
    (installation, when_done)
}

/// On a signal: leaves things as they are, unless the mesh is being deleted.
async fn wind_down(
    told: mpsc::Sender<Input>,
    (installation, mut done): (Option<Installation>, watch::Receiver<bool>),
) {
    let Some(installation) = installation else {
        return;
    };
    if !*done.borrow() && !installation.leaving().await {
        return;
    }
    // The index may have seen it already; saying it twice does no harm.
    let _ = told.send(Input::Leave).await;
    let finished = async { done.wait_for(|done| *done).await.is_ok() };
    if tokio::time::timeout(UNINSTALL, finished).await != Ok(true) {
        tracing::error!("the mesh could not be withdrawn in time");
    }
}
