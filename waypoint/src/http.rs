//! STORY: one request → route → filter → balance → send → respond → log.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Method, StatusCode, Version, header, request};
use hbone::TunnelIo;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh::balance::{InFlight, NoEndpoint, Tries, reach};
use mesh::service::AppProtocol;
use mesh::verdict::waypoint::To;
use tokio::time::timeout;

use crate::access_log::{self, Record};
use crate::balance::{self, Chosen};
use crate::budget::Resource;
use crate::cut::Noted;
use crate::exec::LocalExec;
use crate::flags::{BAD_REQUEST, NO_ENDPOINT, OVERLOADED, TERMINATED, UNREACHABLE};
use crate::head::{Heads, Running, Watched};
use crate::leases::Held;
use crate::proxy::{Core, Phase};
use crate::request_body::RequestBody;
use crate::routed::Routed;
use crate::session::Session;
use crate::upstream::{Failed, Ready, StreamPermit, Unreachable};
use body::ResponseBody;
use decide::{Decision, Next, decide};
use reply::Reply;

pub(crate) mod body;
pub(crate) mod decide;
mod filter;
mod headers;
pub(crate) mod reply;
mod upgrade;

/// Requests at a time on one HTTP/2 connection of a client.
const MAX_STREAMS: u32 = 100;

/// Header list of a request.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// Buffer of an HTTP/1.1 connection, which bounds the head of a request.
const MAX_BUFFER: usize = 128 << 10;

/// Headers of an HTTP/1.1 request.
const MAX_HEADERS: usize = 128;

/// From one request to the next one's head: clients may keep a connection idle for long without losing the request that
/// ends the silence. A head that has begun has a bound of its own (`head.rs`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How long a client may take to read why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// HTTP/2 windows towards a client, as towards endpoints.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Endpoints that are tried for one request, as long as nothing of it was sent.
const ENDPOINTS: usize = 3;

/// A request on its way: its head as the client sent it, and what goes with it.
struct Exchange {
    head: request::Parts,
    body: Incoming,
    /// Asked for in HTTP/1.1.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    received: Rc<Cell<u64>>,
    running: Running,
    record: Record,
}

/// An endpoint's answer, and what is given back when it has been read.
struct Answer {
    response: Response<Incoming>,
    permit: Option<StreamPermit>,
    load: InFlight,
    /// After a change of protocol.
    lease: Option<Held>,
}

thread_local! {
    static ROLL: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::new());
}

/// Serves the HTTP inside one tunnel until it ends.
pub(crate) async fn serve(core: Rc<Core>, session: Rc<Session>, io: TunnelIo) {
    let is_http2 = Rc::new(Cell::new(false));
    let seen = Rc::clone(&is_http2);
    let (for_requests, its_session) = (Rc::clone(&core), Rc::clone(&session));
    let heads = Arc::new(Heads::default());
    let io = Noted::new(io, session.cut.clone());
    let watched = Watched::new(io, Arc::clone(&heads));
    let its_heads = Arc::clone(&heads);
    let service = service_fn(move |incoming: Request<Incoming>| {
        seen.set(incoming.version() == Version::HTTP_2);
        let running = its_heads.request(seen.get());
        let (core, session) = (Rc::clone(&for_requests), Rc::clone(&its_session));
        async move { Ok::<_, Infallible>(request(core, session, incoming, running).await) }
    });
    let builder = server();
    let mut connection =
        pin!(builder.serve_connection_with_upgrades(TokioIo::new(watched), service));
    let mut phase = core.phase();
    let mut leaving = Phase::Serving;
    loop {
        tokio::select! {
            biased; // The connection first: what comes after looks at what it did.
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %session.client.id, %error, "client connection ended");
                }
                return;
            }
            // Requests go with it.
            () = session.cut.happened() => return,
            stalled = heads.stalled(session.place.account(), core.limits.head_timeout) => {
                let refusal = stalled.refusal();
                access_log::refused(&session.client, &session.authority, &refusal);
                core.metrics.refused_tunnel(&refusal.code);
                heads.part(&refusal);
                // Ended in time or not: requests that run beside it are of the same client.
                let _ = timeout(LAST_WORDS, connection.as_mut()).await;
                return;
            }
            Ok(now) = async { phase.wait_for(|now| *now > leaving).await.map(|now| *now) } => {
                leaving = now;
                // HTTP/2 says GOAWAY; an HTTP/1.1 client that is about to send would lose its request, so
                // it is told with its next response, and only at last without one.
                if is_http2.get() || now == Phase::Closing {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn server() -> auto::Builder<LocalExec> {
    let mut builder = auto::Builder::new(LocalExec);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .half_close(true)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

/// One request, from its head to the head of its answer; the rest passes through the bodies.
async fn request(
    core: Rc<Core>,
    session: Rc<Session>,
    incoming: Request<Incoming>,
    running: Running,
) -> Response<ResponseBody> {
    let version = incoming.version();
    let leaving = core.is_leaving();
    let mut exchange = match Exchange::begin(&core, &session, incoming, running.clone()) {
        Ok(exchange) => exchange,
        Err(refused) => return *refused,
    };
    let place = match session.place.account().take(Resource::Requests) {
        Ok(place) => place,
        Err(exhausted) => {
            let reason = exhausted.to_string();
            let reply = Reply::failure(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, reason);
            return reply.respond(exchange.record);
        }
    };
    let Decision { routed, next } = core.world.look(|world| {
        ROLL.with_borrow_mut(|roll| decide(world, &session.to, &exchange.head, roll))
    });
    exchange.record.routed(routed.clone());
    let mut response = match next {
        Next::Answer(reply) => reply.respond(exchange.record),
        Next::Forward { to, declared } => {
            let http2 = wants_http2(declared, &exchange.head);
            forward(&core, &session, exchange, &to, http2, routed.as_ref()).await
        }
    };
    response.body_mut().hold(place, running);
    if leaving && version != Version::HTTP_2 && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// As declared; else as it came.
fn wants_http2(declared: AppProtocol, head: &request::Parts) -> bool {
    match declared {
        AppProtocol::Http2 | AppProtocol::Grpc => true,
        _ => head.version == Version::HTTP_2,
    }
}

/// Sends a request to an endpoint of `to` and passes its answer on.
async fn forward(
    core: &Rc<Core>,
    session: &Rc<Session>,
    mut exchange: Exchange,
    to: &To,
    http2: bool,
    routed: Option<&Routed>,
) -> Response<ResponseBody> {
    // An upgrade is a word of HTTP/1.1.
    let http2 = http2 && exchange.upgrade.is_none();
    let found = connect(core, session, &mut exchange.record, to, http2).await;
    let (chosen, ready, load) = match found {
        Ok(found) => found,
        Err(reply) => return reply.respond(exchange.record),
    };
    headers::strip_request(&mut exchange.head.headers);
    if let Some(routed) = routed {
        filter::request(routed.filters(), &mut exchange.head.headers);
    }
    if let Err(bad) = headers::address(&mut exchange.head, http2, &to.host()) {
        let reply = Reply::failure(StatusCode::BAD_REQUEST, BAD_REQUEST, bad.to_string());
        return reply.respond(exchange.record);
    }
    let Exchange {
        mut head,
        body,
        upgrade,
        received,
        running,
        record,
    } = exchange;
    if let Some((protocol, _)) = &upgrade {
        upgrade::write(&mut head.headers, protocol.clone());
    }
    let request = Request::from_parts(head, RequestBody::new(body, Rc::clone(&received), running));
    let sent = Instant::now();
    match send(core, session, &chosen, ready, request).await {
        Ok((response, permit)) => {
            let now = Instant::now();
            chosen.stats.answered(now - sent);
            chosen.stats.reached(now);
            let upgrade = upgrade.map(|(_, client)| (client, received));
            // The connection's own lease ends with HTTP.
            let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let lease = switched.then(|| core.upstream.hold(&chosen.hop));
            let lease = match lease.transpose() {
                Ok(lease) => lease,
                Err(revoked) => return terminated(&revoked, record),
            };
            let answer = Answer {
                response,
                permit,
                load,
                lease,
            };
            respond(answer, routed, upgrade, record)
        }
        Err(error) => terminated(&error, record),
    }
}

/// Connects to an endpoint, and tells everybody of this process what came of it.
async fn ready(
    core: &Rc<Core>,
    session: &Rc<Session>,
    chosen: Chosen,
) -> Result<(Chosen, Ready, InFlight), Unreachable> {
    let load = chosen.stats.begin();
    let began = Instant::now();
    let head = || session.onward(chosen.hop.target);
    match core.upstream.ready(&chosen.hop, session.key(), head).await {
        Ok(ready) => {
            if !ready.is_reused() {
                chosen.stats.reached(Instant::now());
            }
            Ok((chosen, ready, load))
        }
        Err(error) => {
            balance::not_reached(&chosen, began, &error);
            Err(error)
        }
    }
}

/// The endpoint went away before it had answered.
fn terminated(why: &dyn Display, record: Record) -> Response<ResponseBody> {
    let reason = format!("the endpoint ended the connection: {why}");
    Reply::failure(StatusCode::SERVICE_UNAVAILABLE, TERMINATED, reason).respond(record)
}

/// Chooses an endpoint and connects to it; while nothing is sent, another may do better.
async fn connect(
    core: &Rc<Core>,
    session: &Rc<Session>,
    record: &mut Record,
    to: &To,
    http2: bool,
) -> Result<(Chosen, Ready, InFlight), Reply> {
    let (mut tries, mut none) = (Tries::new(ENDPOINTS), NoEndpoint::None);
    let next = |why| {
        let asking = |tries: &Tries| {
            core.world.look(|world| {
                let asking = balance::Asking {
                    client: &session.client,
                    avoid: tries.tried(),
                    http2,
                };
                ROLL.with_borrow_mut(|roll| balance::pick(world, to, &asking, roll))
            })
        };
        let chosen = balance::another(&mut tries, why, asking)
            .map_err(|reason| none = reason)
            .ok()?;
        record.upstream(to, &chosen);
        Some(ready(core, session, chosen))
    };
    let reached = reach(next, |_: &Unreachable| false).await;
    let last = match reached {
        Ok(found) => {
            record.upstream(to, &found.0);
            return Ok(found);
        }
        Err(last) => last,
    };
    Err(match last {
        Some(error) => {
            record.failed(UNREACHABLE, &error);
            let reason = format!("no endpoint of {to} can be reached: {}", error.code());
            Reply::failure(StatusCode::SERVICE_UNAVAILABLE, UNREACHABLE, reason)
        }
        None => {
            let reason = format!("{to} has {none}");
            Reply::failure(StatusCode::SERVICE_UNAVAILABLE, NO_ENDPOINT, reason)
        }
    })
}

/// Sends; once more where a kept connection turned out dead and sending again repeats nothing.
async fn send(
    core: &Rc<Core>,
    session: &Rc<Session>,
    chosen: &Chosen,
    ready: Ready,
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Option<StreamPermit>), String> {
    // Where only the connection's end shows that it had ended, a safe request may still go again (RFC 9110 §9.2.2).
    let safe = ready.is_reused() && request.method().is_safe() && request.body().is_end_stream();
    let copy = safe.then(|| {
        let mut copy = Request::new(RequestBody::empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        copy
    });
    let failed = match ready.send(request).await {
        Ok(answer) => return Ok(answer),
        Err(failed) => failed,
    };
    let Failed {
        error,
        unsent,
        reused,
    } = failed;
    let dead =
        error.is_closed() || error.is_canceled() || error.is_incomplete_message() || is_io(&error);
    let again = unsent.map(|unsent| *unsent).or(copy.filter(|_| dead));
    let Some(request) = again.filter(|_| reused) else {
        return Err(error.to_string());
    };
    tracing::debug!(%error, "a kept connection had ended: once more");
    let ready = core
        .upstream
        .fresh(&chosen.hop, session.key(), || {
            session.onward(chosen.hop.target)
        })
        .await;
    let ready = ready.map_err(|error| error.to_string())?;
    ready
        .send(request)
        .await
        .map_err(|failed| failed.error.to_string())
}

/// Whether the connection below HTTP failed.
fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

/// The client's answer from the endpoint's.
fn respond(
    answer: Answer,
    routed: Option<&Routed>,
    upgrade: Option<(OnUpgrade, Rc<Cell<u64>>)>,
    mut record: Record,
) -> Response<ResponseBody> {
    let Answer {
        mut response,
        permit,
        load,
        lease,
    } = answer;
    record.status(response.status());
    record.grpc_status(response.headers());
    let granted = response.headers().get(header::UPGRADE).cloned();
    let granted = granted.filter(headers::is_websocket);
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let endpoint = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut head, body) = response.into_parts();
    headers::strip_response(&mut head.headers);
    if let Some(routed) = routed {
        filter::response(routed.filters(), &mut head.headers);
    }
    head.version = Version::default();
    match (endpoint.zip(lease), upgrade, granted) {
        (None, ..) => {
            Response::from_parts(head, ResponseBody::upstream(body, record, load, permit))
        }
        (Some((endpoint, lease)), Some((client, received)), Some(protocol)) => {
            upgrade::write(&mut head.headers, protocol);
            let used = (load, lease);
            upgrade::splice(client, endpoint, record, used, received);
            Response::from_parts(head, ResponseBody::switched())
        }
        (Some(_), ..) => {
            let reason = "the endpoint changed the protocol unasked";
            Reply::failure(StatusCode::BAD_GATEWAY, TERMINATED, reason).respond(record)
        }
    }
}

// === impl Exchange ===

impl Exchange {
    /// Reads the head; a request that cannot be passed on is answered.
    fn begin(
        core: &Rc<Core>,
        session: &Rc<Session>,
        mut incoming: Request<Incoming>,
        running: Running,
    ) -> Result<Self, Box<Response<ResponseBody>>> {
        let received = Rc::new(Cell::new(0));
        let record = Record::begin(core, session, &incoming, &received);
        let upgrade = match headers::upgrade(incoming.headers()) {
            Some(protocol) if incoming.version() == Version::HTTP_11 => {
                Some((protocol, hyper::upgrade::on(&mut incoming)))
            }
            _ => None,
        };
        let (mut head, body) = incoming.into_parts();
        headers::introduce(&mut head.headers, session.client.address.ip());
        let refused = if head.method == Method::CONNECT {
            Some(Reply::failure(
                StatusCode::NOT_IMPLEMENTED,
                BAD_REQUEST,
                "CONNECT is not supported here",
            ))
        } else {
            let bad = headers::unify_host(&mut head).err();
            bad.map(|bad| Reply::failure(StatusCode::BAD_REQUEST, BAD_REQUEST, bad.to_string()))
        };
        match refused {
            Some(reply) => Err(Box::new(reply.respond(record))),
            None => Ok(Self {
                head,
                body,
                upgrade,
                received,
                running,
                record,
            }),
        }
    }
}
