//! Whether a request that failed is made again: it carried no byte of the application, so that asking
//! again repeats nothing of it, where the far side has not acted on it.

use crate::Error;

/// Times that one request may be refused unseen: each leaves one connection more that is known to be full.
const MAX_REFUSALS: usize = 4;

/// What has been tried for one request.
#[derive(Debug, Default)]
pub(super) struct Tries {
    refusals: usize,
    lost: bool,
}

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// The connection takes no more streams.
    pub(super) forget: bool,
    /// The same request is made again.
    pub(super) repeat: bool,
}

// === impl Tries ===

impl Tries {
    /// One more failure, on a connection that was there before (`reused`) or not.
    pub(super) fn after(&mut self, error: &Error, reused: bool) -> Next {
        let forget = is_end(error);
        if is_unseen(error) {
            self.refusals += 1;
            let repeat = self.refusals <= MAX_REFUSALS;
            return Next { forget, repeat };
        }
        // A connection that has been idle may have died unseen.
        let harmless = reused || !error.anything_sent();
        let repeat = forget && harmless && !self.lost;
        self.lost |= repeat;
        Next { forget, repeat }
    }
}

/// Whether the far side has promised that it never looked at the stream.
fn is_unseen(error: &Error) -> bool {
    matches!(
        error,
        Error::Reset {
            processed: false,
            ..
        }
    )
}

/// Whether an error means that the connection takes no more streams. One that refuses a stream may only
/// be full.
fn is_end(error: &Error) -> bool {
    match error {
        Error::ConnectionLost { .. } | Error::Tls { .. } => true,
        Error::Reset { reason, processed } => !processed && &**reason != "REFUSED_STREAM",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use http::StatusCode;

    use super::*;
    use crate::Refusal;

    const REUSED: bool = true;
    const NEW: bool = false;

    fn reset(reason: &str, processed: bool) -> Error {
        let reason = reason.into();
        Error::Reset { reason, processed }
    }

    fn lost(sent: bool) -> Error {
        Error::lost("gone", sent)
    }

    fn tls() -> Error {
        let addr = "127.0.0.1:15008".parse().unwrap();
        let source = Arc::new(io::ErrorKind::InvalidData.into());
        Error::Tls { addr, source }
    }

    fn refused() -> Error {
        Error::Refused(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no", "no"))
    }

    #[test]
    fn what_follows_the_first_failure() {
        for (error, connection, forget, repeat) in [
            // Full, or at its end: it has not looked.
            (reset("REFUSED_STREAM", false), NEW, false, true),
            (reset("REFUSED_STREAM", false), REUSED, false, true),
            (reset("NO_ERROR", false), NEW, true, true),
            (reset("NO_ERROR", false), REUSED, true, true),
            // It has.
            (reset("CANCEL", true), REUSED, false, false),
            (reset("REFUSED_STREAM", true), REUSED, false, false),
            (refused(), REUSED, false, false),
            (Error::ResponseTimeout, REUSED, false, false),
            (Error::protocol("no"), REUSED, false, false),
            // One that was idle may have died unseen; a new one was alive a moment ago.
            (lost(true), REUSED, true, true),
            (lost(false), REUSED, true, true),
            (lost(true), NEW, true, false),
            (lost(false), NEW, true, true),
            (tls(), NEW, true, true),
        ] {
            let next = Tries::default().after(&error, connection);
            let said = format!("{error}, reused: {connection}");
            assert_eq!(next, Next { forget, repeat }, "{said}");
        }
    }

    #[test]
    fn a_lost_connection_is_followed_by_one_more() {
        let mut tries = Tries::default();
        assert!(tries.after(&lost(true), REUSED).repeat);
        let next = tries.after(&lost(true), REUSED);
        assert!(next.forget && !next.repeat);
    }

    #[test]
    fn full_connections_are_followed_by_a_few_more() {
        let (mut tries, full) = (Tries::default(), reset("REFUSED_STREAM", false));
        assert!(tries.after(&lost(false), NEW).repeat);
        for _ in 0..MAX_REFUSALS {
            assert!(tries.after(&full, NEW).repeat);
        }
        assert!(!tries.after(&full, NEW).repeat);
    }
}
