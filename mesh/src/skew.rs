//! Clocks that differ, said in these words: "certificate not valid yet" sends people looking for a broken authority.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use rustls::{CertificateError, Error as TlsError};

/// How far a moment lies outside a certificate's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// So long before its beginning. The authority dates certificates back, so its clock and ours differ by more than that.
    Before(Duration),
    /// So long after its end.
    After(Duration),
}

// === impl Skew ===

impl Skew {
    /// None while the certificate is valid.
    pub fn of(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> Option<Self> {
        if let Ok(ahead) = not_before.duration_since(now)
            && !ahead.is_zero()
        {
            return Some(Self::Before(ahead));
        }
        now.duration_since(not_after).ok().map(Self::After)
    }

    /// Of the other side's certificate, if that is what a handshake failed for.
    pub(crate) fn in_handshake(error: &(dyn Error + 'static)) -> Option<Self> {
        let seconds = |from: u64, to: u64| Duration::from_secs(to.saturating_sub(from));
        match tls(error)? {
            TlsError::InvalidCertificate(CertificateError::NotValidYetContext {
                time,
                not_before,
            }) => Some(Self::Before(seconds(time.as_secs(), not_before.as_secs()))),
            TlsError::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                Some(Self::After(seconds(not_after.as_secs(), time.as_secs())))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(by) => write!(f, "the certificate begins in {}: clocks differ", Span(*by)),
            Self::After(by) => write!(
                f,
                "the certificate ended {} ago: clocks differ, or it was not renewed",
                Span(*by)
            ),
        }
    }
}

/// A TLS error; an I/O error that carries one does not name it as its source.
fn tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    if let Some(io) = error.downcast_ref::<io::Error>() {
        return io.get_ref()?.downcast_ref();
    }
    error.downcast_ref()
}

/// A duration in the largest unit of which there are two.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..120 => write!(f, "{seconds} seconds"),
            seconds @ 120..7200 => write!(f, "{} minutes", seconds / 60),
            seconds @ 7200..172_800 => write!(f, "{} hours", seconds / 3600),
            seconds => write!(f, "{} days", seconds / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_skew_is_named_with_its_size() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = 1440 * MINUTE;
        for (from, to, expected) in [
            (now, now + day, None),
            (now - day, now + MINUTE, None),
            (
                now + 14 * MINUTE,
                now + day,
                Some("the certificate begins in 14 minutes: clocks differ"),
            ),
            (
                now + MINUTE,
                now + day,
                Some("the certificate begins in 60 seconds: clocks differ"),
            ),
            (
                now - day,
                now - 3 * 60 * MINUTE,
                Some("the certificate ended 3 hours ago: clocks differ, or it was not renewed"),
            ),
            (
                now - 9 * day,
                now - 8 * day,
                Some("the certificate ended 8 days ago: clocks differ, or it was not renewed"),
            ),
        ] {
            let skew = Skew::of(from, to, now).map(|skew| skew.to_string());
            assert_eq!(skew.as_deref(), expected);
        }
    }
}
