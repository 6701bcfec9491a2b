//! The process's own HTTP: metrics and readiness for everybody, state and log levels for loopback only.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::metrics;
use super::readiness::Readiness;
use super::telemetry::FilterHandle;
use page::Page;

pub use page::bounded;

mod connections;
mod page;

/// Prometheus' OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics are encoded once in this time, whoever asks how often. Nobody scrapes more often.
const METRICS_FRESH: Duration = Duration::from_secs(1);

/// Of a page of state: more than anybody reads, and little beside what the state itself takes.
const MOST_STATE: usize = 8 * 1024 * 1024;

/// What the pages show. Cheap to clone; clones share what was built.
#[derive(Clone)]
pub struct Admin {
    metrics: Page,
    ready: Readiness,
    filter: FilterHandle,
    state: Page,
}

/// Why a page that is for whoever is inside the pod is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NotPrivate {
    #[error("on loopback only: kubectl port-forward reaches it")]
    FromOutside,
    /// A web page may have its own name resolve to 127.0.0.1 (DNS rebinding), and then reads what its visitor can reach.
    #[error("ask for localhost, 127.0.0.1 or [::1]: under another name this page is not shown")]
    OtherName,
}

#[derive(serde::Deserialize)]
struct Level {
    level: Option<String>,
}

/// Serves for ever, a bounded number of connections. The same pages may be served on several listeners.
pub async fn serve(listener: TcpListener, admin: Admin) -> Infallible {
    let private = Router::new()
        .route("/debug/config_dump", get(dump))
        .route("/logging", post(set_level).get(level))
        .layer(middleware::from_fn(private_only));
    let pages = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/stats/prometheus", get(show_metrics))
        .route("/healthz/ready", get(ready))
        .merge(private)
        .with_state(admin);
    connections::serve(listener, pages).await
}

// === impl Admin ===

impl Admin {
    /// `/metrics` and `/stats/prometheus`, `/healthz/ready`, `/logging`, and `/debug/config_dump`, which shows what `state`
    /// returns. Metrics and state are gathered on threads for what blocks, one at a time.
    pub fn new(
        registry: Registry,
        ready: Readiness,
        filter: FilterHandle,
        state: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        Self {
            metrics: Page::new(METRICS_FRESH, move || metrics::encode(&registry).into()),
            ready,
            filter,
            state: Page::new(Duration::ZERO, move || {
                let mut text = bounded(MOST_STATE, format_args!("{:#}", state()));
                text.push('\n');
                text.into()
            }),
        }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ready, filter, .. } = self;
        f.debug_struct("Admin")
            .field("ready", ready)
            .field("filter", filter)
            .finish_non_exhaustive()
    }
}

// === pages ===

async fn show_metrics(State(admin): State<Admin>) -> Response {
    built(&admin.metrics, OPEN_METRICS).await
}

async fn dump(State(admin): State<Admin>) -> Response {
    built(&admin.state, "application/json").await
}

async fn built(page: &Page, kind: &'static str) -> Response {
    match page.text().await {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page cannot be built");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    match admin.ready.pending() {
        pending if pending.is_empty() => (StatusCode::OK, "ready\n").into_response(),
        pending => {
            let waits = format!("waiting for {}\n", pending.join(", "));
            (StatusCode::SERVICE_UNAVAILABLE, waits).into_response()
        }
    }
}

async fn level(State(admin): State<Admin>) -> String {
    format!("{}\n", admin.filter.get())
}

/// Without a level: what the process began with.
async fn set_level(State(admin): State<Admin>, Query(wanted): Query<Level>) -> Response {
    match admin.filter.set(&wanted.level.unwrap_or_default()) {
        Ok(()) => level(State(admin)).await.into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// State names every pod and policy of the node, and levels are a switch: neither is for the network.
async fn private_only(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match private(peer.ip(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => (StatusCode::FORBIDDEN, format!("{refused}\n")).into_response(),
    }
}

/// DECISION: whether this is somebody inside the pod, who means to ask us.
fn private(peer: IpAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), NotPrivate> {
    if !peer.to_canonical().is_loopback() {
        return Err(NotPrivate::FromOutside);
    }
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(NotPrivate::OtherName);
    };
    let host = host.to_str().ok().and_then(|host| host.parse().ok());
    let asked = host.as_ref().into_iter().chain(uri.authority());
    if host.is_some() && asked.into_iter().all(is_local) {
        return Ok(());
    }
    Err(NotPrivate::OtherName)
}

/// On any port: a forwarded one is anybody's choice.
fn is_local(name: &Authority) -> bool {
    let host = name.host();
    let known = host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]";
    known && !name.as_str().contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_shown_to_loopback_under_its_own_names_only() {
        use NotPrivate::{FromOutside, OtherName};
        let local = "127.0.0.1";
        for (peer, hosts, expected) in [
            ("10.0.0.1", &["localhost"][..], Err(FromOutside)),
            ("::ffff:10.0.0.1", &["localhost"], Err(FromOutside)),
            (local, &[], Err(OtherName)),
            (local, &[""], Err(OtherName)),
            (local, &["rebound.example:15000"], Err(OtherName)),
            (local, &["localhost.example"], Err(OtherName)),
            (local, &["127.0.0.1.example"], Err(OtherName)),
            (local, &["127.0.0.2"], Err(OtherName)),
            (local, &["localhost@rebound.example"], Err(OtherName)),
            (local, &["a@localhost"], Err(OtherName)),
            (local, &["localhost", "rebound.example"], Err(OtherName)),
            (local, &["localhost"], Ok(())),
            (local, &["LOCALHOST:1"], Ok(())),
            ("::1", &["[::1]:15000"], Ok(())),
            ("::ffff:127.0.0.1", &["127.0.0.1:8080"], Ok(())),
        ] {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().expect("a value"));
            }
            let peer = peer.parse().expect("an address");
            let uri = Uri::from_static("/debug/config_dump");
            assert_eq!(private(peer, &uri, &headers), expected, "{peer} {hosts:?}");
            let named = Uri::from_static("http://rebound.example/debug/config_dump");
            assert!(private(peer, &named, &headers).is_err(), "{peer} {hosts:?}");
        }
    }
}
