//! What may go where: the pure decisions of both proxies, from what the mesh knows and nothing else.
//!
//! Nothing here reads a socket, awaits, or logs: whoever wants to know why a connection goes where it goes asks the same
//! functions as the proxies do.

pub mod inbound;
pub mod lease;
pub mod outbound;
pub mod waypoint;

use std::net::SocketAddr;

/// The address an application dialled before its connection was redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);
