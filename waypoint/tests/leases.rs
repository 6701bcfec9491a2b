//! What is open through a waypoint ends when what it stands on goes, with the reason, and everything else lives on.

mod support;

use std::future::pending;
use std::rc::Rc;

use hbone::{Opened, TunnelIo};
use hyper::{Request, Response, StatusCode};
use mesh::proto::workload::AppProtocol;
use mesh::xds::ADDRESS_TYPE;
use support::app::{self, Answer, Body, Client, full};
use support::{CLIENT, CLIENT_ADDR, Mesh, PEER, Pod, Service, local, uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const WEB: &str = "10.96.0.1:80";
const V1: &str = "spiffe://cluster.local/ns/shop/sa/v1";
const V2: &str = "spiffe://cluster.local/ns/shop/sa/v2";
const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";

fn get(path: &str) -> Request<Body> {
    let request = Request::get(path).header("host", "web");
    request.body(full("")).expect("a request")
}

/// A pod that answers `/` and never anything else; says when it was asked that.
async fn half_silent(mesh: &Mesh) -> Rc<Notify> {
    let asked = Rc::new(Notify::new());
    let told = Rc::clone(&asked);
    app::http(mesh, 10, V1, move |request: Request<_>| {
        let told = Rc::clone(&told);
        async move {
            if request.uri().path() != "/" {
                told.notify_one();
                pending::<()>().await;
            }
            Response::new(full("v1"))
        }
    })
    .await;
    asked
}

/// From now on another pod has the address that all clients of these tests connect from.
fn replace_the_client(mesh: &Mesh) {
    mesh.client(&[CLIENT_ADDR
        .parse::<std::net::SocketAddr>()
        .expect("one")
        .ip()]);
    mesh.pod(&Pod {
        name: "usurper",
        account: "usurper",
        ip: PEER,
        services: &[],
        meshed: true,
        healthy: true,
        bound: false,
    });
}

/// Repeats what it reads.
async fn echo(mut io: TunnelIo) {
    let mut bytes = [0; 64];
    while let Ok(read @ 1..) = io.read(&mut bytes).await {
        if io.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn passes(io: &mut TunnelIo) {
    io.write_all(b"hello").await.expect("open");
    let mut got = [0; 5];
    io.read_exact(&mut got).await.expect("open");
    assert_eq!(&got, b"hello");
}

async fn is_reset(io: &mut TunnelIo) {
    let error = io.read(&mut [0]).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

async fn tunnel(mesh: &Mesh, pool: &hbone::Pool<hbone::TcpDial>, target: &str) -> TunnelIo {
    let Opened { tunnel, .. } = mesh.open(pool, target).await.expect("a tunnel");
    tunnel.into_io()
}

#[test]
fn a_client_whose_address_is_anothers_is_cut_off_with_its_requests_and_others_are_not() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let asked = half_silent(&mesh).await;
        let (pool, strangers) = (mesh.pool(CLIENT), mesh.pool(OTHER));
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let mut other = Client::h1(&mesh, &strangers, WEB).await;
        assert_eq!(other.get("/", &[]).await.body, "v1");
        let (answer, ()) = tokio::join!(client.send(get("/silent")), async {
            asked.notified().await;
            replace_the_client(&mesh);
        });
        answer.map(drop).expect_err("it is cut off");
        let line = mesh.logged(&["\"/silent\"", "\"DENY\""]).await;
        assert!(line.contains("peer_replaced"), "{line}");
        // Nobody has ever known who the other is: nothing of it can have gone.
        assert_eq!(other.get("/", &[]).await.body, "v1");
    });
}

/// What a waypoint is told of clients is bounded: it may forget one whose connection is open.
#[test]
fn a_client_that_is_only_not_known_any_more_is_not_cut_off() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(client.get("/", &[]).await.body, "v1");
        mesh.forget(ADDRESS_TYPE, &uid("client-1"));
        assert_eq!(client.get("/", &[]).await.body, "v1");
        // It is still known who it was.
        replace_the_client(&mesh);
        let answer = client.send(get("/")).await;
        answer.map(drop).expect_err("it is cut off");
    });
}

#[test]
fn a_client_whose_certificate_is_revoked_is_cut_off_with_its_requests_and_others_are_not() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let asked = half_silent(&mesh).await;
        let limits = hbone::PoolLimits::default;
        let pool =
            |serial| hbone::Pool::new(mesh.numbered(CLIENT, serial), hbone::TcpDial, limits());
        let (revoked, good) = (pool(7), pool(8));
        let mut client = Client::h1(&mesh, &revoked, WEB).await;
        let mut other = Client::h1(&mesh, &good, WEB).await;
        let (answer, ()) = tokio::join!(client.send(get("/silent")), async {
            asked.notified().await;
            mesh.revoke(7);
        });
        answer.map(drop).expect_err("it is cut off");
        let line = mesh.logged(&["\"/silent\"", "\"DENY\""]).await;
        assert!(line.contains("peer_revoked"), "{line}");
        assert_eq!(other.get("/", &[]).await.body, "v1");
        let refused = mesh.open(&revoked, WEB).await.map(drop);
        refused.expect_err("it is not let in again");
        mesh.logged(&["connection refused", "peer_revoked"]).await;
    });
}

#[test]
fn a_tunnel_to_an_endpoint_that_is_gone_or_another_ends_and_others_do_not() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Tcp, &["v1"]);
        app::tunnels(&mesh, 10, V1, echo).await;
        app::tunnels(&mesh, 11, V2, echo).await;
        let pool = mesh.pool(CLIENT);
        let mut first = tunnel(&mesh, &pool, WEB).await;
        passes(&mut first).await;
        // The next is the other's.
        mesh.web_pod(11, "v2", "v2");
        mesh.pod(&Pod {
            name: "v1",
            account: "v1",
            ip: mesh.ip(10),
            services: &["web"],
            meshed: true,
            healthy: false,
            bound: false,
        });
        let mut second = tunnel(&mesh, &pool, WEB).await;
        passes(&mut second).await;
        // It may receive nothing new, and is who it was.
        passes(&mut first).await;
        mesh.forget(ADDRESS_TYPE, &uid("v1"));
        is_reset(&mut first).await;
        mesh.logged(&["\"tcp\"", "endpoint_gone"]).await;
        passes(&mut second).await;
        mesh.web_pod(11, "v2", "somebody-else");
        is_reset(&mut second).await;
        mesh.logged(&["\"tcp\"", "endpoint_replaced"]).await;
    });
}

/// What a waypoint does not need any more it is told no more of: that says nothing of who is there.
#[test]
fn an_endpoint_that_only_leaves_what_is_told_is_not_gone() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Tcp, &["v1"]);
        app::tunnels(&mesh, 10, V1, echo).await;
        let pool = mesh.pool(CLIENT);
        let mut left_its_service = tunnel(&mesh, &pool, WEB).await;
        passes(&mut left_its_service).await;
        let pod = |services: &'static [&'static str]| Pod {
            name: "v1",
            account: "v1",
            ip: mesh.ip(10),
            services,
            meshed: true,
            healthy: true,
            bound: false,
        };
        mesh.pod(&pod(&[]));
        mesh.forget(ADDRESS_TYPE, &uid("v1"));
        passes(&mut left_its_service).await;
        mesh.pod(&pod(&["web"]));
        let mut unbound = tunnel(&mesh, &pool, WEB).await;
        passes(&mut unbound).await;
        mesh.service(&Service {
            name: "web",
            vip: "10.96.0.1",
            ports: &[(80, AppProtocol::Tcp)],
            bound: false,
        });
        mesh.forget(ADDRESS_TYPE, &uid("v1"));
        passes(&mut unbound).await;
        // Who is told to be another is another all the same.
        mesh.web_pod(10, "v1", "somebody-else");
        is_reset(&mut unbound).await;
        is_reset(&mut left_its_service).await;
    });
}

#[test]
fn a_request_to_an_endpoint_that_is_gone_fails() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let asked = half_silent(&mesh).await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let (answer, ()) = tokio::join!(client.send(get("/silent")), async {
            asked.notified().await;
            mesh.forget(ADDRESS_TYPE, &uid("v1"));
        });
        let answer = Answer::of(answer.expect("an answer")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        mesh.logged(&["upstream connection ended", "endpoint_gone"])
            .await;
    });
}

#[test]
fn a_connection_kept_to_an_endpoint_that_was_gone_is_not_used_again() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
        local(async {
            let mesh = Mesh::start().await;
            mesh.web(protocol, &["v1"]);
            let seen = app::pod(&mesh, 10, "v1").await;
            let pool = mesh.pool(CLIENT);
            let mut client = Client::h1(&mesh, &pool, WEB).await;
            for _ in 0..2 {
                assert_eq!(client.get("/", &[]).await.body, "v1");
            }
            assert_eq!(seen.borrow().len(), 1, "it is kept");
            mesh.forget(ADDRESS_TYPE, &uid("v1"));
            assert_eq!(
                client.get("/", &[]).await.status,
                StatusCode::SERVICE_UNAVAILABLE
            );
            // The same name, address and account, and who knows what process.
            mesh.web_pod(10, "v1", "v1");
            assert_eq!(client.get("/", &[]).await.body, "v1");
            assert_eq!(seen.borrow().len(), 2, "{protocol:?}");
        });
    }
}
