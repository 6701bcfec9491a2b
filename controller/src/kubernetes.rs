//! The client of the API server, in which no call waits for ever.
//!
//! Every request passes one layer, so that no caller can forget it:
//! * a call is answered whole, head and body, within [`CALL_DEADLINE`], or ends as [`NoAnswer`];
//! * of a watch only the head is: its silence is for `watch` to notice, by bookmarks;
//! * what is refused as too much (429) says when to come again, in the place where [`retry_after`] finds it.
//!
//! Nothing is tried again here: each caller has a loop of its own, which knows whether that is still wanted.
//! The connections are HTTP/1.1, one for each call or watch that is open; the kernel asks a silent peer whether it lives.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Layer, Service, ServiceBuilder};

/// How long a call may take: an API server that is well answers within one second, and one that is not after this long
/// is better asked again.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long one address of the API server may take to accept a connection, so that the next one has its turn in time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this much silence the kernel asks the peer whether it lives ...
const KEEPALIVE: Duration = Duration::from_secs(15);
/// ... again after this ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// ... and after so many questions without an answer the connection is dead: 30 s in all.
const KEEPALIVE_PROBES: u32 = 3;
/// How long the peer's kernel may leave what was sent without acknowledgement. As long as the above.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// No longer than this does anybody stay away because a server says so.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

/// The API server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no whole answer to {call} within {within:?}")]
pub struct NoAnswer {
    call: String,
    within: Duration,
}

/// Puts a deadline on every call.
#[derive(Debug, Clone, Copy)]
pub struct DeadlineLayer(Duration);

/// A client's service with a deadline on every call.
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    within: Duration,
}

/// A body that must end in time.
pub struct Timed {
    inner: UnsyncBoxBody<Bytes, BoxError>,
    /// None for a watch.
    deadline: Option<(Pin<Box<Sleep>>, NoAnswer)>,
}

/// Connects as the environment says: within the cluster, or by a kubeconfig.
pub async fn client() -> kube::Result<Client> {
    let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    client_with(&config)
}

fn client_with(config: &Config) -> kube::Result<Client> {
    if let Some(proxy) = &config.proxy_url {
        let proxy_url = Box::new(proxy.clone());
        return Err(kube::Error::ProxyProtocolUnsupported { proxy_url });
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::default())
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// How long to stay away, if the API server says so.
pub fn retry_after(error: &kube::Error) -> Option<Duration> {
    let kube::Error::Api(status) = error else {
        return None;
    };
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()).min(LONGEST_RETRY_AFTER))
}

/// Whether the call ended because its deadline passed.
pub fn is_late(error: &kube::Error) -> bool {
    let mut cause = Some(error as &dyn std::error::Error);
    while let Some(error) = cause {
        if error.is::<NoAnswer>() {
            return true;
        }
        cause = error.source();
    }
    false
}

// === impl DeadlineLayer ===

impl Default for DeadlineLayer {
    fn default() -> Self {
        Self(CALL_DEADLINE)
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline {
            inner,
            within: self.0,
        }
    }
}

// === impl Deadline ===

impl<S, B> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Timed>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Timed>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let late = NoAnswer {
            call: format!("{} {}", request.method(), request.uri().path()),
            within: self.within,
        };
        let until = Instant::now() + self.within;
        let watch = is_watch(&request);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Ok(answer) = tokio::time::timeout_at(until, answer).await else {
                return Err(late.into());
            };
            let (head, body) = answer.map_err(Into::into)?.into_parts();
            if head.status == StatusCode::TOO_MANY_REQUESTS {
                let (head, body) = busy(head);
                let inner = body.map_err(|never| match never {}).boxed_unsync();
                let deadline = None;
                return Ok(Response::from_parts(head, Timed { inner, deadline }));
            }
            // A refused watch is an answer like any other.
            let bounded = !watch || !head.status.is_success();
            let deadline = bounded.then(|| (Box::pin(tokio::time::sleep_until(until)), late));
            let inner = body.map_err(Into::into).boxed_unsync();
            Ok(Response::from_parts(head, Timed { inner, deadline }))
        })
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let mut query = request.uri().query().unwrap_or_default().split('&');
    query.any(|one| matches!(one, "watch=true" | "watch=1"))
}

/// Says in the body what the header says. What priority and fairness refuses with has nothing else in it.
fn busy(mut head: http::response::Parts) -> (http::response::Parts, Full<Bytes>) {
    let seconds = head.headers.get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
    let status = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": "TooManyRequests",
        "message": "the API server has too much to do",
        "code": head.status.as_u16(),
        "details": {"retryAfterSeconds": seconds.unwrap_or(0u32)},
    });
    let body = status.to_string();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::CONTENT_ENCODING);
    (head, Full::from(body))
}

// === impl Timed ===

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        // First: a body that comes in drops, each of them at once, would never let it be looked at.
        if let Some((sleep, _)) = &mut this.deadline
            && sleep.as_mut().poll(cx).is_ready()
        {
            let late = this.deadline.take().map(|(_, late)| Err(late.into()));
            return Poll::Ready(late);
        }
        Pin::new(&mut this.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounded = self.deadline.is_some();
        f.debug_struct("Timed").field("bounded", &bounded).finish()
    }
}
