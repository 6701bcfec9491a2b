//! The controller without Kubernetes: the real index and hub, and the real server on loopback; tokens are names.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use controller::discovery::authenticate::{Authenticate, AuthenticateError, Caller};
use controller::discovery::snapshot::Snapshot;
use controller::hub::{Hub, IndexState, Outputs};
use controller::index::desired::DesiredState;
use controller::index::event::{ObjectEvent, WatchEvent};
use controller::index::kinds::Kind;
use controller::index::names::Key;
use controller::index::placement::NodeProxyRule;
use controller::index::{Input, Settings};
use controller::metrics::Metrics;
use mesh::control::Control;
use mesh::process::readiness::Readiness;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::cluster::{Cluster, SYSTEM};
use crate::server::{Parts, Served};

/// As the program has it.
const INPUT_QUEUE: usize = 16_384;
/// The version of every list; pods have none older.
const LISTED_AT: &str = "10000000";
/// What its threads are called.
pub(crate) const THREADS: &str = "controller";

pub(crate) struct Controller {
    runtime: Runtime,
    inputs: mpsc::Sender<Input>,
    state: watch::Receiver<IndexState>,
    /// What waits to be written must not grow with what is read.
    desired: watch::Receiver<DesiredState>,
    served: Served,
}

/// A ztunnel's token is its pod's name.
struct Tokens;

#[tonic::async_trait]
impl Authenticate for Tokens {
    async fn whose(&self, token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
        let number = token
            .strip_prefix("ztunnel-")
            .and_then(|number| number.parse().ok());
        let node = number.map(Cluster::node);
        let node = node.ok_or_else(|| AuthenticateError::Refused("unknown token".to_owned()))?;
        Ok(Caller {
            account: Key::new(SYSTEM, "ztunnel"),
            pod: Some(token.into()),
            node: Some(node.as_str().into()),
        })
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".into(),
        excluded_namespaces: Vec::new(),
        system_namespace: SYSTEM.to_owned(),
        node_proxies: vec![NodeProxyRule::ours(SYSTEM)],
        ..Settings::default()
    }
}

// === impl Controller ===

impl Controller {
    pub(crate) fn start(threads: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(THREADS)
            .enable_all()
            .build()?;
        let (inputs, taken) = mpsc::channel(INPUT_QUEUE);
        let (snapshots, seen) = watch::channel(Arc::new(Snapshot::default()));
        let (desired, wanted) = watch::channel(DesiredState::default());
        let (state, when) = watch::channel(IndexState::default());
        let outputs = Outputs {
            snapshots,
            desired,
            state,
            summary: Arc::new(ArcSwap::from_pointee(Value::Null)),
        };
        let pending = Readiness::new().wait_for("index");
        runtime.spawn(Hub::new(settings(), pending, outputs).run(taken));

        let authenticate: Arc<dyn Authenticate> = Arc::new(Tokens);
        let parts = Parts {
            authenticate,
            snapshots: seen,
            index: inputs.clone(),
            metrics: Metrics::default(),
        };
        let served = runtime.block_on(parts.serve())?;
        Ok(Self {
            runtime,
            inputs,
            state: when,
            desired: wanted,
            served,
        })
    }

    /// Lists everything, and waits until the index has published it.
    pub(crate) fn load(&mut self, cluster: Cluster) -> anyhow::Result<()> {
        for kind in Kind::ALL {
            self.list(*kind, cluster)?;
        }
        let mut state = self.state.clone();
        self.runtime
            .block_on(state.wait_for(|state| state.synced))?;
        Ok(())
    }

    fn list(&self, kind: Kind, cluster: Cluster) -> anyhow::Result<()> {
        let say = |event| {
            let event = ObjectEvent::from_json(kind, event)?;
            let sent = self.inputs.blocking_send(Input::Object(event));
            sent.map_err(|_| anyhow::anyhow!("the hub ended"))?;
            anyhow::Ok(())
        };
        say(WatchEvent::Begin)?;
        cluster
            .objects(kind)
            .map(WatchEvent::Item)
            .try_for_each(say)?;
        let version = LISTED_AT.to_owned();
        say(WatchEvent::End { version })
    }

    /// One pod changed.
    pub(crate) async fn change(inputs: &mpsc::Sender<Input>, pod: Value) -> anyhow::Result<()> {
        let event = ObjectEvent::from_json(Kind::Pod, WatchEvent::Apply(pod))?;
        let sent = inputs.send(Input::Object(event)).await;
        sent.map_err(|_| anyhow::anyhow!("the hub ended"))?;
        Ok(())
    }

    pub(crate) fn inputs(&self) -> mpsc::Sender<Input> {
        self.inputs.clone()
    }

    /// Statuses that wait to be written: they would be figures of another story.
    pub(crate) fn outstanding(&self) -> usize {
        self.desired.borrow().len()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.served.address
    }

    /// The way to it for one stream's ztunnel, perhaps by a detour.
    pub(crate) fn control(&self, number: usize, address: SocketAddr) -> std::io::Result<Control> {
        let token = format!("ztunnel-{number:05}");
        let control = self.served.control(&token)?;
        Ok(Control {
            address: address.to_string(),
            ..control
        })
    }
}
