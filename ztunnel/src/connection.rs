//! What is known of one connection, for its log line and its counters.

use std::{net::SocketAddr, sync::Arc};

use hbone::{Target, TraceParent};
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
