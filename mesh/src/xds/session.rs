//! Both halves of delta xDS as pure state machines: requests and responses in and out, no I/O and no clock.
//!
//! ```text
//! ProxySession                                  ControllerSession
//!   open() ── subscribe, initial versions ───▶ on_request()
//!                                              next(offers, max)
//!   on_response() ◀── resources, removed, nonce ──┘   (one response per type in flight)
//!      └────── nonce (ACK), or nonce + error (NACK) ─▶ on_request()
//! ```
//!
//! Guarantees, kept by `tests/xds_session.rs` and `tests/xds_converges.rs`:
//! * After any order of updates, refusals and reconnects the proxy has what the controller has, except for
//!   resources that it refused, of which it keeps the last version that it took.
//! * A resource that was refused is not sent again on the same stream until it changes. The rest of its message is applied.
//! * A reconnect costs the differences only, removals included.
//! * A controller that knows less than another told the proxy removes nothing until it has caught up ([`Hold`]); what the
//!   proxy shows the next one is never less than what it was told.
//! * What is named is there before what names it, and goes after it (`order.rs`).

mod controller;
mod delta;
mod order;
mod proxy;
mod subscription;

pub use self::controller::{Action, ControllerSession, Limits, Offer, ProtocolError};
pub use self::delta::{Deltas, Push};
pub use self::proxy::{ProxySession, Reply};

/// What a client must not be told yet, because a controller that knew more may have told it otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// Everything may be said.
    #[default]
    Nothing,
    /// Nothing goes that the client came with and that was never seen here.
    Unseen,
    /// Nothing that the client has goes.
    Removals,
    /// Nothing that the client has goes or changes; what it does not have comes.
    Known,
}

/// In `system_version_info` of a response whose state is not whole yet: more of the same type follows.
/// Clients of others skip the field.
const MORE_FOLLOWS: &str = "more";

/// `google.rpc.Code.INVALID_ARGUMENT`
const INVALID_ARGUMENT: i32 = 3;

/// What a client subscribes to when it wants everything.
const WILDCARD: &str = "*";

/// Bytes of what a client says that it knows: about thirty for each kind that a controller watches.
const MAX_TOKEN: usize = 4096;
