//! Who is calling: a bound service-account token, shown to the API server.

mod answers;
pub mod checked;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use tonic::Request;

use crate::connection::CallerConnection;
use crate::index::names::Key;

/// The audience of the tokens that proxies show.
pub const AUDIENCE: &str = "istio-ca";

/// How long a caller waits until his token is checked, or is told that it was not.
pub const REVIEW_DEADLINE: Duration = Duration::from_secs(8);

/// A service account, and the pod to which its token is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Namespace and name of the service account.
    pub account: Key,
    /// The pod's UID; a token that is bound to no pod has none.
    pub pod: Option<Arc<str>>,
    /// The pod's node, if the token says it.
    pub node: Option<Arc<str>>,
}

/// Why nobody is recognised.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthenticateError {
    /// No token.
    #[error("a bearer token is needed")]
    Missing,
    /// The API server does not accept it.
    #[error("the token is not accepted: {0}")]
    Refused(String),
    /// Someone, but not a service account.
    #[error("{0:?} is not a service account")]
    NotAServiceAccount(String),
    /// The API server cannot be asked.
    #[error("the token cannot be checked now: {0}")]
    Unavailable(#[source] Arc<kube::Error>),
    /// The API server is silent.
    #[error("the token was not checked within {} s", REVIEW_DEADLINE.as_secs())]
    Timeout,
    /// The caller's address, or all addresses together, show too many tokens that are not accepted.
    #[error("too many tokens of this address wait to be checked, or were refused; try again later")]
    Limited,
}

/// Something that knows whose token this is.
#[tonic::async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// Whose token it is, shown by somebody at this address.
    async fn whose(&self, token: &str, peer: IpAddr) -> Result<Caller, AuthenticateError>;
}

/// Asks the API server.
#[derive(Debug, Clone)]
pub struct TokenReviews(Api<TokenReview>);

// === impl Caller ===

impl Caller {
    /// Who makes this request.
    pub fn of<'a, T>(
        request: &Request<T>,
        authority: &'a dyn Authenticate,
    ) -> impl Future<Output = Result<Self, AuthenticateError>> + Send + use<'a, T> {
        let shown = Self::shown(request);
        async move {
            let (token, peer) = shown?;
            authority.whose(&token, peer).await
        }
    }

    /// The token that a request shows, and the address from which it comes.
    pub fn shown<T>(request: &Request<T>) -> Result<(String, IpAddr), AuthenticateError> {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let peer = CallerConnection::of(request)
            .map_or(Ipv4Addr::UNSPECIFIED.into(), |connection| {
                connection.source()
            });
        Ok((token.ok_or(AuthenticateError::Missing)?, peer))
    }
}

// === impl AuthenticateError ===

impl AuthenticateError {
    /// Whether the token itself was found bad, and would be again.
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::NotAServiceAccount(_))
    }
}

impl From<AuthenticateError> for tonic::Status {
    fn from(error: AuthenticateError) -> Self {
        let text = error.to_string();
        match error {
            AuthenticateError::Unavailable(_) | AuthenticateError::Timeout => {
                Self::unavailable(text)
            }
            AuthenticateError::Limited => Self::resource_exhausted(text),
            AuthenticateError::Missing
            | AuthenticateError::Refused(_)
            | AuthenticateError::NotAServiceAccount(_) => Self::unauthenticated(text),
        }
    }
}

// === impl TokenReviews ===

impl TokenReviews {
    /// Asks through this client.
    pub fn new(client: kube::Client) -> Self {
        Self(Api::all(client))
    }
}

#[tonic::async_trait]
impl Authenticate for TokenReviews {
    async fn whose(&self, token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
        let spec = TokenReviewSpec {
            audiences: Some(vec![AUDIENCE.to_owned()]),
            token: Some(token.to_owned()),
        };
        let review = TokenReview {
            spec,
            ..Default::default()
        };
        let review = self
            .0
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| AuthenticateError::Unavailable(Arc::new(error)))?;
        read(review)
    }
}

fn read(review: TokenReview) -> Result<Caller, AuthenticateError> {
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        return Err(AuthenticateError::Refused(
            status.error.unwrap_or_else(|| "no reason given".to_owned()),
        ));
    }
    // An API server that knows nothing of audiences would accept any token of the cluster.
    if !status
        .audiences
        .unwrap_or_default()
        .iter()
        .any(|audience| audience == AUDIENCE)
    {
        return Err(AuthenticateError::Refused(format!(
            "its audience is not {AUDIENCE}"
        )));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(AuthenticateError::NotAServiceAccount(name));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| {
        let values: &Vec<String> = extra.get(&format!("authentication.kubernetes.io/{key}"))?;
        values.first().map(|value| Arc::from(value.as_str()))
    };
    Ok(Caller {
        account: Key::new(namespace, account),
        pod: one("pod-uid"),
        node: one("node-name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn review(status: &serde_json::Value) -> Result<Caller, AuthenticateError> {
        read(serde_json::from_value(json!({"spec": {}, "status": status})).expect("a TokenReview"))
    }

    #[test]
    fn a_bound_token_names_its_pod_and_node() {
        let caller = review(&json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {
                "username": "system:serviceaccount:ambit-system:ztunnel",
                "extra": {
                    "authentication.kubernetes.io/pod-uid": ["u1"],
                    "authentication.kubernetes.io/node-name": ["n1"],
                },
            },
        }));
        let expected = Caller {
            account: Key::new("ambit-system", "ztunnel"),
            pod: Some("u1".into()),
            node: Some("n1".into()),
        };
        assert_eq!(caller.expect("accepted"), expected);
    }

    #[test]
    fn what_is_not_our_audience_or_no_account_is_refused() {
        let user = json!({"username": "system:serviceaccount:a:b"});
        for (status, reason) in [
            (
                json!({"authenticated": false, "error": "expired"}),
                "expired",
            ),
            (json!({"authenticated": true, "user": user}), "audience"),
            (
                json!({"authenticated": true, "audiences": ["other"], "user": user}),
                "audience",
            ),
            (
                json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": "admin"}}),
                "not a service account",
            ),
        ] {
            let error = review(&status).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
