//! The two ends of a test: applications behind tunnels, and HTTP clients in front of the waypoint.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use hbone::{Acceptor, Opened, Pool, Response, ServerLimits, TcpDial, TrustDomain, TunnelIo};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::{Mesh, Seen};

pub type Body = BoxBody<Bytes, Infallible>;

#[derive(Clone, Copy)]
pub struct LocalExec;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// A pod's node proxy: accepts tunnels in the name of `id` and hands each to `app`. Says what it was asked.
pub async fn tunnels<F>(
    mesh: &Mesh,
    host: u8,
    id: &str,
    app: impl Fn(TunnelIo) -> F + 'static,
) -> Seen
where
    F: Future<Output = ()> + 'static,
{
    let seen = Seen::default();
    let acceptor = Acceptor::new(
        mesh.credentials(id),
        [TrustDomain::default()],
        ServerLimits::default(),
    );
    let listener = TcpListener::bind(SocketAddr::new(mesh.ip(host), hbone::PORT))
        .await
        .expect("a port");
    let (app, told) = (Rc::new(app), Rc::clone(&seen));
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, app, told) = (acceptor.clone(), Rc::clone(&app), Rc::clone(&told));
            spawn_local(async move {
                let Ok(mut connection) = acceptor.accept(tcp).await else {
                    return;
                };
                while let Some(Ok(incoming)) = connection.next().await {
                    told.borrow_mut().push(incoming.request.clone());
                    if let Ok(tunnel) = incoming.accept(Response::default()) {
                        spawn_local(app(tunnel.into_io()));
                    }
                }
            });
        }
    });
    seen
}

/// An HTTP server (1.1 and 2) behind tunnels.
pub async fn http<F>(
    mesh: &Mesh,
    host: u8,
    id: &str,
    answer: impl Fn(Request<Incoming>) -> F + Clone + 'static,
) -> Seen
where
    F: Future<Output = hyper::Response<Body>> + 'static,
{
    tunnels(mesh, host, id, move |io| serve(io, answer.clone())).await
}

async fn serve<F>(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> F + 'static,
) where
    F: Future<Output = hyper::Response<Body>> + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = auto::Builder::new(LocalExec);
    // A client that goes away in mid-answer is part of some tests.
    let _ = builder
        .serve_connection_with_upgrades(TokioIo::new(io), service)
        .await;
}

/// An HTTP server without a tunnel.
pub async fn plain<F>(addr: SocketAddr, answer: impl Fn(Request<Incoming>) -> F + Clone + 'static)
where
    F: Future<Output = hyper::Response<Body>> + 'static,
{
    let listener = TcpListener::bind(addr).await.expect("a port");
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            spawn_local(serve(tcp, answer.clone()));
        }
    });
}

/// Says its name, and repeats the request's head in headers of the answer.
pub fn named(
    name: &'static str,
) -> impl Fn(Request<Incoming>) -> std::future::Ready<hyper::Response<Body>> + Clone + 'static {
    move |request| {
        let mut response = hyper::Response::new(full(name));
        let headers = response.headers_mut();
        let line = format!(
            "{} {} {:?}",
            request.method(),
            request.uri(),
            request.version()
        );
        headers.insert("x-line", line.parse().expect("a value"));
        for (name, value) in request.headers() {
            let name = format!("got-{name}")
                .parse::<hyper::header::HeaderName>()
                .expect("a name");
            headers.append(name, value.clone());
        }
        std::future::ready(response)
    }
}

/// A pod `name` behind tunnels that answers with its name.
pub async fn pod(mesh: &Mesh, host: u8, name: &'static str) -> Seen {
    http(
        mesh,
        host,
        &format!("spiffe://cluster.local/ns/shop/sa/{name}"),
        named(name),
    )
    .await
}

/// A client with its tunnel to one service.
pub enum Client {
    H1(hyper::client::conn::http1::SendRequest<Body>),
    H2(hyper::client::conn::http2::SendRequest<Body>),
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Client {
    pub async fn h1(mesh: &Mesh, pool: &Pool<TcpDial>, target: &str) -> Self {
        Self::h1_in(mesh.open(pool, target).await.expect("a tunnel")).await
    }

    pub async fn h1_in(opened: Opened) -> Self {
        let io = TokioIo::new(opened.tunnel.into_io());
        let (sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .expect("HTTP/1.1");
        spawn_local(connection.with_upgrades());
        Self::H1(sender)
    }

    pub async fn h2(mesh: &Mesh, pool: &Pool<TcpDial>, target: &str) -> Self {
        let Opened { tunnel, .. } = mesh.open(pool, target).await.expect("a tunnel");
        let io = TokioIo::new(tunnel.into_io());
        let (sender, connection) = hyper::client::conn::http2::handshake(LocalExec, io)
            .await
            .expect("HTTP/2");
        spawn_local(connection);
        Self::H2(sender)
    }

    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<hyper::Response<Incoming>> {
        match self {
            Self::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Asks with these headers and reads the whole answer.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let uri = match self {
            Self::H1(_) => path.to_owned(),
            Self::H2(_) => format!("http://web{path}"),
        };
        let mut request = Request::get(uri);
        if matches!(self, Self::H1(_)) {
            request = request.header("host", "web");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(full("")).expect("a request");
        Answer::of(self.send(request).await.expect("an answer")).await
    }
}

impl Answer {
    pub async fn of(response: hyper::Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let collected = body.collect().await.expect("the whole answer");
        let trailers = collected.trailers().cloned();
        let body = String::from_utf8(collected.to_bytes().to_vec()).expect("text");
        Self {
            status: head.status,
            headers: head.headers,
            body,
            trailers,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    }
}
