//! STORY: one proxy's stream: what it asks for, what it is told, and whether it may still listen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::xds::ADDRESS_TYPE;
use mesh::xds::session::{Action, ControllerSession, Limits, Offer, ProtocolError, Push};
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::Discovery;
use super::hold::{self, Holds};
use super::pins::{MAX_LOOKUPS, Pins};
use super::reports::{MAX_TEXT, Reports};
use super::review::{Review, Verdict};
use super::snapshot::{Snapshot, Viewer};
use super::streams::Place;
use crate::connection::OpenCall;
use crate::index::Input;
use crate::metrics::Counted;
use crate::text::one_line;

/// Resources in one response: enough that a large mesh needs few, small enough that one is decoded in a blink.
const MAX_RESOURCES: usize = 5000;
/// Types of one stream. A proxy of ours asks for four.
const MAX_TYPES: usize = 16;
/// Names that a node may ask for one by one: its pods' peers, should it not want everything.
const MAX_NAMES: usize = 65_536;
/// Resources that a proxy may have although there are fewer: of a mesh that has shrunk while nobody told it.
const SPARE_VERSIONS: usize = 4096;
/// Long enough to be nobody's next wake.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// One proxy's stream.
pub(super) struct Stream {
    pub(super) discovery: Discovery,
    pub(super) viewer: Viewer,
    /// For the log.
    pub(super) name: Arc<str>,
    pub(super) requests: Streaming<DeltaDiscoveryRequest>,
    pub(super) place: Place,
    pub(super) review: Review,
    pub(super) _counted: Counted,
    /// The connection serves somebody.
    pub(super) _call: Option<OpenCall>,
    pub(super) says: Says,
}

/// What a stream says, and when.
pub(super) struct Says {
    viewer: Viewer,
    session: ControllerSession,
    holds: Holds,
    /// A waypoint's.
    pins: Option<Pins>,
    /// A node's.
    reports: Option<Reports>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ready: VecDeque<Push>,
}

/// What a stream woke up for.
enum Event {
    Request(Box<DeltaDiscoveryRequest>),
    /// The proxy ended it.
    Closed,
    /// It cannot be read, or sent too much.
    Broken(Box<Status>),
    Snapshot,
    Report(Option<OwnedPermit<Input>>),
    Time,
    Reviewed(Verdict),
    Replaced,
    Stopping,
}

/// Why a stream ends.
enum End {
    /// The proxy closed it.
    Closed(String),
    /// We do.
    Status(Status),
}

// === impl Stream ===

impl Stream {
    /// The next thing to be sent, and the stream that goes on after it. It is polled by the connection, so a proxy that
    /// does not read costs what is under way, and one that is gone takes its stream with it.
    pub(super) async fn next(mut self) -> Option<(Result<Push, Status>, Option<Self>)> {
        loop {
            if let Some(push) = self.says.ready.pop_front() {
                self.discovery.metrics.pushed(&push.type_url);
                tracing::debug!(proxy = &*self.name, ?push, "push");
                return Some((Ok(push), Some(self)));
            }
            let event = self.event().await;
            match self.on_event(event) {
                Ok(()) => self.says.fill(),
                Err(End::Closed(reason)) => {
                    self.log_end(&reason);
                    return None;
                }
                Err(End::Status(status)) => {
                    self.log_end(status.message());
                    return Some((Err(status), None));
                }
            }
        }
    }

    fn log_end(&self, reason: &str) {
        if let Some(unlogged) = self.discovery.streams.lines.room(&self.name) {
            tracing::info!(proxy = &*self.name, reason, unlogged, "discovery ended");
        }
    }

    async fn event(&mut self) -> Event {
        let Self {
            discovery,
            requests,
            place,
            review,
            says,
            ..
        } = self;
        let wake = says.wake(Instant::now());
        let Says {
            snapshots, reports, ..
        } = says;
        let report = async {
            match reports {
                Some(reports) => reports.ready(&discovery.index).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => Event::Request(request.into()),
                Ok(None) => Event::Closed,
                Err(status) => Event::Broken(status.into()),
            },
            changed = snapshots.changed() => match changed {
                Ok(()) => Event::Snapshot,
                Err(_) => Event::Stopping,
            },
            permit = report => Event::Report(permit),
            verdict = review.next(&discovery.authenticate) => Event::Reviewed(verdict),
            () = place.replaced() => Event::Replaced,
            () = sleep_until(wake) => Event::Time,
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Request(request) => self.on_request(*request),
            Event::Closed => Err(End::Closed("the proxy closed it".to_owned())),
            Event::Broken(status) => Err(End::Status(*status)),
            Event::Snapshot => self.still_allowed(),
            Event::Report(Some(permit)) => {
                self.report(permit);
                Ok(())
            }
            Event::Time => Ok(()),
            Event::Reviewed(Verdict::Same) => self.still_allowed(),
            Event::Reviewed(Verdict::Other(status)) => Err(End::Status(status)),
            Event::Replaced => Err(End::Status(Status::aborted(
                "newer streams of this pod took its place",
            ))),
            Event::Report(None) | Event::Stopping => {
                Err(End::Status(Status::unavailable("the controller stops")))
            }
        }
    }

    /// A stream lives as long as its right: its pod, and for a waypoint its Gateway.
    fn still_allowed(&self) -> Result<(), End> {
        match self.discovery.viewer(self.review.caller()) {
            Ok(viewer) if viewer == self.viewer => Ok(()),
            Ok(_) => Err(End::Status(Status::permission_denied(
                "this pod is somebody else now",
            ))),
            Err(status) => Err(End::Status(status)),
        }
    }

    fn on_request(&mut self, mut request: DeltaDiscoveryRequest) -> Result<(), End> {
        let says = &mut self.says;
        if let Some(reports) = &mut says.reports {
            let taken = reports.take(&request);
            let unread = taken
                .map_err(|error| End::Status(Status::resource_exhausted(error.to_string())))?;
            if let Some(reason) = unread
                && let Some(unlogged) = self.discovery.streams.lines.room(&self.name)
            {
                tracing::warn!(proxy = &*self.name, %reason, unlogged, "a report is dropped");
            }
        }
        if let (Some(pins), Viewer::Waypoint(gateway)) = (&mut says.pins, &self.viewer)
            && request.type_url == ADDRESS_TYPE
        {
            let (streams, now) = (&self.discovery.streams, Instant::now());
            let snapshot = says.snapshots.borrow();
            pins.request(&mut request, &snapshot, || streams.lookup(gateway, now));
        }
        match says.session.on_request(&request) {
            Ok(Action::Nacked { reason }) => {
                self.discovery.metrics.nacked(&request.type_url);
                if let Some(unlogged) = self.discovery.streams.lines.room(&self.name) {
                    tracing::warn!(
                        proxy = &*self.name,
                        r#type = one_line(&request.type_url, MAX_TEXT),
                        reason = one_line(&reason, MAX_TEXT),
                        unlogged,
                        "resources refused by the proxy"
                    );
                }
                Ok(())
            }
            Ok(Action::Subscribed | Action::Acked | Action::Nothing) => Ok(()),
            Err(error) => {
                let text = error.to_string();
                let limit = matches!(
                    error,
                    ProtocolError::TooManyTypes(_)
                        | ProtocolError::TooManyNames(_)
                        | ProtocolError::TooManyVersions(..)
                );
                Err(End::Status(match limit {
                    true => Status::resource_exhausted(text),
                    false => Status::invalid_argument(text),
                }))
            }
        }
    }

    /// Only a node speaks of pods, and only of its own: the index sees to that.
    fn report(&mut self, permit: OwnedPermit<Input>) {
        let (Some(reports), Viewer::Node(node)) = (&mut self.says.reports, &self.viewer) else {
            return;
        };
        let Some(report) = reports.next(Instant::now()) else {
            return;
        };
        tracing::debug!(%node, uid = one_line(&report.uid, MAX_TEXT), state = ?report.state(), reason = report.reason, "report");
        let node = node.clone();
        permit.send(Input::Report { node, report });
    }
}

// === impl Says ===

impl Says {
    /// Of a stream that begins now.
    pub(super) fn new(discovery: &Discovery, viewer: &Viewer) -> Self {
        let mut snapshots = discovery.snapshots.clone();
        let now = Instant::now();
        let snapshot = snapshots.borrow_and_update().clone();
        let pins = match viewer {
            Viewer::Waypoint(gateway) => Some(Pins::new(gateway.clone(), &snapshot)),
            Viewer::Node(_) => None,
        };
        let limits = Limits {
            types: MAX_TYPES,
            names: match viewer {
                Viewer::Waypoint(_) => MAX_LOOKUPS,
                Viewer::Node(_) => MAX_NAMES,
            },
            // A waypoint of the first release comes with all addresses that it was told.
            versions: 2 * snapshot.addresses().len() + SPARE_VERSIONS,
        };
        let reports = match viewer {
            Viewer::Node(node) => {
                let pace = discovery.streams.pace.clone();
                Some(Reports::new(node.clone(), pace))
            }
            Viewer::Waypoint(_) => None,
        };
        Self {
            viewer: viewer.clone(),
            session: ControllerSession::shared(limits, discovery.streams.deltas.clone()),
            holds: Holds::new(now),
            pins,
            reports,
            snapshots,
            ready: VecDeque::new(),
        }
    }

    /// Everything that can be said now.
    fn fill(&mut self) {
        let now = Instant::now();
        let snapshot = self.snapshots.borrow_and_update().clone();
        if let Some(pins) = &mut self.pins {
            pins.advance(&snapshot, now);
        }
        let types: Vec<String> = self.session.types().map(str::to_owned).collect();
        let offers: Vec<(String, Offer)> = types
            .into_iter()
            .map(|type_url| {
                let offer = self.offer(&type_url, &snapshot, now);
                (type_url, offer)
            })
            .collect();
        let offer = |type_url: &str| {
            let of_type = offers.iter().find(|(of, _)| of == type_url);
            of_type.map(|(_, offer)| offer.clone()).unwrap_or_default()
        };
        while let Some(push) = self.session.next(offer, MAX_RESOURCES) {
            self.ready.push_back(push);
        }
    }

    fn offer(&mut self, type_url: &str, snapshot: &Snapshot, now: Instant) -> Offer {
        let view = match &self.pins {
            Some(pins) if type_url == ADDRESS_TYPE => pins.target().clone(),
            _ => snapshot.resources(&self.viewer, type_url),
        };
        let positions = snapshot.positions();
        let hold = self.holds.hold(&self.session, type_url, positions, now);
        let shown = self.session.known_as_of(type_url);
        let known_as_of = hold::known_as_of(hold, shown, positions, snapshot.token());
        Offer {
            view,
            known_as_of,
            hold,
        }
    }

    /// When time alone may change what is said.
    fn wake(&self, now: Instant) -> Instant {
        let pins = self.pins.as_ref().and_then(Pins::next);
        [self.holds.next(now), pins]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + NEVER)
    }
}
