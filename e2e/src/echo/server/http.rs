//! HTTP/1.1 and HTTP/2 on one port; calls that say they are gRPC go there.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HOST, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::grpc;
use crate::echo::proto::echo_test_service_server::EchoTestServiceServer;
use crate::echo::report::{Accepted, Lines, Wish, canonical};

/// The trailer that `trailers=1` asks for; its value counts the body's bytes.
const LENGTH_TRAILER: HeaderName = HeaderName::from_static("x-body-length");

/// Serves one connection to its end.
pub(super) async fn serve<S>(stream: S, accepted: Accepted) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let accepted = accepted.clone();
        async move { Ok::<_, Infallible>(dispatch(accepted, request).await) }
    });
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
    served.map_err(|error| anyhow::anyhow!("HTTP: {error}"))
}

async fn dispatch(accepted: Accepted, mut request: Request<Incoming>) -> Response<Body> {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .map(HeaderValue::as_bytes);
    if !kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        return answer(&accepted, request).await;
    }
    let head = grpc::Head {
        authority: host(&request),
        path: request.uri().path().to_owned(),
    };
    request.extensions_mut().insert(head);
    match EchoTestServiceServer::new(grpc::Service(accepted))
        .call(request)
        .await
    {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn answer(accepted: &Accepted, request: Request<Incoming>) -> Response<Body> {
    let asked = Wish::read(request.uri().query(), request.headers())
        .and_then(|wish| Ok((final_status(wish.status)?, wish)));
    let (status, wish) = match asked {
        Ok(asked) => asked,
        Err(error) => return plain(StatusCode::BAD_REQUEST, format!("Refused={error:#}\n")),
    };
    let text = lines(accepted, &request);
    if wish.stream {
        wait(wish.delay).await;
        return reply(status, Body::new(request.into_body()));
    }
    if let Err(error) = drain(request.into_body()).await {
        return plain(
            StatusCode::BAD_REQUEST,
            format!("Refused=request body: {error}\n"),
        );
    }
    wait(wish.delay).await;
    let text = padded(text, wish.size);
    if !wish.trailers {
        return plain(status, text);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert(LENGTH_TRAILER, text.len().into());
    let frames = [
        Ok::<_, Infallible>(Frame::data(Bytes::from(text))),
        Ok(Frame::trailers(trailers)),
    ];
    let mut response = reply(status, Body::new(StreamBody::new(stream::iter(frames))));
    response
        .headers_mut()
        .insert(TRAILER, HeaderValue::from_name(LENGTH_TRAILER));
    response
}

fn final_status(wished: Option<u16>) -> Result<StatusCode> {
    let status = StatusCode::from_u16(wished.unwrap_or(200))?;
    ensure!(
        !status.is_informational(),
        "{status} does not end an answer"
    );
    Ok(status)
}

/// What the server saw, in the order the conformance suite's own echo has it.
fn lines(accepted: &Accepted, request: &Request<Incoming>) -> String {
    let mut headers = request.headers().clone();
    headers.remove(HOST);
    let mut lines = Lines::default();
    lines.add("ServiceVersion", &accepted.server.version);
    lines.add("ServicePort", accepted.port.to_string());
    lines.add("Host", host(request));
    lines.add(
        "URL",
        request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str()),
    );
    lines.add("Method", request.method());
    lines.add(
        "Proto",
        if request.version() == Version::HTTP_2 {
            "HTTP/2.0"
        } else {
            "HTTP/1.1"
        },
    );
    lines.add("IP", accepted.peer.to_string());
    lines.headers(&headers, canonical);
    lines.add("Hostname", &accepted.server.hostname);
    lines.into_text()
}

fn host(request: &Request<Incoming>) -> String {
    match (request.uri().authority(), request.headers().get(HOST)) {
        (Some(authority), _) => authority.to_string(),
        (None, Some(host)) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
        (None, None) => String::new(),
    }
}

async fn drain(mut body: Incoming) -> Result<(), hyper::Error> {
    while !body.is_end_stream() {
        match body.frame().await {
            Some(frame) => drop(frame?),
            None => break,
        }
    }
    Ok(())
}

async fn wait(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

fn padded(mut text: String, size: usize) -> String {
    if size > 0 {
        text.push_str("Padding=");
        text.push_str(&"x".repeat(size));
        text.push('\n');
    }
    text
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let body = if may_have_body(status) {
        Body::new(Full::from(text))
    } else {
        Body::empty()
    };
    reply(status, body)
}

fn may_have_body(status: StatusCode) -> bool {
    status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

fn reply(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
