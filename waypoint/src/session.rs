//! One tunnel's two ends: the client that asks, and what it asks for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Baggage, Forwarded, Request, SourceKind, SpiffeId, Target, TraceParent};
use mesh::service::Service;
use mesh::workload::Workload;

use crate::budget::Place;

/// One client's tunnel, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) to: To,
    /// As the client wrote it.
    pub(crate) authority: Target,
    pub(crate) trace: Option<TraceParent>,
    /// Among the tunnels of all clients.
    pub(crate) place: Place,
}

/// Who asks: proved by its certificate, except for what only telemetry uses.
#[derive(Debug)]
pub(crate) struct Client {
    /// Proved.
    pub(crate) id: SpiffeId,
    /// Proved as well, but for the port: of the connection, or what `forwarded` says where that is believed
    /// (`listener/client.rs`).
    pub(crate) address: SocketAddr,
    /// The workload that the connection comes from, where its identity is the proved one.
    pub(crate) workload: Option<Arc<Workload>>,
    /// What it says about itself.
    pub(crate) baggage: Baggage,
}

/// What a tunnel was admitted for.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// A service that is bound to this waypoint.
    Service { service: Arc<Service>, port: u16 },
    /// A workload that is bound to this waypoint.
    Workload { workload: Arc<Workload>, port: u16 },
}

// === impl Session ===

impl Session {
    /// Whose upstream connections this client's requests may share: only what is proved, so that nothing a client says
    /// forces a connection of its own. All connections of one pod are one client.
    pub(crate) fn key(&self) -> (IpAddr, SpiffeId) {
        (self.client.address.ip(), self.client.id.clone())
    }

    /// The head of a tunnel to an endpoint in this client's name.
    ///
    /// What an endpoint sees as source: by TLS and TCP this waypoint, by `forwarded` the client's proved address. The port in
    /// it, baggage and trace are of the client's tunnel for which the connection was made; later ones of the same pod
    /// share it and are told apart by their requests only (`x-forwarded-for` has no port).
    pub(crate) fn onward(&self, target: SocketAddr) -> Request {
        let host = match &self.to {
            To::Service { service, .. } => Some(Arc::clone(&service.id.hostname)),
            To::Workload { .. } => None,
        };
        Request {
            forwarded: Some(Forwarded {
                client: self.client.address,
                host,
            }),
            baggage: self.client.baggage.clone(),
            traceparent: self.trace,
            source: Some(SourceKind::Waypoint),
            ..Request::to(Target::Addr(target))
        }
    }
}

// === impl To ===

impl To {
    /// The host of requests that name none.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Service { service, port } => format!("{}:{port}", service.id.hostname),
            Self::Workload { workload, port } => format!("{}:{port}", workload.name()),
        }
    }

    /// The service, where it is one.
    pub(crate) fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, port } => write!(f, "{} port {port}", service.id),
            Self::Workload { workload, port } => write!(f, "{} port {port}", workload.uid),
        }
    }
}
