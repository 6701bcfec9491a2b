//! One tunnel's two ends: the client that asks, and what it asks for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Baggage, Forwarded, Request, SourceKind, SpiffeId, Target, TraceParent};
use mesh::verdict::waypoint::To;
use mesh::workload::Workload;

use crate::budget::Place;
use crate::cut::Cut;

/// One client's tunnel, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) to: To,
    /// As the client wrote it.
    pub(crate) authority: Target,
    pub(crate) trace: Option<TraceParent>,
    /// Why its connection was ended.
    pub(crate) cut: Cut,
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
