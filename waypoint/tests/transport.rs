//! HTTP/1.1 and HTTP/2 both ways: trailers, streaming, upgrades, kept connections, versions.

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use mesh::proto::workload::AppProtocol;
use support::app::{self, Answer, Body, Client, full};
use support::{CLIENT, CLIENT_ADDR, Mesh, Pod, local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio_stream::wrappers::UnboundedReceiverStream;

const WEB: &str = "10.96.0.1:80";
const V1: &str = "spiffe://cluster.local/ns/shop/sa/v1";

/// A body that is fed while it is sent.
fn fed() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (feed, fed) = mpsc::unbounded_channel();
    let frames = UnboundedReceiverStream::new(fed).map(Ok::<_, Infallible>);
    (feed, BodyExt::boxed(StreamBody::new(frames)))
}

/// Repeats each part of the request as it comes, and says how many they were in a trailer.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (feed, body) = fed();
    let mut parts = request.into_body();
    spawn_local(async move {
        let mut count = 0;
        while let Some(Ok(frame)) = parts.frame().await {
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                count += 1;
                let _ = feed.send(Frame::data(data));
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        trailers.insert("x-parts", count.into());
        let _ = feed.send(Frame::trailers(trailers));
    });
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("trailer", "x-parts, grpc-status".parse().expect("a value"));
    response
}

async fn next(body: &mut Incoming) -> Option<Bytes> {
    body.frame()
        .await
        .map(|frame| frame.expect("a frame").into_data().expect("data"))
}

#[test]
fn both_directions_stream_at_once_and_trailers_arrive() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Grpc, &["v1"]);
        app::http(&mesh, 10, V1, echo).await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h2(&mesh, &pool, WEB).await;
        let (feed, body) = fed();
        let request = Request::post("http://web/a.B/c")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let response = client
            .send(request.body(body).expect("a request"))
            .await
            .expect("an answer");
        // The answer has begun before the request has a body: nothing is held back.
        let mut answer = response.into_body();
        for part in ["one", "two"] {
            feed.send(Frame::data(part.into())).expect("open");
            assert_eq!(next(&mut answer).await.as_deref(), Some(part.as_bytes()));
        }
        drop(feed);
        let last = answer.frame().await.expect("trailers").expect("trailers");
        assert_eq!(last.trailers_ref().expect("trailers")["x-parts"], "2");
        mesh.logged(&[
            "\"protocol\":\"grpc\"",
            "\"grpc_status\":0",
            "\"bytes_recv\":6",
            "\"bytes_sent\":6",
        ])
        .await;
    });
}

#[test]
fn http_1_streams_and_has_trailers_where_both_sides_say_so() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::http(&mesh, 10, V1, echo).await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let (feed, body) = fed();
        let request = Request::post("/")
            .header("host", "web")
            .header("te", "trailers")
            .body(body);
        let response = client
            .send(request.expect("a request"))
            .await
            .expect("an answer");
        let mut answer = response.into_body();
        feed.send(Frame::data("one".into())).expect("open");
        assert_eq!(next(&mut answer).await.as_deref(), Some(&b"one"[..]));
        drop(feed);
        let last = answer.frame().await.expect("trailers").expect("trailers");
        assert_eq!(last.trailers_ref().expect("trailers")["x-parts"], "1");
    });
}

#[test]
fn the_endpoint_is_spoken_to_as_declared_else_as_the_client_speaks() {
    for (declared, h1, h2) in [
        (AppProtocol::Http11, Version::HTTP_11, Version::HTTP_2),
        (AppProtocol::Http2, Version::HTTP_2, Version::HTTP_2),
        (AppProtocol::Grpc, Version::HTTP_2, Version::HTTP_2),
    ] {
        local(async {
            let mesh = Mesh::start().await;
            mesh.web(declared, &["v1"]);
            app::pod(&mesh, 10, "v1").await;
            let pool = mesh.pool(CLIENT);
            let mut client = Client::h1(&mesh, &pool, WEB).await;
            let line = client.get("/a?b=c", &[]).await.headers["x-line"]
                .to_str()
                .expect("text")
                .to_owned();
            assert!(
                line.ends_with(&format!("{h1:?}")) && line.contains("/a?b=c"),
                "{declared:?}: {line}"
            );
            let mut client = Client::h2(&mesh, &pool, WEB).await;
            let line = client.get("/a?b=c", &[]).await.headers["x-line"]
                .to_str()
                .expect("text")
                .to_owned();
            assert!(line.ends_with(&format!("{h2:?}")), "{declared:?}: {line}");
        });
    }
}

#[test]
fn connections_to_endpoints_are_kept_and_say_who_the_client_is() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let seen = app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        for _ in 0..5 {
            assert_eq!(client.get("/", &[]).await.body, "v1");
        }
        let seen = seen.borrow();
        assert_eq!(seen.len(), 1, "one tunnel for five requests");
        assert_eq!(
            seen[0].target.to_string(),
            SocketAddr::new(mesh.ip(10), 8080).to_string()
        );
        let forwarded = seen[0].forwarded.as_ref().expect("the client");
        assert_eq!(forwarded.client.to_string(), CLIENT_ADDR);
        assert_eq!(seen[0].source, Some(hbone::SourceKind::Waypoint));
    });
}

#[test]
fn clients_do_not_share_connections_to_endpoints() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let seen = app::pod(&mesh, 10, "v1").await;
        for id in [CLIENT, "spiffe://cluster.local/ns/shop/sa/other"] {
            let pool = mesh.pool(id);
            let mut client = Client::h1(&mesh, &pool, WEB).await;
            assert_eq!(client.get("/", &[]).await.body, "v1");
        }
        assert_eq!(seen.borrow().len(), 2);
    });
}

#[test]
fn a_kept_connection_that_died_costs_no_request() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        // Answers one request per connection, and then closes without having said so.
        let seen = app::tunnels(&mesh, 10, V1, |mut io| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match io.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .expect("written");
            // The next request is read, never answered.
            let _ = io.read_u8().await;
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        for _ in 0..3 {
            let answer = client.get("/", &[]).await;
            assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "ok"));
        }
        assert!(seen.borrow().len() >= 3);
        // What is not safe is not repeated.
        let post = Request::post("/")
            .header("host", "web")
            .body(full("x"))
            .expect("a request");
        let answer = Answer::of(client.send(post).await.expect("an answer")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        mesh.logged(&["\"response_flags\":\"UC\"", "POST"]).await;
    });
}

#[test]
fn an_endpoint_outside_the_mesh_is_reached_plainly() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &[]);
        let ip = mesh.ip(10);
        mesh.pod(&Pod {
            name: "old",
            account: "old",
            ip,
            services: &["web"],
            meshed: false,
            healthy: true,
            bound: false,
        });
        app::plain(SocketAddr::new(ip, 8080), app::named("old")).await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(client.get("/", &[]).await.body, "old");
    });
}

#[test]
fn a_websocket_passes_through() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::http(&mesh, 10, V1, |mut request| async move {
            let upgrading = hyper::upgrade::on(&mut request);
            spawn_local(async move {
                let mut io = TokioIo::new(upgrading.await.expect("upgraded"));
                let mut word = [0; 4];
                io.read_exact(&mut word).await.expect("a word");
                io.write_all(&word).await.expect("written");
                io.shutdown().await.expect("ended");
                assert_eq!(io.read(&mut word).await.expect("the client's end"), 0);
            });
            let response = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket");
            response.body(full("")).expect("a response")
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let asks = Request::get("/chat")
            .header("host", "web")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket");
        let mut response = client
            .send(asks.body(full("")).expect("a request"))
            .await
            .expect("an answer");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.expect("upgraded"));
        io.write_all(b"ping").await.expect("written");
        let mut word = Vec::new();
        io.read_to_end(&mut word).await.expect("all");
        assert_eq!(word, b"ping");
        io.shutdown().await.expect("ended");
        mesh.logged(&["\"status\":101", "\"bytes_recv\":4", "\"bytes_sent\":4"])
            .await;
    });
}

#[test]
fn a_client_that_gives_up_ends_the_request_at_the_endpoint() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http2, &["v1"]);
        let (asked, mut was_asked) = mpsc::unbounded_channel();
        app::http(&mesh, 10, V1, move |_| {
            let (guard, is_dropped) = oneshot::channel::<()>();
            asked.send(is_dropped).expect("waited for");
            async move {
                // Dropped with the request.
                let _guard = guard;
                std::future::pending().await
            }
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h2(&mesh, &pool, WEB).await;
        let is_dropped = tokio::select! {
            _ = client.get("/", &[]) => panic!("nobody answers"),
            is_dropped = was_asked.recv() => is_dropped.expect("asked"),
        };
        drop(client);
        is_dropped.await.expect_err("dropped");
        mesh.logged(&["\"response_flags\":\"DC\""]).await;
    });
}

#[test]
fn the_log_and_the_metrics_name_both_ends() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        client.get("/page", &[]).await;
        let line = mesh
            .logged(&["\"target\":\"access\"", "\"path\":\"/page\""])
            .await;
        for part in [
            "\"src.identity\":\"spiffe://cluster.local/ns/shop/sa/client\"",
            "\"src.workload\":\"client-1\"",
            "\"dst.identity\":\"spiffe://cluster.local/ns/shop/sa/v1\"",
            "\"dst.workload\":\"v1\"",
            "\"dst.service\":\"web.shop.svc.cluster.local\"",
            "\"status\":200",
            "\"response_flags\":\"-\"",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let metrics = mesh.metrics();
        let series = metrics
            .lines()
            .find(|line| line.starts_with("istio_requests_total{"))
            .expect("a series");
        for part in [
            "reporter=\"waypoint\"",
            "source_workload=\"client\"",
            "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
            "destination_workload=\"v1\"",
            "destination_service=\"web.shop.svc.cluster.local\"",
            "response_code=\"200\"",
            "request_protocol=\"http\"",
        ] {
            assert!(series.contains(part), "{part} in {series}");
        }
        assert!(series.ends_with(" 1"), "{series}");
        assert!(metrics.contains("istio_request_duration_milliseconds_bucket"));
    });
}
