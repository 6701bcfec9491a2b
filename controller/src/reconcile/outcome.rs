//! What the API server's answers mean for what was tried.
//!
//! | answer | so |
//! | --- | --- |
//! | 2xx | done |
//! | 404, 409, 410 | moot: the object is gone or not the one it was, and the watch will say so |
//! | 429, and 503 with `Retry-After` | tried again, not before the server said |
//! | 400, 405, 413, 415, 422 | refused, and will be: tried again after the longest wait, the reason is told |
//! | 401, 403 | not allowed: tried again with back-off, the missing right is told; in a namespace that ends, moot |
//! | none in time | tried again with back-off |
//! | anything else | tried again with back-off |

use std::time::Duration;

use super::queue::Then;
use crate::kubernetes::{is_late, retry_after};

/// What became of one try.
#[derive(Debug)]
pub enum Outcome {
    /// It is as wanted.
    Done,
    /// There is nothing to do it to.
    Moot,
    /// It is not as wanted.
    Failed(Failure),
}

/// Why something is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No answer in time.
    #[error("no answer in time")]
    Late,
    /// The server has too much to do.
    #[error("the API server has too much to do")]
    Busy(Option<Duration>),
    /// The server takes no such object.
    #[error("refused by the API server: {0}")]
    Refused(String),
    /// A right is missing.
    #[error("a right is missing: {0}")]
    Forbidden(String),
    /// Somebody else's object has the name.
    #[error("a {0} of this name exists and was not made for this Gateway")]
    Taken(&'static str),
    /// The file of revocation lists cannot be published as it is.
    #[error("the revocation lists cannot be read: {0}")]
    Revocations(String),
    /// This replica must not write any more.
    #[error("another replica writes now")]
    Fenced,
    /// Anything else.
    #[error(transparent)]
    Kubernetes(Box<kube::Error>),
}

// === impl Outcome ===

impl Outcome {
    /// What comes next; `resync` is when that which is done is looked at again.
    pub fn then(&self, resync: Option<Duration>) -> Then {
        match self {
            Self::Done | Self::Moot => resync.map_or(Then::Forget, Then::Again),
            Self::Failed(Failure::Refused(_)) => Then::Refused,
            Self::Failed(Failure::Busy(after)) => Then::Retry {
                at_least: after.unwrap_or_default(),
            },
            Self::Failed(_) => Then::Retry {
                at_least: Duration::ZERO,
            },
        }
    }

    /// For metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Moot => "moot",
            Self::Failed(failure) => failure.word(),
        }
    }
}

impl<T> From<kube::Result<T>> for Outcome {
    fn from(result: kube::Result<T>) -> Self {
        result.map_or_else(Self::from, |_| Self::Done)
    }
}

impl From<kube::Error> for Outcome {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 404 | 409 | 410) => Self::Moot,
            kube::Error::Api(status) if status.code == 403 && is_terminating(status) => Self::Moot,
            _ => Self::Failed(error.into()),
        }
    }
}

// === impl Failure ===

impl Failure {
    /// For metrics, and to tell like from like.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Busy(_) => "busy",
            Self::Refused(_) => "refused",
            Self::Forbidden(_) => "forbidden",
            Self::Taken(_) => "taken",
            Self::Fenced => "fenced",
            Self::Revocations(_) => "revocations_unreadable",
            Self::Kubernetes(_) => "failed",
        }
    }

    /// Whether whoever owns the object can mend it, and should be told.
    pub fn concerns_the_object(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Forbidden(_) | Self::Taken(_))
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        if is_late(&error) {
            return Self::Late;
        }
        if crate::lease::is_fenced(&error) {
            return Self::Fenced;
        }
        let after = retry_after(&error);
        match &error {
            kube::Error::Api(status) => match status.code {
                429 => Self::Busy(after),
                503 if after.is_some() => Self::Busy(after),
                400 | 405 | 413 | 415 | 422 => Self::Refused(status.message.clone()),
                401 | 403 => Self::Forbidden(status.message.clone()),
                _ => Self::Kubernetes(Box::new(error)),
            },
            _ => Self::Kubernetes(Box::new(error)),
        }
    }
}

/// Whether the namespace ends, in which nothing is made any more.
fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    fn answer(code: u16, change: impl FnOnce(&mut StatusDetails)) -> Outcome {
        let mut details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        change(&mut details);
        let status = Status {
            code,
            message: "because".to_owned(),
            details: Some(details),
            ..Status::default()
        };
        kube::Error::Api(Box::new(status)).into()
    }

    #[test]
    fn every_answer_has_its_consequence() {
        let retry = |seconds| Then::Retry {
            at_least: Duration::from_secs(seconds),
        };
        let resync = Then::Again(Duration::from_secs(9));
        let cases = [
            (404, 0, "moot", resync),
            (409, 0, "moot", resync),
            (410, 0, "moot", resync),
            (429, 0, "busy", retry(0)),
            (429, 7, "busy", retry(7)),
            (503, 7, "busy", retry(7)),
            (503, 0, "failed", retry(0)),
            (500, 0, "failed", retry(0)),
            (400, 0, "refused", Then::Refused),
            (413, 0, "refused", Then::Refused),
            (422, 0, "refused", Then::Refused),
            (401, 0, "forbidden", retry(0)),
            (403, 0, "forbidden", retry(0)),
        ];
        for (code, after, word, then) in cases {
            let outcome = answer(code, |details| details.retry_after_seconds = after);
            assert_eq!(outcome.word(), word, "{code}");
            assert_eq!(outcome.then(Some(Duration::from_secs(9))), then, "{code}");
        }
        assert_eq!(Outcome::Done.then(None), Then::Forget);
    }

    #[test]
    fn nothing_is_made_in_a_namespace_that_ends() {
        let cause = StatusCause {
            reason: "NamespaceTerminating".to_owned(),
            message: String::new(),
            field: String::new(),
        };
        let outcome = answer(403, |details| details.causes = vec![cause]);
        assert_eq!(outcome.word(), "moot");
    }
}
