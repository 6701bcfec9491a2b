//! Servers that mean harm or are broken: the pool fails that tunnel with a reason, and no other.

mod support;

use std::time::Duration;

use hbone::{Error, Opened, TunnelIo};
use support::frames::*;
use support::scene::{Scene, Setup, attacked};
use support::wire::{PATIENCE, Wire, closes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

/// More than the burst of any limit.
const FLOOD: usize = 3000;

/// Less than the burst of any limit.
const USE: usize = 300;

const SHORT: Duration = Duration::from_millis(100);

/// How long an answer to a ping may take: long enough for the bystander on a busy machine.
const PATIENT: Duration = Duration::from_millis(500);

type Wanted = JoinHandle<Result<Opened, Error>>;

async fn outcome(wanted: Wanted) -> Result<Opened, Error> {
    let outcome = timeout(PATIENCE, wanted).await;
    outcome.expect("the pool waits").unwrap()
}

async fn failure(wanted: Wanted) -> Error {
    outcome(wanted).await.expect_err("a tunnel to nowhere")
}

/// A server with one tunnel, on stream 1.
async fn tunnel(scene: &Scene, settings: &[(u16, u32)]) -> (Wire, TunnelIo) {
    let (mut wire, wanted) = scene.server(settings).await;
    wire.send(&headers(1, OK)).await;
    let io = outcome(wanted).await.unwrap().tunnel.into_io();
    (wire, io)
}

/// Expects a failure, not an end of file.
async fn is_cut_off(io: &mut TunnelIo) {
    let read = timeout(PATIENCE, io.read_to_end(&mut Vec::new())).await;
    assert!(read.expect("the tunnel hangs").is_err(), "an end of file");
}

fn watchful() -> Setup {
    Setup::default().pool(|limits| {
        limits.ping_interval = SHORT;
        limits.ping_timeout = PATIENT;
    })
}

// === the handshake ===

#[test]
fn says_nothing_at_all() {
    let setup = Setup::default().pool(|limits| limits.handshake_timeout = SHORT);
    attacked(setup, async |scene| {
        let wanted = scene.wants();
        let mut tcp = scene.caught().await;
        let error = failure(wanted).await;
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
        closes(&mut tcp).await;
    });
}

#[test]
fn speaks_no_tls() {
    attacked(Setup::default(), async |scene| {
        let wanted = scene.wants();
        let mut tcp = scene.caught().await;
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let error = failure(wanted).await;
        assert!(matches!(error, Error::Tls { .. }), "{error}");
    });
}

#[test]
fn sends_no_settings() {
    let setup = Setup::default().pool(|limits| {
        limits.handshake_timeout = SHORT;
        limits.response_timeout = SHORT;
    });
    attacked(setup, async |scene| {
        let (mut wire, wanted) = scene.silent_server().await;
        failure(wanted).await;
        scene.lab.pool.evict("uid-1");
        wire.expect_closed().await;
    });
}

#[test]
fn leaves_during_the_handshake() {
    attacked(Setup::default(), async |scene| {
        let wanted = scene.wants();
        drop(scene.caught().await);
        assert!(failure(wanted).await.retryable());
        let (wire, wanted) = scene.silent_server().await;
        drop(wire);
        // It may be tried once more.
        let again = scene.caught();
        let error = tokio::select! {
            error = failure(wanted) => error,
            tcp = again => {
                drop(tcp);
                return;
            }
        };
        assert!(error.retryable(), "{error}");
    });
}

// === answers ===

#[test]
fn never_answers() {
    let setup = Setup::default().pool(|limits| limits.response_timeout = SHORT);
    attacked(setup, async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        let error = failure(wanted).await;
        assert!(matches!(error, Error::ResponseTimeout), "{error}");
        wire.expect_reset(1, CANCEL).await;
        wire.expect_alive().await;
    });
}

#[test]
fn answers_what_nobody_waits_for_any_more() {
    let setup = Setup::default().pool(|limits| limits.response_timeout = SHORT);
    attacked(setup, async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        failure(wanted).await;
        wire.send_all(&[headers(1, OK), data(1, "hello").end()])
            .await;
        wire.expect_reset(1, CANCEL).await;
        wire.expect_alive().await;
    });
}

#[test]
fn answers_at_length() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        let field = block(&[("x-more", &"v".repeat(270))]);
        let head = [OK.to_vec(), field.repeat(55)].concat();
        wire.send(&headers(1, head)).await;
        let error = failure(wanted).await;
        assert!(matches!(error, Error::Protocol(_)), "{error}");
        wire.until("a reset", |f| {
            (f.kind == RST_STREAM && f.stream == 1).then_some(())
        })
        .await;
        wire.expect_alive().await;
    });
}

#[test]
fn answers_with_a_table_bomb() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        let bomb = [OK.to_vec(), indexed("x", "v"), vec![0xbe; 9000]].concat();
        wire.send(&headers(1, bomb)).await;
        wire.expect_thrown_out(COMPRESSION_ERROR).await;
        failure(wanted).await;
    });
}

#[test]
fn answers_without_end() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        wire.send(&headers(1, OK).without(END_HEADERS)).await;
        let more = continuation(1, block(&[("x", "y")])).without(END_HEADERS);
        wire.flood(&more.times(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
        failure(wanted).await;
    });
}

#[test]
fn is_always_about_to_answer() {
    let setup = Setup::default().pool(|limits| limits.response_timeout = 3 * PATIENT);
    attacked(setup, async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        wire.flood(&headers(1, block(&[(":status", "102")])).times(20 * FLOOD))
            .await;
        failure(wanted).await;
    });
}

#[test]
fn accepts_and_has_ended_already() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        wire.send(&headers(1, OK).end()).await;
        let mut io = outcome(wanted).await.unwrap().tunnel.into_io();
        io.write_all(b"one way").await.unwrap();
        io.shutdown().await.unwrap();
        assert_eq!(io.read(&mut [0; 8]).await.unwrap(), 0);
        wire.expect_data(1, b"one way").await;
        wire.expect_end(1).await;
    });
}

#[test]
fn sends_before_it_answers() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        wire.send_all(&[data(1, "too early"), headers(1, OK)]).await;
        let error = failure(wanted).await;
        assert!(matches!(error, Error::Protocol(_)), "{error}");
    });
}

// === floods on a tunnel ===

/// Floods a connection that has one tunnel.
fn flooded(frame: &Frame) {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.flood(&frame.times(USE)).await;
        wire.expect_alive().await;
        wire.send(&data(1, "as before")).await;
        let mut got = [0; 9];
        io.read_exact(&mut got).await.unwrap();
        wire.flood(&frame.times(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
        is_cut_off(&mut io).await;
    });
}

#[test]
fn floods_of_settings() {
    flooded(&settings(&[(INITIAL_WINDOW_SIZE, 70_000)]));
}

#[test]
fn floods_of_pings() {
    flooded(&ping([7; 8]));
}

#[test]
fn floods_of_empty_data() {
    flooded(&data(1, []));
}

#[test]
fn floods_of_window_updates() {
    flooded(&window(1, 1));
}

#[test]
fn floods_of_priorities() {
    flooded(&priority(1, 0));
}

#[test]
fn floods_of_unknown_frames() {
    flooded(&Frame::new(0xbe, 0xff, 0, *b"whatever"));
}

#[test]
fn floods_of_key_updates() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        for _ in 0..5 {
            wire.update_keys().await;
            wire.expect_alive().await;
        }
        for _ in 0..200 {
            wire.update_keys().await;
        }
        wire.expect_closed().await;
        is_cut_off(&mut io).await;
    });
}

// === windows ===

#[test]
fn overflows_a_stream_window() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.send(&window(1, MAX_WINDOW)).await;
        wire.expect_reset(1, FLOW_CONTROL_ERROR).await;
        is_cut_off(&mut io).await;
        wire.expect_alive().await;
    });
}

#[test]
fn overflows_the_connection_window() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.send(&window(0, MAX_WINDOW)).await;
        wire.expect_thrown_out(FLOW_CONTROL_ERROR).await;
        is_cut_off(&mut io).await;
    });
}

#[test]
fn overflows_a_window_by_settings() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        let most = settings(&[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]);
        wire.send_all(&[window(1, 1), most]).await;
        wire.expect_thrown_out(FLOW_CONTROL_ERROR).await;
        is_cut_off(&mut io).await;
    });
}

#[test]
fn sends_more_than_it_may() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.expect_alive().await;
        while wire.room(1) > 0 {
            let n = wire.room(1).min(16_384);
            wire.send_within(&data(1, vec![0; n])).await;
        }
        wire.expect_alive().await;
        wire.send(&data(1, "x")).await;
        wire.expect_thrown_out(FLOW_CONTROL_ERROR).await;
        is_cut_off(&mut io).await;
    });
}

#[test]
fn opens_its_windows_late() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        let write = spawn_local(async move {
            io.write_all(b"patience").await?;
            io.shutdown().await.map(|()| io)
        });
        wire.expect_silence().await;
        wire.send(&settings(&[(INITIAL_WINDOW_SIZE, 3)])).await;
        wire.expect_data(1, b"pat").await;
        wire.send(&settings(&[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]))
            .await;
        wire.expect_data(1, b"ience").await;
        wire.expect_end(1).await;
        drop(write.await.unwrap().unwrap());
    });
}

// === ends ===

#[test]
fn closes_without_an_end() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.send(&data(1, "all")).await;
        wire.shutdown().await;
        drop(wire);
        is_cut_off(&mut io).await;
    });
}

#[test]
fn closes_in_a_frame() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.send_raw(&data(1, "half").end().says(8).encode()).await;
        drop(wire);
        is_cut_off(&mut io).await;
    });
}

#[test]
fn resets_without_an_error() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.send_all(&[data(1, "part"), reset(1, NO_ERROR)]).await;
        is_cut_off(&mut io).await;
        let (mut wire, mut io) = second(scene, wire).await;
        wire.send(&data(3, "all").end()).await;
        let mut got = String::new();
        io.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "all");
    });
}

/// One more tunnel on the same connection.
async fn second(scene: &Scene, mut wire: Wire) -> (Wire, TunnelIo) {
    let wanted = scene.wants();
    wire.expect_headers(3).await;
    wire.send(&headers(3, OK)).await;
    (wire, outcome(wanted).await.unwrap().tunnel.into_io())
}

#[test]
fn goes_away_after_this_tunnel() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.send(&goaway(1, NO_ERROR)).await;
        wire.expect_alive().await;
        // The next one is on another connection.
        let wanted = scene.wants();
        let mut next = Wire::server(scene.caught().await, &scene.lab.ca).await;
        next.greet(&[]).await;
        next.expect_headers(1).await;
        next.send(&headers(1, OK)).await;
        let _other = outcome(wanted).await.unwrap();
        // The first one goes on.
        wire.send(&data(1, "still here").end()).await;
        let mut got = String::new();
        io.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "still here");
    });
}

#[test]
fn goes_away_before_this_tunnel() {
    attacked(Setup::default(), async |scene| {
        let (mut wire, wanted) = scene.server(&[]).await;
        wire.send(&goaway(0, NO_ERROR)).await;
        // It was never looked at, so it is asked for again.
        let mut next = Wire::server(scene.caught().await, &scene.lab.ca).await;
        next.greet(&[]).await;
        next.expect_headers(1).await;
        next.send(&headers(1, OK)).await;
        outcome(wanted).await.unwrap();
    });
}

#[test]
fn grants_no_streams() {
    let setup = Setup::default().pool(|limits| {
        limits.max_connections = 3;
        limits.response_timeout = PATIENT;
    });
    attacked(setup, async |scene| {
        let wanted = scene.wants();
        let mut wires = Vec::new();
        let serve = async {
            loop {
                let mut wire = Wire::server(scene.caught().await, &scene.lab.ca).await;
                wire.open(&[(MAX_CONCURRENT_STREAMS, 0)]).await;
                wires.push(wire);
            }
        };
        tokio::select! {
            error = failure(wanted) => drop(error),
            () = serve => {}
        }
        assert!(wires.len() <= 3, "{} connections", wires.len());
        scene.lab.pool.evict("uid-1");
    });
}

// === silence ===

#[test]
fn answers_no_pings() {
    attacked(watchful(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.lives = false;
        wire.expect_closed().await;
        is_cut_off(&mut io).await;
    });
}

#[test]
fn sends_half_a_frame() {
    attacked(watchful(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[]).await;
        wire.lives = false;
        wire.send_raw(&data(1, "half").says(1000).encode()).await;
        io.read_exact(&mut [0; 4]).await.unwrap();
        wire.expect_closed().await;
        is_cut_off(&mut io).await;
    });
}

#[test]
fn never_reads() {
    attacked(watchful(), async |scene| {
        let (mut wire, mut io) = tunnel(scene, &[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]).await;
        wire.send(&window(0, MAX_WINDOW - 0xffff)).await;
        let mut taken = 0;
        let push = async {
            while io.write_all(&[7; 64 << 10]).await.is_ok() {
                taken += 64 << 10;
            }
        };
        timeout(PATIENCE, push).await.expect("a dead server lives");
        assert!(taken < 24 << 20, "{taken} bytes for one that never reads");
        is_cut_off(&mut io).await;
    });
}
