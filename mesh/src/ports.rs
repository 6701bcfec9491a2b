//! The ports that the mesh binds in a pod's network namespace.

/// Where connections that the pod's applications open are redirected to.
pub const OUTBOUND: u16 = 15001;
/// Where plaintext connections to the pod are redirected to.
pub const INBOUND: u16 = 15006;
/// DNS queries, where they are captured; nobody else may be led there.
pub const DNS: u16 = 15053;

/// Whether a port of a pod is the mesh's own: nobody's connection may be led there.
pub fn is_ours(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND | hbone::PORT | DNS)
}
