//! Who is let in and what for; who must be at an endpoint; bytes that are not HTTP.

mod support;

use std::time::Duration;

use hbone::{Error, Opened, TunnelIo};
use hyper::StatusCode;
use mesh::proto::workload::AppProtocol;
use support::app::{self, Client};
use support::{CLIENT, Mesh, Pod, Service, backend, local, rule};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WEB: &str = "10.96.0.1:80";
/// Several times the burst of lines about refusals.
const FLOOD: usize = 1_000;
const V1: &str = "spiffe://cluster.local/ns/shop/sa/v1";

/// The code and sentence of a refused tunnel.
async fn refusal(mesh: &Mesh, target: &str) -> (String, String) {
    let pool = mesh.pool(CLIENT);
    match mesh.open(&pool, target).await {
        Err(Error::Refused(refusal)) => (refusal.code.into_owned(), refusal.reason),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn only_what_is_bound_here_is_served() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let unbound = Service {
            name: "free",
            vip: "10.96.0.2",
            ports: &[(80, AppProtocol::Http11)],
            bound: false,
        };
        mesh.service(&unbound);
        let cases = [
            (
                "10.96.0.2:80",
                "not_bound_here",
                "free.shop.svc.cluster.local",
            ),
            ("10.96.0.9:80", "unknown_destination", "10.96.0.9:80"),
            ("10.96.0.1:81", "unknown_port", "no port 81"),
            (&format!("{}:8080", mesh.ip(10)), "not_bound_here", "v1"),
            ("free.shop.svc.cluster.local:80", "not_bound_here", "free"),
            ("free:80", "unknown_destination", "free:80"),
        ];
        for (target, code, part) in cases {
            let (said, reason) = refusal(&mesh, target).await;
            assert!(
                said == code && reason.contains(part),
                "{target}: {said}: {reason}"
            );
            mesh.logged(&[
                "\"target\":\"access\"",
                "spiffe://cluster.local/ns/shop/sa/client",
                code,
            ])
            .await;
        }
        // Its name will do as well as its address.
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, "web.shop.svc.cluster.local:80").await;
        assert_eq!(client.get("/", &[]).await.body, "v1");
    });
}

#[test]
fn a_pod_behind_the_waypoint_is_served_as_such() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["other"]);
        let ip = mesh.ip(20);
        mesh.pod(&Pod {
            name: "v1",
            account: "v1",
            ip,
            services: &["web"],
            meshed: true,
            healthy: true,
            bound: true,
        });
        app::pod(&mesh, 20, "v1").await;
        // Its service's routes are not for who dials the pod.
        mesh.route("r", vec![rule("/", vec![])]);
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, &format!("{ip}:8080")).await;
        assert_eq!(client.get("/", &[]).await.body, "v1");
        mesh.logged(&[
            "\"target\":\"access\"",
            "\"dst.workload\":\"v1\"",
            "\"status\":200",
        ])
        .await;
    });
}

#[test]
fn a_binding_that_the_client_heard_of_first_is_waited_for() {
    local(async {
        let mesh = Mesh::start().await;
        let pool = mesh.pool(CLIENT);
        let (opened, ()) = tokio::join!(mesh.open(&pool, WEB), async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            mesh.web(AppProtocol::Http11, &["v1"]);
        });
        opened.expect("a tunnel");
    });
}

#[test]
fn an_unbinding_that_the_client_has_not_heard_of_loses_nothing() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut before = Client::h1(&mesh, &pool, WEB).await;
        mesh.service(&Service {
            name: "web",
            vip: "10.96.0.1",
            ports: &[(80, AppProtocol::Http11)],
            bound: false,
        });
        let mut after = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(before.get("/", &[]).await.body, "v1");
        assert_eq!(after.get("/", &[]).await.body, "v1");
    });
}

#[test]
fn a_client_of_another_trust_domain_is_refused() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let pool = mesh.pool("spiffe://elsewhere/ns/shop/sa/client");
        mesh.open(&pool, WEB).await.expect_err("refused");
        mesh.logged(&["connection refused"]).await;
    });
}

#[test]
fn a_flood_of_refused_connections_is_counted_and_a_few_are_logged() {
    local(async {
        let mesh = Mesh::start().await;
        for _ in 0..FLOOD {
            let mut stranger = TcpStream::connect(mesh.waypoint_addr())
                .await
                .expect("connected");
            stranger.write_all(b"not TLS").await.expect("written");
            // Until it is closed, or reset.
            let _ = stranger.read_to_end(&mut Vec::new()).await;
        }
        let refused = |line: &String| line.contains("connection refused");
        let logged = mesh.lines().iter().filter(|line| refused(line)).count();
        // The burst, and some more for the time that it took.
        assert!((100..FLOOD / 2).contains(&logged), "{logged}");
        let all = format!("{{reason=\"tls_failed\"}} {FLOOD}");
        // The last one is counted after it was closed.
        let counted = async {
            while !mesh.metrics().contains(&all) {
                tokio::task::yield_now().await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(10), counted).await;
        assert!(counted.is_ok(), "{}", mesh.metrics());
    });
}

#[test]
fn garbage_and_strangers_change_nothing() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let mut garbage = TcpStream::connect(mesh.waypoint_addr())
            .await
            .expect("connected");
        garbage
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("written");
        let mut end = Vec::new();
        // A TLS alert at most, then the end.
        let _ = garbage.read_to_end(&mut end).await;
        mesh.logged(&["connection refused", "tls_failed"]).await;
        let pool = mesh.pool(CLIENT);
        // Not HTTP in an HTTP tunnel.
        let Opened { tunnel, .. } = mesh.open(&pool, WEB).await.expect("a tunnel");
        let mut io = tunnel.into_io();
        io.write_all(b"\x00\x01\x02 nonsense\r\n\r\n")
            .await
            .expect("written");
        let _ = io.read_to_end(&mut end).await;
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(client.get("/", &[]).await.body, "v1");
    });
}

#[test]
fn an_endpoint_with_another_identity_gets_no_request() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let seen = app::tunnels(
            &mesh,
            10,
            "spiffe://cluster.local/ns/shop/sa/impostor",
            |_| async {
                panic!("nothing may arrive here");
            },
        )
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let answer = client.get("/", &[]).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            answer.body.contains("unexpected_identity"),
            "{}",
            answer.body
        );
        assert!(seen.borrow().is_empty());
        mesh.logged(&[
            "\"target\":\"access\"",
            V1,
            "spiffe://cluster.local/ns/shop/sa/impostor",
        ])
        .await;
    });
}

// === not HTTP ===

/// Speaks first, then repeats, and ends with what it got in all.
async fn server_first(mut io: TunnelIo) {
    io.write_all(b"hello\n").await.expect("written");
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.expect("the client's end");
    io.write_all(&all).await.expect("written");
    io.shutdown().await.expect("ended");
}

async fn talk(mesh: &Mesh) {
    let pool = mesh.pool(CLIENT);
    let Opened { tunnel, .. } = mesh.open(&pool, WEB).await.expect("a tunnel");
    let mut io = tunnel.into_io();
    let mut hello = [0; 6];
    io.read_exact(&mut hello)
        .await
        .expect("the server's first words");
    assert_eq!(&hello, b"hello\n");
    io.write_all(b"and back").await.expect("written");
    // Half-closed: our direction has ended, the other goes on.
    io.shutdown().await.expect("ended");
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.expect("the end");
    assert_eq!(rest, b"and back");
}

#[test]
fn tcp_ports_and_undeclared_ones_are_never_sniffed() {
    for declared in [AppProtocol::Tcp, AppProtocol::Tls, AppProtocol::Unknown] {
        local(async {
            let mesh = Mesh::start().await;
            mesh.web(declared, &["v1"]);
            let seen = app::tunnels(&mesh, 10, V1, server_first).await;
            talk(&mesh).await;
            assert_eq!(
                seen.borrow()[0]
                    .forwarded
                    .as_ref()
                    .expect("the client")
                    .client
                    .to_string(),
                support::CLIENT_ADDR
            );
            let line = mesh
                .logged(&["\"target\":\"access\"", "\"protocol\":\"tcp\""])
                .await;
            for part in [
                "\"bytes_recv\":8",
                "\"bytes_sent\":14",
                "\"dst.workload\":\"v1\"",
                "\"response_flags\":\"-\"",
            ] {
                assert!(line.contains(part), "{part} in {line}");
            }
            let metrics = mesh.metrics();
            let closed = metrics
                .lines()
                .find(|line| line.starts_with("istio_tcp_connections_closed_total{"));
            assert!(
                closed.is_some_and(
                    |line| line.contains("reporter=\"waypoint\"") && line.ends_with(" 1")
                )
            );
        });
    }
}

#[test]
fn an_undeclared_port_with_a_route_is_http() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Unknown, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        mesh.route("r", vec![rule("/", vec![backend("web", 1)])]);
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(client.get("/", &[]).await.body, "v1");
        mesh.unroute("r");
        // The connection stays what it was.
        assert_eq!(client.get("/", &[]).await.body, "v1");
    });
}

#[test]
fn an_opaque_connection_without_an_endpoint_is_a_refused_tunnel() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Tcp, &[]);
        assert_eq!(refusal(&mesh, WEB).await.0, "no_healthy_endpoint");
        mesh.web(AppProtocol::Tcp, &["v1"]);
        app::tunnels(
            &mesh,
            10,
            "spiffe://cluster.local/ns/shop/sa/impostor",
            |_| async {},
        )
        .await;
        let (code, reason) = refusal(&mesh, WEB).await;
        assert!(
            code == "unexpected_identity" && reason.contains(V1),
            "{code}: {reason}"
        );
    });
}

#[test]
fn a_reset_of_one_side_is_a_reset_of_the_other() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Tcp, &["v1"]);
        // Dropped without an end.
        app::tunnels(&mesh, 10, V1, |mut io| async move {
            io.write_all(b"x").await.expect("written");
            io.read_u8().await.expect("a byte");
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let Opened { tunnel, .. } = mesh.open(&pool, WEB).await.expect("a tunnel");
        let mut io = tunnel.into_io();
        assert_eq!(io.read_u8().await.expect("a byte"), b'x');
        io.write_all(b"y").await.expect("written");
        let mut rest = Vec::new();
        io.read_to_end(&mut rest)
            .await
            .expect_err("never a clean end");
        mesh.logged(&["\"target\":\"access\"", "\"response_flags\":\"UC\""])
            .await;
    });
}
