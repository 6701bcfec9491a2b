//! The process's own HTTP: metrics and readiness for everybody, state and log levels for loopback only.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::metrics;
use super::readiness::Readiness;
use super::telemetry::FilterHandle;

/// Prometheus' OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages show.
#[derive(Clone)]
pub struct Admin {
    /// `/metrics`, `/stats/prometheus`
    pub registry: Arc<Registry>,
    /// `/healthz/ready`
    pub ready: Readiness,
    /// `/logging`
    pub filter: FilterHandle,
    /// `/debug/config_dump`
    pub debug: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

#[derive(serde::Deserialize)]
struct Level {
    level: Option<String>,
}

/// Serves until the listener fails. The same pages may be served on several listeners.
pub async fn serve(listener: TcpListener, admin: Admin) -> std::io::Result<()> {
    let private = Router::new()
        .route("/debug/config_dump", get(dump))
        .route("/logging", post(set_level).get(level))
        .layer(middleware::from_fn(loopback_only));
    let pages = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/stats/prometheus", get(show_metrics))
        .route("/healthz/ready", get(ready))
        .merge(private)
        .with_state(admin)
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, pages).await
}

// === impl Admin ===

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
    (
        [(header::CONTENT_TYPE, OPEN_METRICS)],
        metrics::encode(&admin.registry),
    )
        .into_response()
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

async fn dump(State(admin): State<Admin>) -> Response {
    let text = format!("{:#}\n", (admin.debug)());
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
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
async fn loopback_only(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    (
        StatusCode::FORBIDDEN,
        "on loopback only: kubectl port-forward reaches it\n",
    )
        .into_response()
}
