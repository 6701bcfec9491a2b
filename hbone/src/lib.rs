//! HBONE: TCP streams tunnelled as HTTP/2 CONNECT over mutual TLS 1.3 with SPIFFE identities.
//!
//! A [`Pool`] opens tunnels to other workloads, an [`Acceptor`] serves the ones that come in, and a
//! [`Tunnel`] moves the bytes of one application socket. Who the other side is has always been
//! proved before the first byte. Callers never see HTTP/2 or TLS types.
//!
//! The crate knows peers and bytes; it does not know Kubernetes or service discovery.

mod client;
pub mod connect;
mod copy;
mod engine;
mod error;
mod flood;
mod flow;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod head;
mod hpack;
mod identity;
mod limits;
mod pool;
mod record;
mod server;
mod session;
mod stream;
mod tls;

pub use connect::{
    Baggage, Forwarded, Refusal, Request, Response, SourceKind, Target, TraceParent,
};
pub use copy::{Ended, Meter, PlainRelay, relay_plain};
pub use error::{Error, Fault};
pub use identity::{Expect, InvalidSpiffeId, Peer, SpiffeId, TrustDomain};
pub use limits::{PoolLimits, ServerLimits};
pub use pool::{Destination, Dial, Opened, Pool, TcpDial};
pub use server::{Acceptor, Connection, Incoming};
pub use stream::{Relay, Tunnel, TunnelIo};
pub use tls::credentials::{
    Credentials, CredentialsWriter, Identity, InvalidCredentials, credentials,
};
pub use tls::revocation::{Revocations, UnknownRevocation};

/// The TCP port of the tunnel.
pub const PORT: u16 = 15008;
