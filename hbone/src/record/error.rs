//! What can be wrong with a record, and the alert that says so.

use rustls::AlertDescription;

/// Why a connection ends at a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// The peer gave up, and says why. Worded as rustls words it during the handshake.
    #[error("received fatal alert: {0:?}")]
    Alert(AlertDescription),
    /// Not sealed with the peer's key, in this order.
    #[error("a record cannot be decrypted")]
    BadTag,
    #[error("a record is too long")]
    TooLong,
    /// Only a handshake has records without encryption.
    #[error("a record of type {0} is not encrypted")]
    Unprotected(u8),
    /// Nothing but padding.
    #[error("a record has no type")]
    NoType,
    #[error("a record of type {0} after the handshake")]
    UnexpectedType(u8),
    #[error("a handshake message of type {0} after the handshake")]
    UnexpectedMessage(u8),
    /// Something else before a handshake message was complete, or something behind a KeyUpdate.
    #[error("a handshake message is not at its place")]
    Interleaved,
    #[error("a malformed {0}")]
    Malformed(&'static str),
    #[error("too many {0}")]
    Flood(&'static str),
    /// A key has done what it may do.
    #[error("a key is used up")]
    Exhausted,
    #[error("no keys can be derived")]
    NoKeys,
    /// A buffer of ours does not hold one record.
    #[error("a record to be sealed has no room")]
    Misused,
}

// === impl RecordError ===

impl RecordError {
    /// What the peer is told.
    pub(crate) fn alert(&self) -> Option<AlertDescription> {
        Some(match self {
            Self::Alert(_) => return None,
            Self::BadTag => AlertDescription::BadRecordMac,
            Self::TooLong => AlertDescription::RecordOverflow,
            Self::Unprotected(_)
            | Self::NoType
            | Self::UnexpectedType(_)
            | Self::UnexpectedMessage(_)
            | Self::Interleaved
            | Self::Flood(_) => AlertDescription::UnexpectedMessage,
            Self::Malformed(_) => AlertDescription::DecodeError,
            Self::Exhausted | Self::NoKeys | Self::Misused => AlertDescription::InternalError,
        })
    }
}
