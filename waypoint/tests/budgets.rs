//! What one client takes is not missing for another: connections, tunnels, heads, requests; and strangers take from strangers.

mod support;

use std::future::pending;
use std::time::Duration;

use hbone::{Error, Opened, Pool, TcpDial, TunnelIo};
use hyper::StatusCode;
use mesh::proto::workload::AppProtocol;
use support::app::{self, Client};
use support::{CLIENT, Mesh, local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use waypoint::limits::Limits;

const WEB: &str = "10.96.0.1:80";
const V1: &str = "spiffe://cluster.local/ns/shop/sa/v1";
const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";
/// Between two strangers, so that the lines about them stay below their bound.
const NEWCOMERS: Duration = Duration::from_millis(50);

/// A service with a pod, behind a waypoint with room for little.
async fn mesh(limits: Limits) -> Mesh {
    let mesh = Mesh::start_within(limits).await;
    mesh.web(AppProtocol::Http11, &["v1"]);
    app::pod(&mesh, 10, "v1").await;
    mesh
}

/// Whether a client that comes now is served.
async fn is_served(mesh: &Mesh, id: &str) {
    let pool = mesh.pool(id);
    let mut client = Client::h1(mesh, &pool, WEB).await;
    assert_eq!(client.get("/", &[]).await.body, "v1");
}

/// The code of a refusal.
async fn refused(mesh: &Mesh, pool: &Pool<TcpDial>) -> String {
    match mesh.open(pool, WEB).await {
        Err(Error::Refused(refusal)) => {
            assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(refusal.reason.contains(CLIENT), "{}", refusal.reason);
            refusal.code.into_owned()
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// A tunnel in which a request's head has begun.
async fn half_a_head(mesh: &Mesh, pool: &Pool<TcpDial>) -> TunnelIo {
    let Opened { tunnel, .. } = mesh.open(pool, WEB).await.expect("a tunnel");
    let mut io = tunnel.into_io();
    let half = b"GET / HTTP/1.1\r\nhost: web\r\n";
    io.write_all(half).await.expect("written");
    io.flush().await.expect("sent");
    io
}

/// Waits for the end of a tunnel, and reads why it comes.
async fn ends(io: &mut TunnelIo, status: &str) {
    let mut rest = Vec::new();
    let _ = io.read_to_end(&mut rest).await;
    let said = String::from_utf8(rest).expect("text");
    assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    assert!(said.ends_with('\n'), "{said}");
}

/// The same in HTTP/2, with a frame of a header block that says that more come.
async fn half_a_block(mesh: &Mesh, pool: &Pool<TcpDial>) -> TunnelIo {
    let Opened { tunnel, .. } = mesh.open(pool, WEB).await.expect("a tunnel");
    let mut io = tunnel.into_io();
    let (preface, settings) = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        [0, 0, 0, 4, 0, 0, 0, 0, 0],
    );
    // One byte of it, `:method: GET`.
    let block = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82];
    let all = [&preface[..], &settings, &block].concat();
    io.write_all(&all).await.expect("written");
    io.flush().await.expect("sent");
    io
}

#[test]
fn a_client_with_its_share_of_tunnels_leaves_room_for_another() {
    local(async {
        let mesh = mesh(Limits {
            tunnels: 4,
            ..Limits::default()
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(mesh.open(&pool, WEB).await.expect("a tunnel"));
        }
        assert_eq!(refused(&mesh, &pool).await, "too_many_tunnels");
        mesh.logged(&["\"target\":\"access\"", CLIENT, "too_many_tunnels"])
            .await;
        let metrics = mesh.metrics();
        assert!(
            metrics.contains("reason=\"too_many_tunnels\"} 1"),
            "{metrics}"
        );
        is_served(&mesh, OTHER).await;
    });
}

#[test]
fn a_client_with_its_share_of_connections_leaves_room_for_another() {
    local(async {
        let mesh = mesh(Limits {
            connections: 4,
            ..Limits::default()
        })
        .await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let pool = mesh.pool(CLIENT);
            let opened = mesh.open(&pool, WEB).await.expect("a tunnel");
            held.push((pool, opened));
        }
        let pool = mesh.pool(CLIENT);
        assert_eq!(refused(&mesh, &pool).await, "too_many_connections");
        mesh.logged(&["connection refused", "too_many_connections"])
            .await;
        is_served(&mesh, OTHER).await;
    });
}

#[test]
fn a_client_with_its_share_of_requests_leaves_room_for_another() {
    local(async {
        let mesh = Mesh::start_within(Limits {
            requests: 2,
            ..Limits::default()
        })
        .await;
        mesh.web(AppProtocol::Http2, &["v1"]);
        let (asked, mut was_asked) = mpsc::unbounded_channel();
        app::http(&mesh, 10, V1, move |request| {
            let asked = asked.clone();
            async move {
                if request.uri().path() == "/slow" {
                    asked.send(()).expect("waited for");
                    pending::<()>().await;
                }
                app::named("v1")(request).await
            }
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut slow = Client::h2(&mesh, &pool, WEB).await;
        let mut next = Client::h1(&mesh, &pool, WEB).await;
        tokio::select! {
            _ = slow.get("/slow", &[]) => panic!("nobody answers"),
            () = async {
                was_asked.recv().await.expect("asked");
                let answer = next.get("/", &[]).await;
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
                assert!(answer.body.contains("no room for more requests"), "{}", answer.body);
                is_served(&mesh, OTHER).await;
            } => {}
        }
        mesh.logged(&["\"status\":503", "\"response_flags\":\"OM\""])
            .await;
        // What has ended counts no more.
        drop(slow);
        mesh.logged(&["/slow", "\"response_flags\":\"DC\""]).await;
        assert_eq!(next.get("/", &[]).await.body, "v1");
    });
}

#[test]
fn a_client_with_its_share_of_half_heads_leaves_room_for_another() {
    local(async {
        let mesh = mesh(Limits {
            heads: 2,
            ..Limits::default()
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut first = half_a_head(&mesh, &pool).await;
        // Both are known to be there once one of them is refused: the room is for one of a client.
        let mut second = half_a_head(&mesh, &pool).await;
        tokio::select! {
            () = ends(&mut first, "503") => {}
            () = ends(&mut second, "503") => {}
        }
        mesh.logged(&["\"target\":\"access\"", CLIENT, "too_many_heads"])
            .await;
        // One that is whole at once takes no room.
        is_served(&mesh, CLIENT).await;
        let other = mesh.pool(OTHER);
        let mut io = half_a_head(&mesh, &other).await;
        io.write_all(b"\r\n").await.expect("written");
        let mut answer = [0; 12];
        io.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
    });
}

#[test]
fn a_head_that_begins_must_end_and_a_connection_that_rests_need_not() {
    local(async {
        let mesh = mesh(Limits {
            // Long enough for a head that ends to get there on a busy machine.
            head_timeout: Duration::from_secs(2),
            ..Limits::default()
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut resting = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(resting.get("/", &[]).await.body, "v1");
        // Connected, and nothing asked yet.
        let mut silent = Client::h1(&mesh, &pool, WEB).await;
        let mut silent_too = Client::h2(&mesh, &pool, WEB).await;
        // The second begins when the first has been ended: so long have the others rested.
        for _ in 0..2 {
            ends(&mut half_a_head(&mesh, &pool).await, "408").await;
        }
        mesh.logged(&["\"target\":\"access\"", "head_timed_out", "\"status\":408"])
            .await;
        for client in [&mut resting, &mut silent, &mut silent_too] {
            assert_eq!(client.get("/", &[]).await.body, "v1");
        }
        // Nor has a later head more time than the first.
        let mut io = half_a_head(&mesh, &pool).await;
        io.write_all(b"\r\n").await.expect("written");
        let mut all = Vec::new();
        while !all.ends_with(b"v1") {
            all.push(io.read_u8().await.expect("an answer"));
        }
        io.write_all(b"GET / HT").await.expect("written");
        ends(&mut io, "408").await;
    });
}

#[test]
fn a_header_block_that_begins_must_end() {
    local(async {
        let mesh = mesh(Limits {
            head_timeout: Duration::from_millis(300),
            ..Limits::default()
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut resting = Client::h2(&mesh, &pool, WEB).await;
        assert_eq!(resting.get("/", &[]).await.body, "v1");
        for _ in 0..2 {
            let mut said = Vec::new();
            let mut io = half_a_block(&mesh, &pool).await;
            let _ = io.read_to_end(&mut said).await;
            assert!(!said.starts_with(b"HTTP/1.1"));
        }
        mesh.logged(&["\"target\":\"access\"", "head_timed_out"])
            .await;
        assert_eq!(resting.get("/", &[]).await.body, "v1");
    });
}

#[test]
fn strangers_push_each_other_out_and_nobody_else() {
    local(async {
        let mesh = mesh(Limits {
            handshakes: 2,
            ..Limits::default()
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut proved = Client::h1(&mesh, &pool, WEB).await;
        let connect = async || {
            let stranger = TcpStream::connect(mesh.waypoint_addr()).await;
            stranger.expect("connected")
        };
        let (mut oldest, _second) = (connect().await, connect().await);
        // Newcomers are turned away until the oldest has had its chance; then that one hears of it. So many that each has its
        // line: beyond a bound lines are only counted.
        let mut pace = tokio::time::interval(NEWCOMERS);
        loop {
            pace.tick().await;
            let mut newcomer = connect().await;
            let (mut end, mut turned_away) = ([0], [0]);
            tokio::select! {
                _ = oldest.read(&mut end) => break,
                _ = newcomer.read(&mut turned_away) => {}
            }
        }
        mesh.logged(&["connection refused", "handshake_pushed_out"])
            .await;
        mesh.logged(&["connection refused", "handshakes_full"])
            .await;
        // Whoever proves himself meanwhile is let in.
        is_served(&mesh, OTHER).await;
        assert_eq!(proved.get("/", &[]).await.body, "v1");
    });
}
