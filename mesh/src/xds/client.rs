//! The proxy's stream to the controller: connects, resumes, answers, reports, and never gives up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::node::NodeInfo;
use super::session::ProxySession;
use super::{ADDRESS_TYPE, ENROLMENT_REPORT_TYPE, Rejected, Update, is_ours};
use crate::backoff::Backoff;
use crate::control::{Control, ControlError, REACHED_WITHIN, causes};
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::proto::node::EnrolmentReport;

/// A controller of others sends all in one message: a million workloads are about that.
const MAX_MESSAGE: usize = 200 << 20;
/// The first delay after a failure.
const BACKOFF: Duration = Duration::from_millis(10);
/// The longest delay between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// After a stream that lived this long the delays start anew.
const STABLE_AFTER: Duration = Duration::from_secs(15);
/// How long a controller may take to open a stream: it may have to ask the API server whose token it is shown, and
/// answers HTTP/2 pings meanwhile.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// The longest from the end of a stream to the next, where the controller answers: the longest delay, and an attempt.
pub const BACK_WITHIN: Duration = MAX_BACKOFF
    .saturating_add(REACHED_WITHIN)
    .saturating_add(OPEN_DEADLINE);
/// Requests that wait for the connection to take them. One per response and type is under way at most.
const REQUESTS: usize = 32;
/// Reports that travel in one request.
const REPORTS: usize = 256;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the controller is.
    pub control: Control,
    /// Who we are.
    pub node: NodeInfo,
    /// What we want to be told.
    pub types: Vec<&'static str>,
}

/// The client. [`run`](Client::run) it on the control thread.
pub struct Client<A> {
    config: Config,
    session: ProxySession,
    apply: A,
    reports: watch::Receiver<AllReports>,
    lookups: watch::Receiver<Lookups>,
    state: watch::Sender<State>,
    synced: watch::Sender<bool>,
    metrics: Metrics,
}

/// What others see of the client, and how they report through it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    reports: watch::Sender<AllReports>,
    lookups: watch::Sender<Lookups>,
    state: watch::Receiver<State>,
    synced: watch::Receiver<bool>,
}

/// The stream's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The controller answers.
    Connected,
    /// It does not: not yet, or not any more. What it said last is kept.
    Disconnected(Arc<str>),
}

/// What the stream counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    connected: Gauge,
    terminations: Family<Reason, Counter>,
    messages: Family<Type, Counter>,
    bytes: Family<Type, Counter>,
    refused: Family<Type, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    url: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// The latest report of each pod: bounded by the node's pods, and a slow controller never delays who reports.
type AllReports = imbl::OrdMap<Arc<str>, EnrolmentReport>;

/// Names of addresses that are asked for one by one. Whoever asks bounds them.
type Lookups = imbl::OrdSet<Arc<str>>;

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(tonic::Status),
    #[error("the controller closed the stream")]
    Closed,
    #[error("the controller did not open a stream within {} s", OPEN_DEADLINE.as_secs())]
    Silent,
}

/// One stream's own state.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// Reports that were sent on this stream.
    reported: AllReports,
    /// The controller has served a type of ours on this stream, so it is ours and reads reports.
    ours: bool,
}

// === impl Client ===

impl<A: FnMut(&Update) -> Result<(), Rejected>> Client<A> {
    /// A client that hands every update to `apply`, which takes it whole or says which resources it refuses.
    pub fn new(config: Config, apply: A) -> (Self, Handle) {
        let (reports_in, reports) = watch::channel(AllReports::new());
        let (lookups_in, lookups) = watch::channel(Lookups::new());
        let (state, state_out) = watch::channel(State::Disconnected("not connected yet".into()));
        let (synced, synced_out) = watch::channel(false);
        let session = ProxySession::new(config.types.iter().copied());
        let metrics = Metrics::default();
        let client = Self {
            config,
            session,
            apply,
            reports,
            lookups,
            state,
            synced,
            metrics,
        };
        (
            client,
            Handle {
                reports: reports_in,
                lookups: lookups_in,
                state: state_out,
                synced: synced_out,
            },
        )
    }

    /// What it counts, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Stays connected for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut backoff = Backoff::new(BACKOFF, MAX_BACKOFF);
        loop {
            let started = Instant::now();
            let Err(ended) = self.stream().await;
            self.metrics.connected.set(0);
            self.metrics
                .terminations
                .get_or_create(&Reason {
                    reason: ended.reason(),
                })
                .inc();
            if started.elapsed() >= STABLE_AFTER {
                backoff.reset();
            }
            let delay = backoff.next();
            let controller = &self.config.control.address;
            tracing::warn!(%controller, ?delay, "xds: {ended}; what was known is kept");
            self.state
                .send_replace(State::Disconnected(ended.to_string().into()));
            tokio::time::sleep(delay).await;
        }
    }

    /// One stream from connect to end.
    async fn stream(&mut self) -> Result<Infallible, Ended> {
        let control = &self.config.control;
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let lookups = self.lookups.borrow_and_update().clone();
        // What they are is said by the opening requests.
        drop(self.session.ask(ADDRESS_TYPE, lookups));
        let opening = self.session.open(&self.config.node.to_proto());
        let request = control.authorized(tokio_stream::StreamExt::chain(
            tokio_stream::iter(opening),
            ReceiverStream::new(outgoing),
        ))?;
        let channel = control.connect().await?;
        let mut discovery = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(usize::MAX);
        let opened = timeout(OPEN_DEADLINE, discovery.delta_aggregated_resources(request));
        let mut responses = opened.await.map_err(|_| Ended::Silent)??.into_inner();
        tracing::info!(controller = %control.address, "xds: connected");
        self.metrics.connected.set(1);
        self.state.send_replace(State::Connected);
        let mut stream = Stream {
            requests,
            reported: AllReports::new(),
            ours: false,
        };
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = response?.ok_or(Ended::Closed)?;
                    self.on_response(response, &mut stream).await?;
                }
                Ok(()) = self.reports.changed(), if stream.ours => {}
                Ok(()) = self.lookups.changed(), if stream.ours => {}
            }
            if stream.ours {
                let lookups = self.lookups.borrow_and_update().clone();
                if let Some(request) = self.session.ask(ADDRESS_TYPE, lookups) {
                    stream.send(request).await?;
                }
                let reports = self.reports.borrow_and_update().clone();
                stream.report(reports).await?;
            }
        }
    }

    async fn on_response(
        &mut self,
        response: DeltaDiscoveryResponse,
        stream: &mut Stream,
    ) -> Result<(), Ended> {
        let label = self.label(&response.type_url);
        let (updated, removed) = (response.resources.len(), response.removed_resources.len());
        self.metrics.messages.get_or_create(&label).inc();
        self.metrics
            .bytes
            .get_or_create(&label)
            .inc_by(response.encoded_len() as u64);
        stream.ours |= is_ours(&response.type_url);
        let reply = self.session.on_response(response, &mut self.apply);
        tracing::debug!(r#type = label.url, updated, removed, "xds: update");
        if let Some(refused) = &reply.refused {
            let count = refused.resources.len() as u64;
            self.metrics.refused.get_or_create(&label).inc_by(count);
            tracing::warn!(
                r#type = label.url,
                "xds: refused, the former state is kept: {refused}"
            );
        }
        stream.send(reply.request).await?;
        if self.session.synced() {
            self.synced
                .send_if_modified(|was| !std::mem::replace(was, true));
        }
        Ok(())
    }

    /// Only of what we asked for: no controller makes series of its own.
    fn label(&self, type_url: &str) -> Type {
        let ours = self.config.types.iter().find(|ours| **ours == type_url);
        Type {
            url: ours.copied().unwrap_or("other"),
        }
    }
}

// === impl Stream ===

impl Stream {
    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), Ended> {
        self.requests.send(request).await.map_err(|_| Ended::Closed)
    }

    /// Sends what is new since the last time; on a new stream that is everything.
    async fn report(&mut self, now: AllReports) -> Result<(), Ended> {
        use imbl::ordmap::DiffItem::{Add, Remove, Update};
        let mut fresh = Vec::new();
        for difference in self.reported.diff(&now) {
            match difference {
                Add(_, report)
                | Update {
                    new: (_, report), ..
                } => fresh.push(prost_types::Any {
                    type_url: ENROLMENT_REPORT_TYPE.to_owned(),
                    value: report.encode_to_vec(),
                }),
                Remove(..) => {}
            }
        }
        for reports in fresh.chunks(REPORTS) {
            let request = DeltaDiscoveryRequest {
                type_url: ENROLMENT_REPORT_TYPE.to_owned(),
                reports: reports.to_vec(),
                ..DeltaDiscoveryRequest::default()
            };
            self.send(request).await?;
        }
        self.reported = now;
        Ok(())
    }
}

// === impl Handle ===

impl Handle {
    /// True once every type has been told whole; stays true.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }

    /// Whether the controller answers.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Reports what became of one pod: now, or when the controller is back. The latest report of a pod counts.
    pub fn report(&self, report: EnrolmentReport) {
        self.reports.send_if_modified(|all| {
            let uid: Arc<str> = report.uid.as_str().into();
            let new = all.get(&uid) != Some(&report);
            if new {
                all.insert(uid, report);
            }
            new
        });
    }

    /// Asks for the address `name` (`network/ip`), also after reconnects, until [`Self::forget_address`].
    pub fn ask_address(&self, name: &str) {
        self.lookups
            .send_if_modified(|all| all.insert(name.into()).is_none());
    }

    /// Nobody needs that address any more.
    pub fn forget_address(&self, name: &str) {
        self.lookups
            .send_if_modified(|all| all.remove(name).is_some());
    }

    /// The pod is gone, and its report is of no use any more.
    pub fn forget(&self, uid: &str) {
        self.reports
            .send_if_modified(|all| all.remove(uid).is_some());
    }
}

// === impl Metrics ===

impl Metrics {
    /// Adds them to the process's registry.
    pub fn register(&self, registry: &mut Registry) {
        let Self {
            connected,
            terminations,
            messages,
            bytes,
            refused,
        } = self;
        registry.register(
            "istio_xds_connected",
            "1 while the stream to the controller is up",
            connected.clone(),
        );
        registry.register(
            "istio_xds_connection_terminations",
            "Ends of the stream to the controller",
            terminations.clone(),
        );
        registry.register("istio_xds_message", "Responses received", messages.clone());
        registry.register(
            "istio_xds_message_bytes",
            "Bytes of the responses received",
            bytes.clone(),
        );
        registry.register(
            "ambit_xds_refused_resources",
            "Resources refused",
            refused.clone(),
        );
    }
}

// === impl Ended ===

impl Ended {
    fn reason(&self) -> &'static str {
        match self {
            Self::Control(_) => "connection_error",
            Self::Status(status) if status.code() == tonic::Code::Unauthenticated => {
                "unauthenticated"
            }
            Self::Status(_) => "grpc_error",
            Self::Closed => "complete",
            Self::Silent => "timeout",
        }
    }
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        // A connection that broke is a status without words; its causes have them.
        match std::error::Error::source(&status) {
            Some(source) => Self::Status(tonic::Status::new(status.code(), causes(source))),
            None => Self::Status(status),
        }
    }
}
