//! The ports that the mesh binds in a pod's namespace.

pub use crate::pods::capture::{INBOUND as PLAINTEXT, OUTBOUND};

/// DNS queries, where they are captured; nobody else may be led there.
pub const DNS: u16 = 15053;

/// Whether a port of a pod is the mesh's own: nobody's connection may be led there.
pub fn is_ours(port: u16) -> bool {
    matches!(port, OUTBOUND | PLAINTEXT | hbone::PORT | DNS)
}
