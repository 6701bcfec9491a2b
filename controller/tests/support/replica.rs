//! A whole replica of the controller but for its server, against the scripted Kubernetes: watches, index, Lease, reconciler.
//!
//! A test file takes it with `#[path = "support/replica.rs"] mod replica;`, beside `mod kubernetes;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

mod settings;

use std::sync::Arc;

use arc_swap::ArcSwap;
use controller::discovery::snapshot::Snapshot;
use controller::hub::{Hub, IndexState, Outputs};
use controller::index::Input;
use controller::index::desired::DesiredState;
use controller::kubernetes::DeadlineLayer;
use controller::lease::{Candidate, Term};
use controller::metrics::Metrics;
use controller::reconcile::{self, Inputs, Reconciler, seen};
use controller::watch::liveness::Liveness;
use controller::watch::{self, Reporting};
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
    pub ready: Readiness,
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
        let (notices, noticed) = mpsc::channel(1024);
        let reporting = Reporting {
            metrics: Metrics::default(),
            notices,
            liveness: Liveness::default(),
        };
        let ready = Readiness::new();
        let (liveness, leads) = (reporting.liveness.clone(), term.clone());
        tasks.must_live(
            "liveness",
            liveness.keep(ready.clone(), move || leads.leads()),
        );
        watch::all(&client, &settings::index(), &told, &reporting, &mut tasks);
        let desired = channel::Sender::new(DesiredState::default());
        let wanted = desired.subscribe();
        let out = Outputs {
            snapshots: channel::Sender::new(Arc::new(Snapshot::default())),
            desired,
            state,
            summary: Arc::new(ArcSwap::from_pointee(Value::Null)),
        };
        let pending = ready.wait_for("index");
        tasks.must_live(
            "index",
            Hub::new(settings::index(), pending, out).run(inputs),
        );

        let (seen, happened) = mpsc::channel(1024);
        seen::all(&client, &seen, &mut tasks);
        let inputs = Inputs {
            desired: wanted.clone(),
            term: term.clone(),
            seen: happened,
            notices: noticed,
        };
        let settings = reconcile::Settings {
            client,
            instance: name.to_owned(),
            namespace: "ambit-system".to_owned(),
            mesh: settings::waypoints(),
            roots: channel::channel("the roots".to_owned()).1,
            revocations: None,
        };
        let reconciler = Reconciler::new(settings, term.clone(), Metrics::default());
        tasks.must_live("reconciler", reconciler.run(inputs));
        Self {
            term,
            ready,
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
