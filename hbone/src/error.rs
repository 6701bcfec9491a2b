//! What can go wrong with a tunnel, and the questions a caller asks about it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use rustls::CertificateError;

use crate::{Expect, Refusal, SpiffeId};

/// Why a tunnel was not opened, or ended before its time. Cheap to clone: all who waited for one
/// connection are told the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// TCP did not connect.
    #[error("cannot connect to {addr}: {source}")]
    Dial {
        /// What was dialled.
        addr: SocketAddr,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// TCP did not connect in time.
    #[error("connecting to {0} timed out (does a NetworkPolicy or firewall block this port?)")]
    DialTimeout(SocketAddr),
    /// The TLS handshake failed for another reason than the peer's identity.
    #[error("TLS with {addr} failed: {source}")]
    Tls {
        /// The peer.
        addr: SocketAddr,
        /// What TLS said.
        source: Arc<io::Error>,
    },
    /// TLS and HTTP/2 did not come about in time.
    #[error("the handshake with {0} timed out")]
    HandshakeTimeout(SocketAddr),
    /// The peer proved to be somebody else.
    #[error("expected {expected}, but the peer presented {}", presented_text(presented.as_ref()))]
    UnexpectedIdentity {
        /// Whom we asked for.
        expected: Expect,
        /// Who answered; nothing where its certificate has no single SPIFFE ID.
        presented: Option<SpiffeId>,
    },
    /// The peer's certificate was revoked while it was connected.
    #[error("the certificate of {id} has been revoked")]
    Revoked {
        /// Whose certificate.
        id: SpiffeId,
    },
    /// The peer's certificate ran out while it was connected, and it has shown no newer one.
    #[error("the certificate of {id} has expired")]
    Expired {
        /// Whose certificate.
        id: SpiffeId,
    },
    /// The peer answered CONNECT with a refusal.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// The peer did not answer CONNECT in time.
    #[error("the peer did not answer CONNECT in time")]
    ResponseTimeout,
    /// The far side reset this tunnel.
    #[error("the far side reset the tunnel ({reason})")]
    Reset {
        /// The HTTP/2 name of the reason.
        reason: Arc<str>,
        /// False where the far side has promised that it never looked at this stream.
        processed: bool,
    },
    /// The connection below the tunnel is gone.
    #[error("the connection was lost: {reason}")]
    ConnectionLost {
        /// How it showed.
        reason: Arc<str>,
        /// Whether the request, or bytes of it, may have reached the peer.
        sent: bool,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(Arc<str>),
    /// This side is shutting down, or has just forgotten this peer.
    #[error("this side is shutting down, or has just forgotten the peer")]
    Draining,
    /// This side has as many connections as it may have.
    #[error("too many connections")]
    TooManyConnections,
    /// The system has no thread for this side's timers.
    #[error("this side cannot start the thread of its timers: {0}")]
    NoThread(Arc<io::Error>),
    /// Our own certificate has run out.
    #[error("our certificate for {id} has expired")]
    CredentialsExpired {
        /// Whose certificate.
        id: SpiffeId,
        /// When it ran out.
        not_after: SystemTime,
    },
}

/// Whose fault an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ours: this process or its certificate.
    Us,
    /// The peer's: it refused, reset or misbehaved.
    Peer,
    /// Of what lies between.
    Network,
}

// === impl Error ===

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Draining
            | Self::TooManyConnections
            | Self::NoThread(_)
            | Self::CredentialsExpired { .. } => Fault::Us,
            Self::Dial { .. } | Self::DialTimeout(_) | Self::ConnectionLost { .. } => {
                Fault::Network
            }
            Self::Tls { .. }
            | Self::HandshakeTimeout(_)
            | Self::UnexpectedIdentity { .. }
            | Self::Revoked { .. }
            | Self::Expired { .. }
            | Self::Refused(_)
            | Self::ResponseTimeout
            | Self::Reset { .. }
            | Self::Protocol(_) => Fault::Peer,
        }
    }

    /// The status for a client whose own request needed this tunnel.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status,
            Self::DialTimeout(_) | Self::HandshakeTimeout(_) | Self::ResponseTimeout => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Reset { .. } | Self::Protocol(_) => StatusCode::BAD_GATEWAY,
            Self::Dial { .. }
            | Self::Tls { .. }
            | Self::UnexpectedIdentity { .. }
            | Self::Revoked { .. }
            | Self::Expired { .. }
            | Self::ConnectionLost { .. }
            | Self::Draining
            | Self::TooManyConnections
            | Self::NoThread(_)
            | Self::CredentialsExpired { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether another try, at this or another endpoint, may do better.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Dial { .. }
            | Self::DialTimeout(_)
            | Self::Tls { .. }
            | Self::HandshakeTimeout(_)
            | Self::UnexpectedIdentity { .. }
            | Self::Revoked { .. }
            | Self::Expired { .. }
            | Self::ResponseTimeout
            | Self::Reset { .. }
            | Self::ConnectionLost { .. }
            | Self::Draining => true,
            Self::Refused(refusal) => refusal.status.is_server_error(),
            Self::Protocol(_)
            | Self::TooManyConnections
            | Self::NoThread(_)
            | Self::CredentialsExpired { .. } => false,
        }
    }

    /// Whether the request may have been acted on: where not, another try repeats nothing.
    pub fn anything_sent(&self) -> bool {
        match self {
            Self::ResponseTimeout
            | Self::Protocol(_)
            | Self::Revoked { .. }
            | Self::Expired { .. } => true,
            Self::Reset { processed, .. } => *processed,
            Self::ConnectionLost { sent, .. } => *sent,
            Self::Dial { .. }
            | Self::DialTimeout(_)
            | Self::Tls { .. }
            | Self::HandshakeTimeout(_)
            | Self::UnexpectedIdentity { .. }
            | Self::Refused(_)
            | Self::Draining
            | Self::TooManyConnections
            | Self::NoThread(_)
            | Self::CredentialsExpired { .. } => false,
        }
    }

    /// A stable word for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Dial { .. } => "dial_failed",
            Self::DialTimeout(_) => "dial_timeout",
            Self::Tls { source, .. } => tls_code(source),
            Self::HandshakeTimeout(_) => "handshake_timeout",
            Self::UnexpectedIdentity { .. } => "unexpected_identity",
            Self::Revoked { .. } => "peer_revoked",
            Self::Expired { .. } => "peer_certificate_expired",
            Self::Refused(_) => "refused",
            Self::ResponseTimeout => "response_timeout",
            Self::Reset { .. } => "reset",
            Self::ConnectionLost { .. } => "connection_lost",
            Self::Protocol(_) => "protocol_error",
            Self::Draining => "draining",
            Self::TooManyConnections => "too_many_connections",
            Self::NoThread(_) => "no_thread",
            Self::CredentialsExpired { .. } => "credentials_expired",
        }
    }

    /// A reset that says, after an answer's end, that the rest of the request is not wanted: no failure.
    pub(crate) fn is_no_error_reset(&self) -> bool {
        matches!(self, Self::Reset { reason, .. } if &**reason == "NO_ERROR")
    }

    pub(crate) fn lost(reason: &str, sent: bool) -> Self {
        Self::ConnectionLost {
            reason: Arc::from(reason),
            sent,
        }
    }

    pub(crate) fn protocol(reason: impl std::fmt::Display) -> Self {
        Self::Protocol(Arc::from(reason.to_string()))
    }

    /// A reset, by its HTTP/2 name; `processed` is false where the far side never looked at the stream.
    pub(crate) fn reset(reason: &str, processed: bool) -> Self {
        Self::Reset {
            reason: Arc::from(reason),
            processed,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Reset { .. } | Error::ConnectionLost { .. } => io::ErrorKind::ConnectionReset,
            Error::DialTimeout(_) | Error::HandshakeTimeout(_) | Error::ResponseTimeout => {
                io::ErrorKind::TimedOut
            }
            Error::Dial { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What is wrong with the peer's certificate, where that is why TLS failed.
fn tls_code(source: &io::Error) -> &'static str {
    let error = source.get_ref().and_then(|error| error.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(error)) = error else {
        return "tls_failed";
    };
    match error {
        CertificateError::Revoked => "peer_revoked",
        CertificateError::UnknownRevocationStatus => "peer_revocation_unknown",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "peer_certificate_expired"
        }
        _ => "tls_failed",
    }
}

fn presented_text(presented: Option<&SpiffeId>) -> &str {
    presented.map_or("no SPIFFE ID", SpiffeId::as_str)
}
