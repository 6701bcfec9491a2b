//! Streams of proxies against the real discovery service, in plain: `zt1` is the ztunnel of n1, `gate-0` the waypoint `shop/gate`.
//!
//! A test file takes it with `#[path = "support/streams.rs"] mod streams;`, beside `mod support;` and `mod server;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use controller::discovery::authenticate::{Authenticate, AuthenticateError, Caller};
use controller::discovery::service::DiscoveryServer;
use controller::discovery::snapshot::Snapshot;
use controller::index::Input;
use controller::index::changes::Kind;
use controller::index::names::Key;
use controller::metrics::Metrics;
use controller::position::Positions;
use mesh::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Status, Streaming};

use crate::server::Parts;
use crate::support::{World, gateway, namespace, our_class, pod, waypoint};

pub const LONG: Duration = Duration::from_secs(10);

/// Tokens that are names; a token that is not there (any more) is refused.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<HashMap<String, Caller>>>);

#[tonic::async_trait]
impl Authenticate for Tokens {
    async fn whose(&self, token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
        let tokens = self.0.lock();
        let known = tokens.get(token).cloned();
        known.ok_or_else(|| AuthenticateError::Refused("unknown token".to_owned()))
    }
}

impl Tokens {
    /// Makes this token somebody's.
    pub fn give(&self, token: &str, namespace: &str, account: &str, pod: &str) {
        let caller = Caller {
            account: Key::new(namespace, account),
            pod: Some(pod.into()),
            node: None,
        };
        self.0.lock().insert(token.to_owned(), caller);
    }

    /// Makes it nobody's.
    pub fn revoke(&self, token: &str) {
        self.0.lock().remove(token);
    }
}

/// The discovery service without TLS, its world, and what it told the index.
pub struct Controller {
    pub world: World,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub told: mpsc::Receiver<Input>,
    /// The other end of the index's queue.
    pub index: mpsc::Sender<Input>,
    pub tokens: Tokens,
    metrics: Metrics,
    pub address: SocketAddr,
}

/// A proxy's end of a stream.
pub struct Conversation {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

impl Controller {
    pub async fn start() -> Self {
        Self::of(World::new(), "").await
    }

    pub async fn in_network(network: &str) -> Self {
        Self::of(World::in_network(network), network).await
    }

    pub async fn with(world: World) -> Self {
        Self::of(world, "").await
    }

    async fn of(world: World, network: &str) -> Self {
        let tokens = Tokens::default();
        tokens.give("ztunnel", "ambit-system", "ztunnel", "zt1");
        tokens.give("waypoint", "shop", "gate", "gate-0");
        let (snapshots, seen) = watch::channel(Arc::new(Snapshot::new(network.into())));
        let (index, told) = mpsc::channel(64);
        let metrics = Metrics::default();
        let parts = Parts {
            authenticate: Arc::new(tokens.clone()),
            snapshots: seen,
            index: index.clone(),
            metrics: metrics.clone(),
        };
        let discovery = parts.discovery();
        let (streams, gone) = (discovery.streams.clone(), discovery.index.clone());
        tokio::spawn(async move { streams.tell(gone).await });
        let service = DiscoveryServer::new(discovery, 1 << 20);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let mut controller = Self {
            world,
            snapshots,
            told,
            index,
            tokens,
            metrics,
            address,
        };
        controller.apply([
            ztunnel(),
            namespace("shop", json!({})),
            our_class(),
            gateway("shop", "gate"),
        ]);
        controller.apply(waypoint("shop", "gate"));
        controller
    }

    pub fn apply(&mut self, objects: impl IntoIterator<Item = Value>) {
        let changes = self.world.apply(objects);
        let mut snapshot = (**self.snapshots.borrow()).clone();
        snapshot.apply(&changes);
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str) {
        let changes = self.world.delete(kind, namespace, name);
        let mut snapshot = (**self.snapshots.borrow()).clone();
        snapshot.apply(&changes);
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// The watch of pods has seen this version.
    pub fn seen(&mut self, version: &str) {
        let mut positions = Positions::default();
        positions.changed("pods", version);
        let mut snapshot = (**self.snapshots.borrow()).clone();
        snapshot.set_positions(&positions);
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// What is counted, as it is scraped.
    pub fn metrics(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        text
    }

    pub async fn open(&self, token: &str) -> Result<Conversation, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address));
        let channel = endpoint.expect("a URL").connect().await.expect("connected");
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        let header = format!("Bearer {token}").parse().expect("a header");
        request.metadata_mut().insert("authorization", header);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(request).await?;
        Ok(Conversation {
            requests,
            responses: responses.into_inner(),
        })
    }
}

pub fn ztunnel() -> Value {
    let mut ztunnel = pod("ambit-system", "zt1", "10.0.9.1", json!({}));
    ztunnel["spec"]["serviceAccountName"] = json!("ztunnel");
    ztunnel["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "ds", "controller": true},
    ]);
    ztunnel
}

pub fn subscription(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

impl Conversation {
    pub async fn say(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.expect("the stream lives");
    }

    /// The next response, acknowledged.
    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = timeout(LONG, self.responses.message()).await;
        let response = response.expect("in time").expect("no end").expect("no end");
        let mut ack = subscription(&response.type_url);
        ack.response_nonce.clone_from(&response.nonce);
        self.say(ack).await;
        response
    }

    /// Type, names and removed names of the next response.
    pub async fn names(&mut self) -> (String, Vec<String>, Vec<String>) {
        let response = self.next().await;
        let names = response.resources.into_iter().map(|resource| resource.name);
        let kind = response.type_url.rsplit('.').next().unwrap_or_default();
        (kind.to_owned(), names.collect(), response.removed_resources)
    }

    /// The status with which it ends; whatever comes before is skipped.
    pub async fn end(&mut self) -> Status {
        loop {
            match timeout(LONG, self.responses.message())
                .await
                .expect("in time")
            {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}
