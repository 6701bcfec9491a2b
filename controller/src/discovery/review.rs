//! A stream's token is shown to the API server again and again: what was revoked ends.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::authenticate::{Authenticate, AuthenticateError, Caller};

/// How often a token is judged again.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
/// Streams that were opened together are not judged together: up to so much later.
const SPREAD: u64 = 60;
/// When the API server could not be asked. A stream outlives it: the mesh does not depend on it.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Whose token it was when the stream was opened, and when it is judged again.
pub(super) struct Review {
    token: Arc<str>,
    /// From where it was shown.
    peer: IpAddr,
    caller: Caller,
    due: Instant,
    asking: Option<Asking>,
}

type Asking = Pin<Box<dyn Future<Output = Result<Caller, AuthenticateError>> + Send>>;

/// What came of it.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The token is still the same caller's, or nobody could be asked.
    Same,
    /// It is not: the stream ends with this.
    Other(Status),
}

// === impl Review ===

impl Review {
    /// Of a token that was judged just now.
    pub(super) fn new(token: Arc<str>, peer: IpAddr, caller: Caller) -> Self {
        // Any hash will do: it only has to differ from pod to pod.
        let pod = caller.pod.as_deref().unwrap_or_default();
        let spread = pod
            .bytes()
            .fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()))
            % SPREAD;
        Self {
            token,
            peer,
            caller,
            due: Instant::now() + AGAIN_AFTER + Duration::from_secs(spread),
            asking: None,
        }
    }

    /// Who opened the stream.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Waits until it is time, and judges. May be dropped and called again.
    pub(super) async fn next(&mut self, authenticate: &Arc<dyn Authenticate>) -> Verdict {
        let asking = match &mut self.asking {
            Some(asking) => asking,
            None => {
                sleep_until(self.due).await;
                let (authenticate, token) = (authenticate.clone(), self.token.clone());
                let peer = self.peer;
                self.asking.insert(Box::pin(
                    async move { authenticate.whose(&token, peer).await },
                ))
            }
        };
        let answer = asking.await;
        self.asking = None;
        let now = Instant::now();
        self.due = now + AGAIN_AFTER;
        match answer {
            Ok(caller) if caller == self.caller => Verdict::Same,
            Ok(_) => Verdict::Other(Status::unauthenticated("the token is somebody else's now")),
            Err(error) if error.is_verdict() => Verdict::Other(error.into()),
            Err(_) => {
                self.due = now + RETRY_AFTER;
                Verdict::Same
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::index::names::Key;

    /// Answers what it is told to.
    #[derive(Default)]
    struct Answers(Mutex<Vec<Result<Caller, AuthenticateError>>>);

    #[tonic::async_trait]
    impl Authenticate for Answers {
        async fn whose(&self, _token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
            let mut answers = self.0.lock();
            answers.remove(0)
        }
    }

    fn caller(account: &str) -> Caller {
        Caller {
            account: Key::new("shop", account),
            pod: Some("uid".into()),
            node: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_judged_again_until_it_is_refused() {
        let unavailable = kube::Error::LinesCodecMaxLineLengthExceeded;
        let answers = vec![
            Ok(caller("gate")),
            Err(AuthenticateError::Unavailable(unavailable.into())),
            Err(AuthenticateError::Refused("expired".to_owned())),
        ];
        let authenticate: Arc<dyn Authenticate> = Arc::new(Answers(Mutex::new(answers)));
        let start = Instant::now();
        let mut review = Review::new("token".into(), [10, 0, 0, 1].into(), caller("gate"));
        assert!(matches!(review.next(&authenticate).await, Verdict::Same));
        let first = start.elapsed();
        assert!(first >= AGAIN_AFTER && first <= AGAIN_AFTER + Duration::from_secs(SPREAD));
        // A stream outlives an API server that cannot be asked.
        assert!(matches!(review.next(&authenticate).await, Verdict::Same));
        let Verdict::Other(status) = review.next(&authenticate).await else {
            panic!("refused")
        };
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        let took = start.elapsed() - first;
        assert_eq!(took.as_secs(), (AGAIN_AFTER + RETRY_AFTER).as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_somebody_elses_ends_the_stream() {
        let answers = vec![Ok(caller("other"))];
        let authenticate: Arc<dyn Authenticate> = Arc::new(Answers(Mutex::new(answers)));
        let mut review = Review::new("token".into(), [10, 0, 0, 1].into(), caller("gate"));
        let verdict = review.next(&authenticate).await;
        assert!(matches!(verdict, Verdict::Other(_)), "{verdict:?}");
    }
}
