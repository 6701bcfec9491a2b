//! The delta-xDS service: who asks, what they may see, and for how long a stream lives.

pub mod authenticate;
pub mod snapshot;

use std::sync::Arc;

use mesh::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh::proto::node::EnrolmentReport;
use mesh::xds::ENROLMENT_REPORT_TYPE;
use mesh::xds::session::{Action, ControllerSession};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::authenticate::{Authenticate, Caller};
use self::snapshot::{Snapshot, Viewer};
use crate::connection::CallerConnection;
use crate::index::Input;
use crate::index::changes::Role;
use crate::index::names::Key;
use crate::message_limit::MessageLimit;
use crate::metrics::Metrics;

/// Resources in one response: enough that a large mesh needs few, small enough that one is decoded in a blink.
const MAX_RESOURCES: usize = 5000;
/// Responses that wait for a slow proxy; each type has one in flight at most.
const RESPONSES: usize = 8;

/// The service.
#[derive(Clone)]
pub struct Discovery {
    /// Who is calling.
    pub authenticate: Arc<dyn Authenticate>,
    /// The service accounts of node proxies.
    pub node_accounts: Arc<[Key]>,
    /// What there is to see.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where reports go.
    pub index: mpsc::Sender<Input>,
    /// What is counted.
    pub metrics: Metrics,
}

/// One proxy's stream.
struct Stream {
    viewer: Viewer,
    name: String,
    session: ControllerSession,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    index: mpsc::Sender<Input>,
    metrics: Metrics,
}

// === impl Discovery ===

impl Discovery {
    /// What a caller may see; a refusal names what is missing.
    fn viewer(&self, caller: &Caller) -> Result<Viewer, Status> {
        let snapshot = self.snapshots.borrow();
        let place = caller.pod.as_deref().and_then(|uid| snapshot.pod(uid));
        if self.node_accounts.contains(&caller.account) {
            let node = caller
                .node
                .clone()
                .or_else(|| place.map(|place| place.node.clone()));
            return node.map(Viewer::Node).ok_or_else(|| {
                Status::permission_denied(
                    "a node proxy's token must be bound to its pod, and the pod to a node",
                )
            });
        }
        let gateway = place.and_then(|place| match &place.role {
            Role::Waypoint(gateway) => Some(gateway.clone()),
            Role::NodeProxy | Role::Application => None,
        });
        let Some(gateway) = gateway.filter(|gateway| *gateway == caller.account) else {
            let message = format!(
                "service account {} is neither a ztunnel's nor a waypoint's",
                caller.account
            );
            return Err(Status::permission_denied(message));
        };
        Ok(Viewer::Waypoint(gateway))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let connection = CallerConnection::of(&request);
        let limit = MessageLimit::of(&request);
        let caller = Caller::of(&request, &*self.authenticate).await;
        let viewer = caller.map_err(Status::from).and_then(|caller| {
            let viewer = self.viewer(&caller)?;
            connection.as_ref().map_or(Ok(()), CallerConnection::prove)?;
            Ok(viewer)
        }).inspect_err(|status| {
            self.metrics.refused("discovery", status.code());
            tracing::warn!(peer = ?connection.as_ref().map(CallerConnection::peer), reason = status.message(), "discovery refused");
        })?;
        if let Some(limit) = limit {
            limit.allow(self.snapshots.borrow().longest_request(&viewer));
        }
        let (out, responses) = mpsc::channel(RESPONSES);
        let name = match &viewer {
            Viewer::Node(node) => format!("ztunnel of {node}"),
            Viewer::Waypoint(gateway) => format!("waypoint {gateway}"),
        };
        let stream = Stream {
            viewer,
            name,
            session: ControllerSession::new(),
            snapshots: self.snapshots.clone(),
            out,
            index: self.index.clone(),
            metrics: self.metrics.clone(),
        };
        // It ends with its requests or its responses; nobody else waits for it.
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

// === impl Stream ===

impl Stream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        tracing::info!(proxy = self.name, "discovery begins");
        let _counted = self.metrics.stream();
        let end = loop {
            let live = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) => break "the proxy closed it".to_owned(),
                    Err(status) => {
                        let reason = status.message().to_owned();
                        // It may be the connection that failed; then nobody reads why.
                        let _ = self.out.try_send(Err(status));
                        break reason;
                    }
                },
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => self.changed().await,
                    Err(_) => break "the controller stops".to_owned(),
                },
                () = self.out.closed() => break "the proxy is gone".to_owned(),
            };
            if let Err(reason) = live {
                break reason;
            }
        };
        tracing::info!(proxy = self.name, reason = end, "discovery ended");
    }

    async fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), String> {
        self.reports(&request).await?;
        let action = match self.session.on_request(&request) {
            Ok(action) => action,
            Err(error) => {
                let message = error.to_string();
                // Whoever does not listen need not be told.
                let _ = self
                    .out
                    .send(Err(Status::invalid_argument(message.clone())))
                    .await;
                return Err(message);
            }
        };
        match action {
            Action::Nacked { reason } => {
                self.metrics.nacked(&request.type_url);
                tracing::warn!(
                    proxy = self.name,
                    r#type = request.type_url,
                    reason,
                    "resources refused by the proxy"
                );
            }
            Action::Nothing => return Ok(()),
            Action::Subscribed | Action::Acked => {}
        }
        self.push(&request.type_url).await
    }

    async fn changed(&mut self) -> Result<(), String> {
        let types: Vec<String> = self.session.types().map(str::to_owned).collect();
        for type_url in types {
            self.push(&type_url).await?;
        }
        Ok(())
    }

    async fn push(&mut self, type_url: &str) -> Result<(), String> {
        let now = self.snapshots.borrow().resources(&self.viewer, type_url);
        let Some(response) = self.session.changes(type_url, &now, MAX_RESOURCES) else {
            return Ok(());
        };
        self.metrics.pushed(type_url);
        tracing::debug!(
            proxy = self.name,
            r#type = type_url,
            updated = response.resources.len(),
            removed = response.removed_resources.len(),
            "push"
        );
        self.out
            .send(Ok(response))
            .await
            .map_err(|_| "the proxy is gone".to_owned())
    }

    /// Only a node speaks of pods, and only of its own.
    async fn reports(&self, request: &DeltaDiscoveryRequest) -> Result<(), String> {
        let Viewer::Node(node) = &self.viewer else {
            return Ok(());
        };
        for any in request
            .reports
            .iter()
            .filter(|any| any.type_url == ENROLMENT_REPORT_TYPE)
        {
            match EnrolmentReport::decode(&*any.value) {
                Ok(report) => {
                    tracing::debug!(%node, uid = report.uid, state = ?report.state(), reason = report.reason, "report");
                    let input = Input::Report {
                        node: node.clone(),
                        report,
                    };
                    self.index
                        .send(input)
                        .await
                        .map_err(|_| "the controller stops".to_owned())?;
                }
                Err(error) => tracing::warn!(%node, %error, "a report cannot be read"),
            }
        }
        Ok(())
    }
}
