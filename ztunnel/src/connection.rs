//! What is known of one connection, for its log line and its counters.

use std::{net::SocketAddr, sync::Arc};

use hbone::{SpiffeId, Target, TraceParent};
use mesh::{party::Party, service::Service};

/// What is known of a connection so far; filled in as the story goes.
#[derive(Debug, Default)]
pub(crate) struct ConnectionInfo {
    /// The address of the next hop: the tunnel's, where there is one.
    pub(crate) dst: Option<SocketAddr>,
    /// What the tunnel was asked for.
    pub(crate) tunnelled: Option<Target>,
    /// The service that was dialled.
    pub(crate) service: Option<Arc<Service>>,
    /// The client.
    pub(crate) source: Party,
    /// The server.
    pub(crate) destination: Party,
    /// Whether both ends have proven who they are.
    pub(crate) encrypted: bool,
    /// What ties the lines of one connection together.
    pub(crate) trace: Option<TraceParent>,
}

/// What is known of the way onwards.
#[derive(Debug, Default)]
pub(crate) struct Hop {
    /// The address of the next hop: the tunnel's, where there is one.
    pub(crate) dst: Option<SocketAddr>,
    /// What the tunnel was asked for.
    pub(crate) tunnelled: Option<Target>,
    /// The service that was dialled.
    pub(crate) service: Option<Arc<Service>>,
    /// The server.
    pub(crate) destination: Party,
    /// Whether both ends have proven who they are.
    pub(crate) encrypted: bool,
    /// The trace that the next hop was told of.
    pub(crate) trace: Option<TraceParent>,
}

// === impl ConnectionInfo ===

impl ConnectionInfo {
    /// The connection goes this way, or was to.
    pub(crate) fn note(&mut self, hop: Hop) {
        let Hop {
            dst,
            tunnelled,
            service,
            destination,
            encrypted,
            trace,
        } = hop;
        self.dst = dst.or(self.dst);
        self.tunnelled = tunnelled;
        self.service = service;
        self.destination = destination;
        self.encrypted = encrypted;
        self.trace = trace.or(self.trace);
    }
}

// === impl Hop ===

impl Hop {
    /// The peer has proven who it is.
    pub(crate) fn proven(&mut self, peer: SpiffeId) {
        self.encrypted = true;
        self.destination = std::mem::take(&mut self.destination).proven(peer);
    }
}
