//! What a request's head may say, and what of it reaches the endpoint: hosts, the client, other protocols.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use hbone::Opened;
use hyper::{Method, Request, StatusCode};
use mesh::proto::workload::AppProtocol;
use support::app::{self, Answer, Client, full};
use support::{CLIENT, Mesh, Pod, Service, local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WEB: &str = "10.96.0.1:80";
const V1: &str = "spiffe://cluster.local/ns/shop/sa/v1";

#[test]
fn what_is_between_neighbours_is_not_passed_on() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::http(&mesh, 10, V1, |request| async {
            let mut response = app::named("v1")(request).await;
            response
                .headers_mut()
                .insert("connection", "x-secret".parse().expect("a value"));
            response
                .headers_mut()
                .insert("x-secret", "1".parse().expect("a value"));
            response
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let answer = client
            .get(
                "/",
                &[
                    ("connection", "authorization, x-real-ip, keep-alive"),
                    ("keep-alive", "timeout=5"),
                    // As if an ingress had added them and passed `connection` on.
                    ("authorization", "Bearer t"),
                    ("x-real-ip", "192.0.2.1"),
                ],
            )
            .await;
        assert_eq!(answer.header("got-keep-alive"), None);
        assert_eq!(answer.header("got-connection"), None);
        assert_eq!(answer.header("got-authorization"), Some("Bearer t"));
        assert_eq!(answer.header("got-x-real-ip"), Some("192.0.2.1"));
        assert_eq!(answer.header("got-host"), Some("web"));
        assert_eq!(answer.header("x-secret"), None);
    });
}

#[test]
fn the_endpoint_learns_who_the_client_is_from_the_waypoint() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let said = [
            (
                "x-forwarded-client-cert",
                "URI=spiffe://cluster.local/ns/x/sa/y",
            ),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "example.org"),
            ("x-forwarded-proto", "https"),
        ];
        let answer = client.get("/", &said).await;
        assert_eq!(answer.header("got-x-forwarded-client-cert"), None);
        assert_eq!(
            answer.header("got-x-forwarded-for"),
            Some("192.0.2.1, 10.1.0.7")
        );
        assert_eq!(answer.header("got-x-forwarded-host"), Some("example.org"));
        assert_eq!(answer.header("got-x-forwarded-proto"), Some("https"));
        let answer = client.get("/", &[]).await;
        assert_eq!(answer.header("got-x-forwarded-for"), Some("10.1.0.7"));
    });
}

#[test]
fn other_protocols_are_not_changed_to() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        // Would change to anything that it is asked for.
        app::http(&mesh, 10, V1, |request| async {
            let mut response = app::named("v1")(request).await;
            if let Some(protocol) = response.headers_mut().remove("got-upgrade") {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("upgrade", protocol);
            }
            response
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        for asked in ["websocket, h2c", "h2c,", "h2c, websocket", "foo", "TLS/1.2"] {
            let headers = [("connection", "upgrade"), ("upgrade", asked)];
            let answer = client.get("/", &headers).await;
            assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "v1"));
        }
        // Granted something else than was asked for.
        let pod = mesh.ip(11);
        mesh.service(&Service {
            name: "odd",
            vip: "10.96.0.3",
            ports: &[(80, AppProtocol::Http11)],
            bound: true,
        });
        mesh.pod(&Pod {
            name: "odd",
            account: "odd",
            ip: pod,
            services: &["odd"],
            meshed: true,
            healthy: true,
            bound: false,
        });
        let odd = "spiffe://cluster.local/ns/shop/sa/odd";
        app::tunnels(&mesh, 11, odd, |mut io| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.expect("a head"));
            }
            let granted = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n";
            io.write_all(granted).await.expect("written");
            let _ = io.read_u8().await;
        })
        .await;
        let mut client = Client::h1(&mesh, &pool, "10.96.0.3:80").await;
        let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
        let answer = client.get("/", &headers).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    });
}

#[test]
fn bad_heads_and_proxies_requests_are_refused() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let cases: [(&[&str], &str); 4] = [
            (&["a", "b"], "more than one host"),
            (&[], "no host"),
            (&["a/b"], "host is not valid"),
            (&["me@web"], "host is not valid"),
        ];
        for (hosts, reason) in cases {
            let mut request = Request::get("/");
            for host in hosts {
                request = request.header("host", *host);
            }
            let request = request.body(full("")).expect("a request");
            let answer = Answer::of(client.send(request).await.expect("an answer")).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{hosts:?}");
            assert!(answer.body.contains(reason), "{hosts:?}: {}", answer.body);
        }
        mesh.logged(&["\"status\":400", "\"response_flags\":\"DPE\"", "no host"])
            .await;
        let proxied = Request::builder()
            .method(Method::CONNECT)
            .uri("example.org:443")
            .body(full(""))
            .expect("a request");
        let answer = client.send(proxied).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED);
    });
}

/// A request that says twice where it ends, and one behind it: the waypoint and the endpoint must agree.
#[test]
fn where_a_request_ends_is_no_matter_of_opinion() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let heads = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&heads);
        app::http(&mesh, 10, V1, move |request| {
            let (path, headers) = (request.uri().path(), request.headers());
            let lengths = ["content-length", "transfer-encoding"].map(|name| headers.get(name));
            seen.borrow_mut().push(format!("{path} {lengths:?}"));
            app::named("v1")(request)
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let cases = [
            // RFC 9112 §6.3: the encoding counts, the length goes, and so does the connection.
            ("content-length: 5\r\ntransfer-encoding: chunked", true),
            ("transfer-encoding: chunked\r\ncontent-length: 5", true),
            (
                "transfer-encoding: chunked\r\ntransfer-encoding: identity",
                false,
            ),
            ("transfer-encoding: chunked, x", false),
            ("transfer-encoding: x", false),
            ("transfer-encoding : chunked", false),
            ("transfer-encoding:\r\n chunked", false),
            ("x: y\r\n folded: z", false),
            ("content-length: 5\r\ncontent-length: 6", false),
            ("content-length: +5", false),
            ("content-length: -1", false),
            ("x: a\0b", false),
            ("x: a\rb", false),
        ];
        for (case, passes) in cases {
            let Opened { tunnel, .. } = mesh.open(&pool, WEB).await.expect("a tunnel");
            let mut io = tunnel.into_io();
            let all = format!(
                "POST /first HTTP/1.1\r\nhost: web\r\n{case}\r\n\r\n0\r\n\r\nGET /second HTTP/1.1\r\nhost: web\r\n\r\n"
            );
            io.write_all(all.as_bytes()).await.expect("written");
            let mut said = Vec::new();
            // To the end, which comes without ours.
            let _ = io.read_to_end(&mut said).await;
            let expected: (&[u8], &[_]) = match passes {
                true => (
                    b"HTTP/1.1 200 ",
                    &["/first [None, Some(\"chunked\")]".to_owned()],
                ),
                false => (b"HTTP/1.1 400 ", &[]),
            };
            assert!(said.starts_with(expected.0), "{case:?}");
            assert_eq!(heads.take(), expected.1, "{case:?}");
        }
    });
}

#[test]
fn the_authority_of_http_2_is_the_host() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h2(&mesh, &pool, WEB).await;
        let answer = client.get("/", &[("host", "other")]).await;
        assert_eq!(answer.header("x-line"), Some("GET http://web/ HTTP/2.0"));
        assert_eq!(answer.header("got-host"), None);
        // Nor are there two.
        let request = Request::get("http://web/")
            .header("host", "web")
            .header("host", "other");
        let request = request.body(full("")).expect("a request");
        let answer = Answer::of(client.send(request).await.expect("an answer")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let request = Request::get("http://me@web/").body(full(""));
        let answer = client.send(request.expect("a request")).await;
        let refused = answer.map_or(true, |answer| answer.status() == StatusCode::BAD_REQUEST);
        assert!(refused);
    });
}
