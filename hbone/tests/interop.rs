//! Both roles against the h2 crate, with its defaults and at the ends of what it can be set to.

mod support;

use std::future::poll_fn;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use hbone::{Error, Opened};
use http::{Method, StatusCode};
use support::scene::{Scene, Setup, attacked};
use support::wire::PATIENCE;
use support::{local, raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local, yield_now};
use tokio::time::timeout;

/// Streams of one connection at a time.
const STREAMS: usize = 12;

/// How the other end is set.
#[derive(Clone, Copy)]
struct Extreme {
    what: &'static str,
    window: u32,
    /// What the window becomes once the streams are under way.
    later: Option<u32>,
    connection_window: u32,
    frame: u32,
    table: u32,
    /// How many bytes each stream moves each way.
    bytes: usize,
}

const DEFAULT: Extreme = Extreme {
    what: "defaults",
    window: 65_535,
    later: None,
    connection_window: 65_535,
    frame: 16_384,
    table: 4096,
    bytes: 300_000,
};

const MOST: u32 = (1 << 31) - 1;

const EXTREMES: [Extreme; 7] = [
    DEFAULT,
    Extreme {
        what: "a window of nothing that grows",
        window: 0,
        later: Some(100_000),
        ..DEFAULT
    },
    Extreme {
        what: "a window of one byte",
        window: 1,
        bytes: 300,
        ..DEFAULT
    },
    Extreme {
        what: "the largest windows",
        window: MOST,
        connection_window: MOST,
        ..DEFAULT
    },
    Extreme {
        what: "a window that becomes the largest",
        window: 1000,
        later: Some(MOST),
        ..DEFAULT
    },
    Extreme {
        what: "the largest frames",
        window: 1 << 20,
        connection_window: 1 << 24,
        frame: (1 << 24) - 1,
        ..DEFAULT
    },
    Extreme {
        what: "no table",
        table: 0,
        ..DEFAULT
    },
];

fn random(n: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..))
        .take(n)
        .collect()
}

// === our server, their client ===

/// Their client, and a way to change its window.
async fn client(scene: &Scene, set: Extreme) -> (SendRequest<Bytes>, mpsc::Sender<u32>) {
    let tls = raw::client_tls(scene.tcp().await, &scene.lab.ca, b"h2").await;
    let (sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(set.window)
        .initial_connection_window_size(set.connection_window)
        .max_frame_size(set.frame)
        .header_table_size(set.table)
        .handshake(tls)
        .await
        .unwrap();
    let (change, mut changes) = mpsc::channel(1);
    spawn_local(async move {
        let mut wanted = None;
        loop {
            // Not while the last settings wait for their acknowledgement.
            wanted = wanted.filter(|size| connection.set_initial_window_size(*size).is_err());
            tokio::select! {
                // Its end is seen by its streams.
                _ = &mut connection => return,
                Some(size) = changes.recv() => wanted = Some(size),
                () = yield_now(), if wanted.is_some() => {}
            }
        }
    });
    (sender, change)
}

async fn ask(sender: &SendRequest<Bytes>) -> (SendStream<Bytes>, RecvStream) {
    let head = http::Request::builder()
        .method(Method::CONNECT)
        .uri("10.1.2.3:80")
        .header("baggage", "k8s.namespace.name=shop")
        .header("x-long", "much".repeat(100));
    let mut sender = sender.clone().ready().await.unwrap();
    let (answer, send) = sender.send_request(head.body(()).unwrap(), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    (send, answer.into_body())
}

async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        let part = bytes.split_to(room.min(bytes.len()));
        send.send_data(part, false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

async fn receive_all(recv: &mut RecvStream) -> Vec<u8> {
    let mut got = Vec::new();
    while let Some(part) = recv.data().await {
        let part = part.unwrap();
        recv.flow_control().release_capacity(part.len()).unwrap();
        got.extend(part);
    }
    got
}

async fn echoes(sender: &SendRequest<Bytes>, bytes: usize) {
    let (mut send, mut recv) = ask(sender).await;
    let sent = random(bytes);
    let (got, ()) = tokio::join!(
        receive_all(&mut recv),
        send_all(&mut send, sent.clone().into())
    );
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );
}

#[test]
fn their_client_gets_all_bytes() {
    for set in EXTREMES {
        println!("{}", set.what);
        attacked(Setup::default(), async |scene| {
            let (sender, change) = client(scene, set).await;
            let all = join_all((0..STREAMS).map(|_| echoes(&sender, set.bytes)));
            let later = async {
                if let Some(size) = set.later {
                    change.send(size).await.unwrap();
                }
            };
            timeout(2 * PATIENCE, async { tokio::join!(all, later) })
                .await
                .unwrap_or_else(|_| panic!("{}: it hangs", set.what));
        });
    }
}

#[test]
fn their_client_resets() {
    attacked(Setup::held(), async |scene| {
        let (sender, _change) = client(scene, DEFAULT).await;
        let opened = spawn_local(async move { ask(&sender).await });
        let incoming = scene.incoming().await;
        let mut io = incoming
            .accept(hbone::Response::default())
            .unwrap()
            .into_io();
        let (mut send, _recv) = opened.await.unwrap();
        send.send_reset(Reason::CANCEL);
        let error = io.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn their_client_is_reset() {
    attacked(Setup::held(), async |scene| {
        let (sender, _change) = client(scene, DEFAULT).await;
        let opened = spawn_local(async move { (ask(&sender).await, sender) });
        let tunnel = scene
            .incoming()
            .await
            .accept(hbone::Response::default())
            .unwrap();
        let ((_send, mut recv), sender) = opened.await.unwrap();
        drop(tunnel);
        let error = recv.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        // Others go on.
        let opened = spawn_local(async move { ask(&sender).await });
        let next = scene.incoming().await;
        let _tunnel = next.accept(hbone::Response::default()).unwrap();
        drop(opened.await.unwrap());
    });
}

#[test]
fn their_client_is_drained() {
    attacked(Setup::default(), async |scene| {
        let (sender, _change) = client(scene, DEFAULT).await;
        let (mut send, mut recv) = ask(&sender).await;
        scene.lab.served.drain.notify_waiters();
        // Its running stream finishes; after that the connection is over.
        let sent = random(100_000);
        let (got, ()) = tokio::join!(
            receive_all(&mut recv),
            send_all(&mut send, sent.clone().into())
        );
        assert!(got == sent);
        drop((send, recv));
        let over = async {
            while let Ok(ready) = sender.clone().ready().await {
                drop(ready);
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, over).await.expect("it is not over");
    });
}

#[test]
fn their_client_pings() {
    attacked(Setup::default(), async |scene| {
        let tls = raw::client_tls(scene.tcp().await, &scene.lab.ca, b"h2").await;
        let (_sender, mut connection) = h2::client::handshake::<_>(tls).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        let driver = spawn_local(async move { drop(connection.await) });
        for _ in 0..5 {
            pings.ping(h2::Ping::opaque()).await.unwrap();
        }
        driver.abort();
    });
}

// === our client, their server ===

/// What their server is told to do.
enum Order {
    Window(u32),
    /// GOAWAY; running streams finish.
    Leave,
}

/// Their server for the pool's next connection, which echoes and says when it is over.
async fn server(
    scene: &Scene,
    set: Extreme,
    max_streams: u32,
) -> (mpsc::Sender<Order>, oneshot::Receiver<()>) {
    let tls = raw::server_tls(scene.caught().await, &scene.lab.ca).await;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(set.window)
        .initial_connection_window_size(set.connection_window)
        .max_frame_size(set.frame)
        .header_table_size(set.table)
        .max_concurrent_streams(max_streams)
        .handshake::<_, Bytes>(tls)
        .await
        .unwrap();
    let (order, mut orders) = mpsc::channel(1);
    let (tell, over) = oneshot::channel();
    spawn_local(async move {
        let mut wanted = None;
        loop {
            wanted = wanted.filter(|size| connection.set_initial_window_size(*size).is_err());
            let next = tokio::select! {
                next = connection.accept() => next,
                Some(order) = orders.recv() => {
                    match order {
                        Order::Window(size) => wanted = Some(size),
                        Order::Leave => connection.graceful_shutdown(),
                    }
                    continue;
                }
                () = yield_now(), if wanted.is_some() => continue,
            };
            let Some(Ok((request, mut respond))) = next else {
                let _ = tell.send(());
                return;
            };
            spawn_local(async move {
                let answer = http::Response::builder()
                    .header("baggage", "k8s.namespace.name=shop")
                    .body(())
                    .unwrap();
                let mut send = respond.send_response(answer, false).unwrap();
                let mut recv = request.into_body();
                echo(&mut recv, &mut send).await;
            });
        }
    });
    (order, over)
}

async fn echo(recv: &mut RecvStream, send: &mut SendStream<Bytes>) {
    while let Some(Ok(mut part)) = recv.data().await {
        recv.flow_control().release_capacity(part.len()).unwrap();
        while !part.is_empty() {
            send.reserve_capacity(part.len());
            let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else {
                return;
            };
            let piece = part.split_to(room.min(part.len()));
            send.send_data(piece, false).unwrap();
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

async fn through(wanted: JoinHandle<Result<Opened, Error>>, bytes: usize) {
    let opened = wanted.await.unwrap().unwrap();
    assert_eq!(opened.response.baggage.namespace.as_deref(), Some("shop"));
    let (mut read, mut write) = split(opened.tunnel.into_io());
    let (sent, mut got) = (random(bytes), Vec::new());
    let push = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read.read_to_end(&mut got), push);
    read.unwrap();
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );
}

#[test]
fn their_server_gets_all_bytes() {
    for set in EXTREMES {
        println!("{}", set.what);
        attacked(Setup::default(), async |scene| {
            let wanted: Vec<_> = (0..STREAMS).map(|_| scene.wants()).collect();
            let (order, _over) = server(scene, set, 200).await;
            let all = join_all(wanted.into_iter().map(|wanted| through(wanted, set.bytes)));
            let later = async {
                if let Some(size) = set.later {
                    drop(order.send(Order::Window(size)).await);
                }
            };
            timeout(2 * PATIENCE, async { tokio::join!(all, later) })
                .await
                .unwrap_or_else(|_| panic!("{}: it hangs", set.what));
            scene.lab.pool.evict("uid-1");
        });
    }
}

#[test]
fn their_server_takes_one_stream_at_a_time() {
    attacked(Setup::default(), async |scene| {
        // One of them is refused on the first connection, and asks again on another.
        let wanted = [scene.wants(), scene.wants()];
        let all = join_all(wanted.map(|wanted| through(wanted, 100_000)));
        let serve = async {
            let mut held = Vec::new();
            loop {
                held.push(server(scene, DEFAULT, 1).await);
            }
        };
        tokio::select! {
            all = timeout(2 * PATIENCE, all) => drop(all.expect("it hangs")),
            () = serve => {}
        }
        scene.lab.pool.evict("uid-1");
    });
}

#[test]
fn their_server_leaves() {
    attacked(Setup::default(), async |scene| {
        let wanted = scene.wants();
        let (order, over) = server(scene, DEFAULT, 200).await;
        let opened = wanted.await.unwrap().unwrap();
        assert!(order.send(Order::Leave).await.is_ok());
        // The running tunnel finishes, and the connection with it.
        let next = spawn_local(async move { Ok(opened) });
        through(next, 100_000).await;
        timeout(PATIENCE, over).await.expect("it stays").unwrap();
        // The next tunnel has a connection of its own.
        let wanted = scene.wants();
        let (_order, _over) = server(scene, DEFAULT, 200).await;
        through(wanted, 1000).await;
        scene.lab.pool.evict("uid-1");
    });
}

#[test]
fn their_server_resets_and_is_reset() {
    attacked(Setup::default(), async |scene| {
        let wanted = scene.wants();
        let tls = raw::server_tls(scene.caught().await, &scene.lab.ca).await;
        let mut server = h2::server::handshake(tls).await.unwrap();
        let (tell, mut streams) = mpsc::unbounded_channel();
        let driver = spawn_local(async move {
            while let Some(Ok((request, mut respond))) = server.accept().await {
                let send = respond.send_response(http::Response::new(()), false);
                tell.send((request.into_body(), send.unwrap())).unwrap();
            }
        });
        let mut first = wanted.await.unwrap().unwrap().tunnel.into_io();
        let (_recv, mut send) = streams.recv().await.unwrap();
        let second = scene.wants().await.unwrap().unwrap().tunnel;
        let (mut recv, _send) = streams.recv().await.unwrap();
        send.send_data(Bytes::from_static(b"part"), false).unwrap();
        first.read_exact(&mut [0; 4]).await.unwrap();
        send.send_reset(Reason::INTERNAL_ERROR);
        let error = first.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        drop(second);
        let error = recv.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        driver.abort();
    });
}

/// Ours against ours, as the yardstick of the others.
#[test]
fn our_client_and_our_server() {
    local(async {
        let scene = Scene::start(Setup::default()).await;
        let (pool, to) = (scene.lab.pool.clone(), scene.lab.to.clone());
        let all = (0..STREAMS).map(|_| {
            let (pool, to) = (pool.clone(), to.clone());
            spawn_local(async move { pool.open(&to, &support::request()).await })
        });
        for wanted in all {
            let opened = wanted.await.unwrap().unwrap();
            let (mut read, mut write) = split(opened.tunnel.into_io());
            let (sent, mut got) = (random(300_000), Vec::new());
            let push = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(read.read_to_end(&mut got), push);
            read.unwrap();
            assert!(got == sent);
        }
    });
}
