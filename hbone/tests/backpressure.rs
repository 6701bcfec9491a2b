//! Who does not read is not sent to without end, and stops nobody else.

mod support;

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use hbone::Meter;
use support::{Lab, Relayed, SERVER, destination, local, pair, passes, raw, request};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;

/// More than windows, engine buffers and kernel buffers of one path hold together.
const MORE_THAN_FITS: usize = 64 << 20;

#[test]
fn a_stalled_reader_stops_its_sender_within_bounds() {
    local(async {
        let mut lab = Lab::new().await;
        let Relayed {
            mut near,
            mut far,
            meter,
            ..
        } = lab.relayed().await;
        let stuck = push_until_stuck(&mut near).await;
        assert!(
            stuck < MORE_THAN_FITS,
            "{stuck} bytes were taken for a reader that reads nothing"
        );
        assert!(meter.sent() as usize <= stuck);

        // It reads again: everything arrives.
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), stuck);
        assert_eq!(meter.sent() as usize, stuck);
    });
}

#[test]
fn stalled_readers_do_not_stop_another_stream() {
    local(async {
        let mut lab = Lab::new().await;
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let mut relayed = lab.relayed().await;
            push_until_stuck(&mut relayed.near).await;
            stalled.push(relayed);
        }
        let Relayed {
            mut near, mut far, ..
        } = lab.relayed().await;
        assert_eq!(lab.served.connections.get(), 1);
        for _ in 0..32 {
            passes(&mut near, &mut far, &[7; 64 << 10]).await;
            passes(&mut far, &mut near, &[8; 64 << 10]).await;
        }
    });
}

#[test]
fn bulk_arrives_whole_in_both_directions_at_once() {
    local(async {
        let mut lab = Lab::new().await;
        let Relayed {
            near,
            far,
            near_ended,
            far_ended,
            ..
        } = lab.relayed().await;
        let (from_near, from_far) = (noise(1, 20 << 20), noise(2, 20 << 20));
        let (got_near, got_far) =
            tokio::join!(exchange(near, &from_near), exchange(far, &from_far));
        assert!(got_near == from_far && got_far == from_near);
        near_ended.await.unwrap();
        far_ended.await.unwrap();
    });
}

#[test]
fn a_connection_whose_peer_reads_nothing_gets_company() {
    let wide = 1 << 30;
    local(company_comes(wide, wide, Peer::ReadsNothing));
}

/// As stock servers do while applications of theirs stall.
#[test]
fn a_connection_whose_window_is_not_returned_gets_company() {
    const DEFAULT: u32 = 65_535;
    local(company_comes(1 << 30, DEFAULT, Peer::ReturnsNoWindow));
}

enum Peer {
    ReadsNothing,
    ReturnsNoWindow,
}

/// A server that accepts one stream, takes what these windows allow, and then no more.
async fn company_comes(stream_window: u32, connection_window: u32, peer: Peer) {
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = destination(listener.local_addr().unwrap(), SERVER);
    let (pool, at) = (lab.pool.clone(), to.clone());
    let first = spawn_local(async move { pool.open(&at, &request()).await.unwrap().tunnel });
    let (tcp, _) = listener.accept().await.unwrap();
    let mut windows = h2::server::Builder::new();
    windows
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window);
    let mut server = raw::server(tcp, &lab.ca, &windows).await;
    let (_unread, mut respond) = server.accept().await.unwrap().unwrap();
    let _send = respond.send_response(http::Response::new(()), false);
    let tunnel = tokio::select! {
        tunnel = first => tunnel.unwrap(),
        _ = server.accept() => panic!("one stream was asked for"),
    };
    let (mut app, socket) = pair().await;
    let meter = Meter::new();
    let _relay = spawn_local(tunnel.relay(socket, &meter));
    let serving = async {
        let mut unanswered = Vec::new();
        if matches!(peer, Peer::ReturnsNoWindow) {
            while let Some(asked) = server.accept().await {
                unanswered.push(asked);
            }
        }
        pending::<()>().await;
    };
    // New tunnels still go there, until the company has come.
    let asking = async {
        push_until_stuck(&mut app).await;
        loop {
            let request = request();
            let opening = lab.pool.open(&to, &request);
            let opened = timeout(Duration::from_millis(20), opening).await;
            assert!(opened.is_err(), "nobody answers");
        }
    };
    tokio::select! {
        company = listener.accept() => drop(company.unwrap()),
        () = serving => {}
        () = asking => {}
    }
}

/// Sends everything, ends, and returns what came back.
async fn exchange(stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let send = async {
        write.write_all(bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, received) = tokio::join!(send, read.read_to_end(&mut got));
    received.unwrap();
    got
}

/// Writes until nothing has been taken for many turns of everybody else; how much was taken.
async fn push_until_stuck(to: &mut TcpStream) -> usize {
    let bytes = vec![1; 256 << 10];
    let (mut taken, mut idle) = (0, 0);
    while idle < 2000 && taken < MORE_THAN_FITS {
        let wrote = poll_fn(|cx| {
            Poll::Ready(match std::pin::Pin::new(&mut *to).poll_write(cx, &bytes) {
                Poll::Ready(result) => result.unwrap(),
                Poll::Pending => 0,
            })
        })
        .await;
        taken += wrote;
        idle = if wrote == 0 { idle + 1 } else { 0 };
        tokio::task::yield_now().await;
    }
    taken
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

#[test]
fn both_directions_may_be_full_at_once() {
    const ALL: usize = 8 << 20;
    local(async {
        let mut lab = Lab::new().await;
        let mut both = Vec::new();
        for _ in 0..8 {
            let Relayed { near, far, .. } = lab.relayed().await;
            // Who reads nothing until all is written needs somebody who reads meanwhile.
            for app in [near, far] {
                let (mut read, mut write) = app.into_split();
                both.push(spawn_local(async move {
                    write.write_all(&vec![7; ALL]).await.unwrap();
                    write.shutdown().await.unwrap();
                }));
                both.push(spawn_local(async move {
                    let mut got = Vec::new();
                    read.read_to_end(&mut got).await.unwrap();
                    assert_eq!(got.len(), ALL);
                }));
            }
        }
        for task in both {
            task.await.unwrap();
        }
    });
}
