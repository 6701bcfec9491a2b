//! One line per request and connection, in the words of the metrics (target `access`); of refusals as many as people read.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::LocalKey;
use std::time::Instant;

use hbone::Meter;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use mesh::process::line_limit::{LineLimit, Pass};
use mesh::verdict::waypoint::To;
use mesh::workload::Workload;

use crate::balance::Chosen;
use crate::flags::{CLIENT_GONE, DENIED};
use crate::metrics::{Ended, Protocol};
use crate::proxy::Core;
use crate::routed::Routed;
use crate::session::{Client, Session};

/// Nothing unusual happened.
pub(crate) const NO_FLAGS: &str = "-";

/// Hosts and paths come from the client: more of one than this is not logged.
const MAX_LOGGED: usize = 512;

/// What is known about one request; counted and logged when dropped.
#[derive(Debug)]
pub(crate) struct Record {
    core: Rc<Core>,
    session: Rc<Session>,
    started: Instant,
    method: Method,
    host: String,
    path: String,
    protocol: Protocol,
    routed: Option<Routed>,
    to: To,
    upstream: Option<(Arc<Workload>, SocketAddr)>,
    status: Option<StatusCode>,
    grpc: Option<u16>,
    flags: &'static str,
    error: Option<String>,
    received: Rc<Cell<u64>>,
    sent: u64,
    complete: bool,
}

/// What is known about one opaque connection; logged when dropped.
#[derive(Debug)]
pub(crate) struct Opaque<'a> {
    session: &'a Session,
    started: Instant,
    upstream: Option<(Arc<Workload>, SocketAddr)>,
    /// From the client is received, to it is sent.
    pub(crate) meter: Meter,
    flags: &'static str,
    error: Option<String>,
}

// === impl Record ===

impl Record {
    /// A request has arrived.
    pub(crate) fn begin<B>(
        core: &Rc<Core>,
        session: &Rc<Session>,
        request: &Request<B>,
        received: &Rc<Cell<u64>>,
    ) -> Self {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map(HeaderValue::as_bytes);
        let is_grpc = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let named = request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let host = request
            .uri()
            .authority()
            .map(|authority| authority.as_str())
            .or(named);
        Self {
            core: Rc::clone(core),
            session: Rc::clone(session),
            started: Instant::now(),
            method: request.method().clone(),
            host: cut(host.unwrap_or_default()),
            // Without the query, which may hold secrets.
            path: cut(request.uri().path()),
            protocol: if is_grpc {
                Protocol::Grpc
            } else {
                Protocol::Http
            },
            routed: None,
            to: session.to.clone(),
            upstream: None,
            status: None,
            grpc: None,
            flags: NO_FLAGS,
            error: None,
            received: Rc::clone(received),
            sent: 0,
            complete: false,
        }
    }

    /// Whether the answer must be one that a gRPC client reads.
    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// The rule it met.
    pub(crate) fn routed(&mut self, routed: Option<Routed>) {
        self.routed = routed;
    }

    /// It goes to this endpoint of `to`.
    pub(crate) fn upstream(&mut self, to: &To, chosen: &Chosen) {
        self.to = to.clone();
        self.upstream = Some((Arc::clone(&chosen.workload), chosen.hop.target));
    }

    /// The status of the answer.
    pub(crate) fn status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The status of a gRPC call, where these headers or trailers have it.
    pub(crate) fn grpc_status(&mut self, headers: &HeaderMap) {
        if self.is_grpc() {
            self.grpc = grpc_status(headers).or(self.grpc);
        }
    }

    /// So many bytes of the answer went to the client.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// What went wrong; the first reason stays.
    pub(crate) fn failed(&mut self, flags: &'static str, error: &(impl Display + ?Sized)) {
        if self.flags == NO_FLAGS {
            self.flags = flags;
            self.error = Some(error.to_string());
        }
    }

    /// The answer has been read to its end.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    fn log(&self) {
        let (client, duration) = (&self.session.client, self.started.elapsed());
        let from = client.workload.as_deref();
        let to = self.upstream.as_ref().map(|(workload, _)| workload);
        tracing::info!(
            target: "access",
            direction = "waypoint",
            src.addr = %client.address,
            src.workload = from.map(|workload| workload.name()),
            src.namespace = from.map(|workload| workload.namespace()),
            src.identity = %client.id,
            dst.authority = %self.session.authority,
            dst.service = self.to.service().map(|service| &*service.id.hostname),
            dst.addr = self.upstream.as_ref().map(|(_, addr)| tracing::field::display(addr)),
            dst.workload = to.map(|workload| workload.name()),
            dst.namespace = to.map(|workload| workload.namespace()),
            dst.identity = to.map(|workload| tracing::field::display(workload.identity())),
            route = self.routed.as_ref().map(|routed| tracing::field::display(&routed.route)),
            rule = self.routed.as_ref().and_then(|routed| routed.rule.name.as_deref()),
            method = %self.method,
            host = self.host,
            path = self.path,
            protocol = self.protocol.as_str(),
            status = self.status.map(|status| status.as_u16()),
            grpc_status = self.grpc,
            response_flags = self.flags,
            bytes_recv = self.received.get(),
            bytes_sent = self.sent,
            duration = %millis(duration),
            trace_id = self.session.trace.as_ref().map(|trace| tracing::field::display(trace.trace_id())),
            error = self.error,
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.complete {
            if let Some(reason) = self.session.cut.reason() {
                (self.flags, self.error) = (DENIED, Some(reason.to_owned()));
            } else if self.flags == NO_FLAGS {
                self.flags = CLIENT_GONE;
            }
        }
        self.log();
        self.core.metrics.request(&Ended {
            session: &self.session,
            to: &self.to,
            upstream: self.upstream.as_ref().map(|(workload, _)| &**workload),
            protocol: self.protocol,
            // What existing dashboards expect of a request that was never answered.
            code: self.status.map_or(0, |status| status.as_u16()),
            grpc: self.grpc,
            flags: self.flags,
            received: self.received.get(),
            sent: self.sent,
            duration: self.started.elapsed(),
        });
    }
}

// === impl Opaque ===

impl<'a> Opaque<'a> {
    /// A tunnel was admitted.
    pub(crate) fn begin(session: &'a Session) -> Self {
        Self {
            session,
            started: Instant::now(),
            upstream: None,
            meter: Meter::new(),
            flags: NO_FLAGS,
            error: None,
        }
    }

    /// It goes to this endpoint.
    pub(crate) fn upstream(&mut self, chosen: &Chosen) {
        self.upstream = Some((Arc::clone(&chosen.workload), chosen.hop.target));
    }

    /// What went wrong.
    pub(crate) fn failed(&mut self, flags: &'static str, error: &(impl Display + ?Sized)) {
        self.flags = flags;
        self.error = Some(error.to_string());
    }
}

impl Drop for Opaque<'_> {
    fn drop(&mut self) {
        if self.flags != NO_FLAGS
            && let Some(reason) = self.session.cut.reason()
        {
            (self.flags, self.error) = (DENIED, Some(reason.to_owned()));
        }
        let client = &self.session.client;
        let from = client.workload.as_deref();
        let to = self.upstream.as_ref().map(|(workload, _)| workload);
        tracing::info!(
            target: "access",
            direction = "waypoint",
            src.addr = %client.address,
            src.workload = from.map(|workload| workload.name()),
            src.namespace = from.map(|workload| workload.namespace()),
            src.identity = %client.id,
            dst.authority = %self.session.authority,
            dst.service = self.session.to.service().map(|service| &*service.id.hostname),
            dst.addr = self.upstream.as_ref().map(|(_, addr)| tracing::field::display(addr)),
            dst.workload = to.map(|workload| workload.name()),
            dst.namespace = to.map(|workload| workload.namespace()),
            dst.identity = to.map(|workload| tracing::field::display(workload.identity())),
            protocol = "tcp",
            response_flags = self.flags,
            bytes_recv = self.meter.received(),
            bytes_sent = self.meter.sent(),
            duration = %millis(self.started.elapsed()),
            trace_id = self.session.trace.as_ref().map(|trace| tracing::field::display(trace.trace_id())),
            error = self.error,
        );
    }
}

/// Of one kind of refusal, on one core.
type Limit = LocalKey<RefCell<LineLimit>>;

thread_local! {
    static CONNECTIONS: RefCell<LineLimit> = const { RefCell::new(LineLimit::new()) };
    static TUNNELS: RefCell<LineLimit> = const { RefCell::new(LineLimit::new()) };
}

fn pass(limit: &'static Limit) -> Option<Pass> {
    limit.with_borrow_mut(|limit| limit.pass(Instant::now()))
}

/// A connection is not served: its client is not proven, or there is no room for one more.
pub(crate) fn refused_connection(from: Option<SocketAddr>, code: &str, error: impl Display) {
    if let Some(Pass { unlogged }) = pass(&CONNECTIONS) {
        let from = from.map(tracing::field::display);
        tracing::warn!(from, code, %error, unlogged, "connection refused");
    }
}

/// A tunnel was not opened.
pub(crate) fn refused(client: &Client, authority: &hbone::Target, refusal: &hbone::Refusal) {
    let Some(Pass { unlogged }) = pass(&TUNNELS) else {
        return;
    };
    tracing::warn!(
        target: "access",
        direction = "waypoint",
        src.addr = %client.address,
        src.identity = %client.id,
        dst.authority = %authority,
        status = refusal.status.as_u16(),
        code = %refusal.code,
        error = refusal.reason,
        unlogged,
    );
}

/// The number in `grpc-status`.
fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn millis(duration: std::time::Duration) -> String {
    format!("{:.3}ms", duration.as_secs_f64() * 1e3)
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_LOGGED).collect()
}
