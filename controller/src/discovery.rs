//! The delta-xDS service: who asks, what they may see, and for how long a stream lives.

pub mod authenticate;
mod hold;
mod lines;
mod pins;
pub mod refusals;
mod reports;
mod review;
mod scope;
pub mod service;
pub mod snapshot;
mod stream;
mod streams;

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::stream::unfold;
use mesh::proto::discovery::DeltaDiscoveryRequest;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Status, Streaming};

use self::authenticate::{Authenticate, Caller};
use self::review::Review;
use self::service::Pushes;
use self::snapshot::{Snapshot, Viewer};
use self::stream::{Says, Stream};
pub use self::streams::Streams;
use crate::connection::admission::{Class, Holder};
use crate::connection::{CallerConnection, OpenCall};
use crate::discovery::refusals::Refusals;
use crate::index::Input;
use crate::index::changes::Role;
use crate::message_limit::MessageLimit;
use crate::metrics::Metrics;

/// The service.
#[derive(Clone)]
pub struct Discovery {
    /// Who is calling.
    pub authenticate: Arc<dyn Authenticate>,
    /// What there is to see.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where reports go.
    pub index: mpsc::Sender<Input>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is refused.
    pub refusals: Refusals,
    /// The streams that there are.
    pub streams: Streams,
}

// === impl Discovery ===

impl Discovery {
    /// What a caller may see; a refusal names what is missing.
    fn viewer(&self, caller: &Caller) -> Result<Viewer, Status> {
        let snapshot = self.snapshots.borrow();
        let denied = |text: String| Err(Status::permission_denied(text));
        let account = &caller.account;
        let Some(uid) = &caller.pod else {
            return denied(format!(
                "the token of service account {account} must be bound to its pod"
            ));
        };
        let Some(placement) = snapshot.pod(uid) else {
            return denied(format!(
                "the pod of {account} does not run, or is not known yet"
            ));
        };
        if placement.account().as_ref() != Some(account) {
            return denied(format!("{account} is not the service account of its pod"));
        }
        match &placement.role {
            Role::NodeProxy => match &caller.node {
                Some(node) if *node != placement.node => denied(format!(
                    "the token is bound to node {node}, its pod runs on {}",
                    placement.node
                )),
                _ => Ok(Viewer::Node(placement.node.clone())),
            },
            Role::Waypoint(gateway) if gateway == account => Ok(Viewer::Waypoint(gateway.clone())),
            Role::Waypoint(_) | Role::Application => denied(format!(
                "service account {account} is neither a ztunnel's nor a waypoint's"
            )),
        }
    }

    /// Opens a stream to whoever may have one.
    pub(crate) async fn open(
        self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Pushes, Status> {
        let connection = CallerConnection::of(&request);
        let limit = MessageLimit::of(&request);
        let shown = Caller::shown(&request).map_err(Status::from);
        let mut caller = None;
        let opened = match shown {
            Ok(shown) => self.admit(shown, connection.as_ref(), &mut caller).await,
            Err(status) => Err(status),
        };
        let (viewer, review, call) = opened.inspect_err(|status| {
            let peer = connection.as_ref().map(CallerConnection::peer);
            let refusals = &self.refusals;
            refusals.note("discovery", peer, caller.as_ref(), status);
        })?;
        if let Some(limit) = limit {
            limit.allow(self.snapshots.borrow().longest_request(&viewer));
        }
        let node = match &viewer {
            Viewer::Node(node) => Some(node.clone()),
            Viewer::Waypoint(_) => None,
        };
        let name: Arc<str> = match &viewer {
            Viewer::Node(node) => format!("ztunnel of {node}").into(),
            Viewer::Waypoint(gateway) => format!("waypoint {gateway}").into(),
        };
        if let Some(unlogged) = self.streams.lines.room(&name) {
            tracing::info!(proxy = &*name, unlogged, "discovery begins");
        }
        let pod = review.caller().pod.clone().unwrap_or_default();
        let stream = Stream {
            place: self.streams.enter(pod, node),
            says: Says::new(&self, &viewer),
            _counted: self.metrics.stream(),
            _call: call,
            requests: request.into_inner(),
            review,
            viewer,
            name,
            discovery: self,
        };
        let step = |stream: Option<Stream>| async move { stream?.next().await };
        Ok(Box::pin(unfold(Some(stream), step)))
    }

    async fn admit(
        &self,
        (token, peer): (String, IpAddr),
        connection: Option<&CallerConnection>,
        who: &mut Option<Caller>,
    ) -> Result<(Viewer, Review, Option<OpenCall>), Status> {
        let caller = &*who.insert(self.authenticate.whose(&token, peer).await?);
        let viewer = self.viewer(caller)?;
        let holder = Holder {
            pod: caller.pod.clone().unwrap_or_default(),
            class: match viewer {
                Viewer::Node(_) => Class::NodeProxy,
                Viewer::Waypoint(_) => Class::Other,
            },
        };
        let call = match connection {
            Some(connection) => Some(connection.prove(holder)?),
            None => None,
        };
        let review = Review::new(token.into(), peer, caller.clone());
        Ok((viewer, review, call))
    }
}
