//! A whole replica of the controller but for its server, against the scripted Kubernetes: watches, index, Lease, reconciler.
//!
//! A test file takes it with `#[path = "support/replica.rs"] mod replica;`, beside `mod kubernetes;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::sync::Arc;

use arc_swap::ArcSwap;
use controller::desired::DesiredState;
use controller::discovery::snapshot::Snapshot;
use controller::hub::{Hub, IndexState, Outputs};
use controller::index::placement::NodeProxyRule;
use controller::index::{Input, Settings};
use controller::kubernetes::DeadlineLayer;
use controller::lease::{Candidate, Term};
use controller::metrics::Metrics;
use controller::reconcile::{self, Inputs, Reconciler, seen};
use controller::watch;
use controller::waypoint::render::Mesh;
use kube::Client;
use mesh::process::readiness::Readiness;
use mesh::process::shutdown::Supervisor;
use mesh::proto::node::{EnrolmentReport, enrolment_report::State};
use serde_json::Value;
use tokio::sync::{mpsc, watch as channel};
use tower::Layer as _;

use crate::kubernetes::Cluster;

/// Ends when it is dropped.
pub struct Replica {
    pub term: Term,
    pub desired: channel::Receiver<DesiredState>,
    told: mpsc::Sender<Input>,
    stop: channel::Sender<bool>,
    _tasks: Supervisor,
}

impl Replica {
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        let service = DeadlineLayer::default().layer(cluster.service());
        let client = Client::new(service, "default");
        let mut tasks = Supervisor::new();
        let state = channel::Sender::new(IndexState::default());
        let candidate = Candidate::new(
            client.clone(),
            "ambit-system",
            name.to_owned(),
            state.subscribe(),
            Metrics::default(),
        );
        let (stop, stopped) = channel::channel(false);
        let term = candidate.term();
        tasks.must_live("lease", candidate.run(stopped));

        let (told, inputs) = mpsc::channel(1024);
        watch::all(
            &client,
            &index_settings(),
            &told,
            &Metrics::default(),
            &mut tasks,
        );
        let desired = channel::Sender::new(DesiredState::default());
        let wanted = desired.subscribe();
        let out = Outputs {
            snapshots: channel::Sender::new(Arc::new(Snapshot::default())),
            desired,
            state,
            summary: Arc::new(ArcSwap::from_pointee(Value::Null)),
        };
        let pending = Readiness::new().wait_for("index");
        tasks.must_live(
            "index",
            Hub::new(index_settings(), pending, out).run(inputs),
        );

        let (seen, happened) = mpsc::channel(1024);
        seen::all(&client, &seen, &mut tasks);
        let inputs = Inputs {
            desired: wanted.clone(),
            term: term.clone(),
            seen: happened,
        };
        let settings = reconcile::Settings {
            client,
            instance: name.to_owned(),
            namespace: "ambit-system".to_owned(),
            mesh: waypoints(),
            roots: channel::channel("the roots".to_owned()).1,
        };
        let reconciler = Reconciler::new(settings, term.clone(), Metrics::default());
        tasks.must_live("reconciler", reconciler.run(inputs));
        Self {
            term,
            desired: wanted,
            told,
            stop,
            _tasks: tasks,
        }
    }

    /// Gives the Lease back and does not seek it any more; serves on.
    pub fn abdicate(&self) {
        self.stop.send_replace(true);
    }

    /// What a node says of a pod, to this replica.
    pub async fn report(&self, node: &str, uid: &str, state: State, reason: &str) {
        let report = EnrolmentReport {
            uid: uid.to_owned(),
            state: state.into(),
            reason: reason.to_owned(),
            message: String::new(),
        };
        let node = node.into();
        let told = self.told.send(Input::Report { node, report }).await;
        told.expect("the hub lives");
    }
}

pub fn index_settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".into(),
        excluded_namespaces: vec!["kube-system".to_owned()],
        system_namespace: "ambit-system".to_owned(),
        node_proxies: vec![NodeProxyRule::ours("ambit-system")],
        passed_on_prefixes: Vec::new(),
        ..Settings::default()
    }
}

pub fn waypoints() -> Mesh {
    Mesh {
        image: "ambit/waypoint:test".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        xds_address: "ambit-controller.ambit-system.svc:15012".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        log_format: "text".to_owned(),
    }
}
