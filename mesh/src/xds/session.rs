//! Both halves of delta xDS as pure state machines: requests and responses in and out, no I/O and no clock.
//!
//! ```text
//! ProxySession                                  ControllerSession
//!   open() ── subscribe, initial versions ───▶ on_request()
//!                                              changes(type, resources, max)
//!   on_response() ◀── resources, removed, nonce ──┘   (one response per type in flight)
//!      └────── nonce (ACK), or nonce + error (NACK) ─▶ on_request()
//! ```
//!
//! Guarantees, kept by `tests/xds_session.rs`:
//! * After any order of updates, refusals and reconnects the proxy has what the controller has, except for
//!   resources that it refused, of which it keeps the last version that it took.
//! * A resource that was refused is not sent again on the same stream until it changes. The rest of its message is applied.
//! * A reconnect costs the differences only, removals included.

mod controller;
mod proxy;

pub use self::controller::{Action, ControllerSession, ProtocolError};
pub use self::proxy::{ProxySession, Reply};

/// In `system_version_info` of a response whose state is not whole yet: more of the same type follows.
/// Clients of others skip the field.
const MORE: &str = "more";

/// `google.rpc.Code.INVALID_ARGUMENT`
const INVALID_ARGUMENT: i32 = 3;

/// What a client subscribes to when it wants everything.
const WILDCARD: &str = "*";
