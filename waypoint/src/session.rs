//! One tunnel's two ends: the client that asks, and what it asks for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Baggage, Forwarded, Request, SourceKind, SpiffeId, Target, TraceParent};
use mesh::service::Service;
use mesh::workload::Workload;

/// One client's tunnel, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) to: To,
    /// As the client wrote it.
    pub(crate) authority: Target,
    pub(crate) trace: Option<TraceParent>,
}

/// Who asks: proved by its certificate, except for what only telemetry uses.
#[derive(Debug)]
pub(crate) struct Client {
    /// Proved.
    pub(crate) id: SpiffeId,
    /// Of the application, as its node's proxy says; else of the tunnel.
    pub(crate) address: SocketAddr,
    /// The workload at that address, where its identity is the proved one.
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
    /// Whose upstream connections this client's requests may share.
    pub(crate) fn key(&self) -> (IpAddr, SpiffeId) {
        (self.client.address.ip(), self.client.id.clone())
    }

    /// The head of a tunnel to an endpoint in this client's name.
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
