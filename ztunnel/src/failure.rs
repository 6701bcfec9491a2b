//! Why a connection failed: a sentence for people, a code for logs, a flag for metrics, a refusal for the peer.

use std::{borrow::Cow, io, net::SocketAddr};

use hbone::Ended;
use http::StatusCode;
use mesh::verdict::{inbound, lease::Revoked, outbound};

use crate::metrics::ResponseFlag;

/// Why a connection did not reach its other end, or ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The kernel does not say where the connection was going.
    #[error("the original destination is unknown: {0}")]
    OriginalDestination(#[source] io::Error),
    /// The mesh has no way to the destination.
    #[error(transparent)]
    Route(#[from] outbound::Refusal),
    /// The destination does not let it in.
    #[error(transparent)]
    Admission(#[from] inbound::Refusal),
    /// The tunnel failed.
    #[error(transparent)]
    Tunnel(#[from] hbone::Error),
    /// A plain connection could not be opened.
    #[error("cannot connect to {to}: {source}")]
    Dial {
        /// Where to.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A plain connection was not answered.
    #[error("connecting to {0} timed out")]
    DialTimeout(SocketAddr),
    /// The application's socket failed while bytes were moving.
    #[error("the application's connection ended: {0}")]
    App(#[source] io::Error),
    /// The pod has as many connections as it may have.
    #[error("this pod already has {0} connections")]
    TooMany(usize),
    /// What the connection stood on is gone.
    #[error("ended because {0}")]
    Revoked(#[from] Revoked),
    /// The pod left, or ztunnel did, before the connection ended.
    #[error("ended because the pod or its proxy is going")]
    Ended,
}

impl Failure {
    /// How a relay ended, as an outcome.
    pub(crate) fn of(ended: Ended) -> Result<(), Self> {
        match ended {
            Ended::Finished => Ok(()),
            Ended::App(error) => Err(Self::App(error)),
            Ended::Peer(error) => Err(Self::Tunnel(error)),
        }
    }

    /// A stable word for logs.
    pub(crate) fn code(&self) -> Cow<'_, str> {
        match self {
            Self::OriginalDestination(_) => "original_destination_unknown",
            Self::Route(refusal) => refusal.code(),
            Self::Admission(refusal) => refusal.code(),
            Self::Tunnel(hbone::Error::Refused(refusal)) => return Cow::Borrowed(&refusal.code),
            Self::Tunnel(error) => error.code(),
            Self::Dial { .. } => "dial_failed",
            Self::DialTimeout(_) => "dial_timeout",
            Self::App(_) => "application_reset",
            Self::TooMany(_) => "too_many_connections",
            Self::Revoked(revoked) => revoked.code(),
            Self::Ended => "ended",
        }
        .into()
    }

    /// The flag for metrics.
    pub(crate) fn flag(&self) -> ResponseFlag {
        use hbone::Error;
        match self {
            Self::Route(_)
            | Self::Admission(_)
            | Self::TooMany(_)
            | Self::Revoked(_)
            | Self::Ended => ResponseFlag::Deny,
            Self::Tunnel(error) => match error {
                Error::Refused(refusal) if refusal.status.is_client_error() => ResponseFlag::Deny,
                Error::Revoked { .. } | Error::Expired { .. } => ResponseFlag::Deny,
                Error::UnexpectedIdentity { .. } => ResponseFlag::Identity,
                Error::Tls { .. } | Error::CredentialsExpired { .. } => ResponseFlag::Tls,
                Error::Protocol(_) | Error::HandshakeTimeout(_) => ResponseFlag::H2,
                _ => ResponseFlag::Connect,
            },
            _ => ResponseFlag::Connect,
        }
    }

    /// What the other end of a tunnel is told.
    pub(crate) fn refusal(&self) -> hbone::Refusal {
        let status = match self {
            Self::Admission(refusal) => refusal.status(),
            Self::TooMany(_) | Self::Dial { .. } | Self::Revoked(_) | Self::Ended => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::DialTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        hbone::Refusal {
            status,
            code: Cow::Owned(self.code().into_owned()),
            reason: self.to_string(),
        }
    }

    /// Whether it says that the endpoint cannot be reached just now, by anybody: not that it does not let this client in,
    /// nor what is wrong at our own end.
    pub(crate) fn is_unreachable(&self) -> bool {
        use hbone::Error;
        match self {
            Self::Dial { .. } | Self::DialTimeout(_) => true,
            Self::Tunnel(Error::Refused(refusal)) => refusal.status.is_server_error(),
            Self::Tunnel(error) => matches!(
                error,
                Error::Dial { .. }
                    | Error::DialTimeout(_)
                    | Error::Tls { .. }
                    | Error::HandshakeTimeout(_)
                    | Error::UnexpectedIdentity { .. }
                    | Error::Reset { .. }
                    | Error::ConnectionLost { .. }
            ),
            _ => false,
        }
    }

    /// Whether another endpoint may be tried without repeating anything.
    ///
    /// Of what the application says nothing is sent before a tunnel is open: a peer that went meanwhile, with its pod
    /// maybe, has seen none of it.
    pub(crate) fn may_try_another(&self) -> bool {
        match self {
            Self::Tunnel(hbone::Error::Reset { .. } | hbone::Error::ConnectionLost { .. }) => true,
            Self::Tunnel(error) => error.retryable() && !error.anything_sent(),
            Self::Dial { .. }
            | Self::DialTimeout(_)
            | Self::Revoked(Revoked::EndpointGone(_) | Revoked::EndpointReplaced(_)) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_said_to_one_client_is_no_reason_for_others() {
        let refused = |status| {
            Failure::Tunnel(hbone::Error::Refused(hbone::Refusal {
                status,
                code: "code".into(),
                reason: String::new(),
            }))
        };
        assert!(!refused(StatusCode::FORBIDDEN).is_unreachable());
        assert!(!Failure::TooMany(1).is_unreachable());
        assert!(!Failure::Tunnel(hbone::Error::TooManyConnections).is_unreachable());
        assert!(refused(StatusCode::SERVICE_UNAVAILABLE).is_unreachable());
        let to = SocketAddr::from(([10, 0, 0, 1], 80));
        assert!(Failure::DialTimeout(to).is_unreachable());
    }

    #[test]
    fn a_tunnel_whose_peer_is_not_proved_any_more_has_been_denied_and_says_why() {
        let id: hbone::SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let revoked = Failure::Tunnel(hbone::Error::Revoked { id: id.clone() });
        let expired = Failure::Tunnel(hbone::Error::Expired { id });
        for (failure, code) in [
            (revoked, "peer_revoked"),
            (expired, "peer_certificate_expired"),
        ] {
            assert_eq!(failure.code(), code);
            assert_eq!(failure.flag(), ResponseFlag::Deny);
        }
    }

    #[test]
    fn an_opening_that_was_cut_off_is_tried_elsewhere_and_what_may_be_under_way_is_not() {
        let reason = || Arc::from("CANCEL");
        let cut_off = [
            hbone::Error::Reset {
                reason: reason(),
                processed: true,
            },
            hbone::Error::ConnectionLost {
                reason: reason(),
                sent: true,
            },
        ];
        for error in cut_off {
            assert!(Failure::Tunnel(error).may_try_another());
        }
        // A peer that may still be working on it, and one that said no.
        assert!(!Failure::Tunnel(hbone::Error::ResponseTimeout).may_try_another());
        assert!(!Failure::Ended.may_try_another());
    }
}
