//! Windows that are overrun, overflow, or change under way.

use hbone::{Acceptor, Incoming, Response, ServerLimits, TrustDomain};
use tokio::time::timeout;

use crate::support::frames::*;
use crate::support::scene::{Scene, Setup, attacked};
use crate::support::wire::{PATIENCE, Wire};
use crate::support::{Served, destination, request};

/// Another workload on the same thread.
const NEIGHBOUR: &str = "spiffe://cluster.local/ns/shop/sa/neighbour";

const DEFAULT: u32 = 0xffff;

/// A tunnel to an echo on stream 1, by a client with these settings.
async fn tunnel(scene: &Scene, ours: &[(u16, u32)]) -> Wire {
    let mut wire = scene.silent().await;
    wire.greet(ours).await;
    wire.send(&connect(1)).await;
    wire.expect_status(1, 200).await;
    wire
}

/// A window of ours that becomes this.
fn becomes(size: u32) -> Frame {
    settings(&[(INITIAL_WINDOW_SIZE, size)])
}

#[test]
fn a_stream_window_overflows() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[]).await;
        wire.send(&window(1, MAX_WINDOW)).await;
        wire.expect_reset(1, FLOW_CONTROL_ERROR).await;
        wire.expect_alive().await;
    });
}

#[test]
fn the_connection_window_overflows() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[]).await;
        wire.send(&window(0, MAX_WINDOW)).await;
        wire.expect_thrown_out(FLOW_CONTROL_ERROR).await;
    });
}

#[test]
fn a_window_overflows_by_settings() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[]).await;
        wire.send(&window(1, MAX_WINDOW - DEFAULT)).await;
        wire.expect_alive().await;
        wire.send(&becomes(DEFAULT + 1)).await;
        wire.expect_thrown_out(FLOW_CONTROL_ERROR).await;
    });
}

#[test]
fn the_largest_windows_are_allowed() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]).await;
        wire.send(&window(0, MAX_WINDOW - DEFAULT)).await;
        wire.send(&data(1, vec![7; 16_384])).await;
        wire.expect_data(1, &[7; 16_384]).await;
        wire.expect_alive().await;
    });
}

#[test]
fn data_beyond_the_stream_window() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&connect(1)).await;
        let held = scene.incoming().await;
        wire.expect_alive().await;
        // Nobody takes these bytes, so nothing is granted for them.
        while wire.room(1) > 0 {
            let n = wire.room(1).min(16_384);
            wire.send_within(&data(1, vec![0; n])).await;
        }
        wire.expect_alive().await;
        assert_eq!(wire.room(1), 0, "granted before anybody took a byte");
        wire.send(&data(1, "x")).await;
        wire.expect_thrown_out(FLOW_CONTROL_ERROR).await;
        drop(held);
    });
}

#[test]
fn padding_beyond_the_stream_window() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&connect(1)).await;
        let held = scene.incoming().await;
        wire.expect_alive().await;
        let padded = data(1, []).padded(255).times(2 * wire.room(1) / 256);
        // Padding is nobody's: it is granted again, or it is counted; it is never free memory.
        wire.flood(&padded).await;
        wire.flood(&ping([1; 8]).encode()).await;
        while let Some(frame) = wire.frame().await {
            if frame.kind == GOAWAY {
                let code = frame.number(1);
                assert!([FLOW_CONTROL_ERROR, ENHANCE_YOUR_CALM].contains(&code));
            }
            if frame.kind == PING && frame.has(ACK) {
                break;
            }
        }
        drop(held);
    });
}

#[test]
fn padding_is_granted_again() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]).await;
        let window = wire.announced[&INITIAL_WINDOW_SIZE] as usize;
        let frames = 2 * window / 257;
        for _ in 0..frames {
            wire.send_within(&data(1, "x").padded(255)).await;
        }
        wire.expect_data(1, &vec![b'x'; frames]).await;
    });
}

#[test]
fn data_for_closed_streams_is_granted_again() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.expect_alive().await;
        let all = wire.room(0);
        let window = wire.announced[&INITIAL_WINDOW_SIZE] as usize;
        // As much as the connection may hold, on streams whose server has gone before it came.
        let mut id = 1;
        let mut sent = 0;
        while sent < 2 * all {
            wire.send(&connect(id)).await;
            let mut left = window;
            drop(scene.incoming().await);
            while left > 0 {
                let n = left.min(16_384);
                wire.send_within(&data(id, vec![0; n])).await;
                left -= n;
                sent += n;
            }
            id += 2;
        }
        wire.expect_alive().await;
    });
}

#[test]
fn a_window_of_nothing() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        wire.send(&data(1, "patience")).await;
        wire.expect_silence().await;
        wire.send(&becomes(3)).await;
        wire.expect_data(1, b"pat").await;
        wire.send(&window(1, 2)).await;
        wire.expect_data(1, b"ie").await;
        wire.send(&becomes(MAX_WINDOW)).await;
        wire.expect_data(1, b"nce").await;
    });
}

#[test]
fn a_window_below_nothing() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, 100)]).await;
        wire.send(&data(1, vec![7; 150])).await;
        wire.expect_data(1, &[7; 100]).await;
        wire.send(&becomes(0)).await;
        wire.expect_ack().await;
        // It stands at -100 now.
        wire.send(&window(1, 100)).await;
        wire.expect_silence().await;
        wire.send(&window(1, 1)).await;
        wire.expect_data(1, &[7; 1]).await;
        wire.send(&becomes(49)).await;
        wire.expect_data(1, &[7; 49]).await;
        wire.expect_silence().await;
    });
}

#[test]
fn a_connection_window_of_nothing() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]).await;
        let much = vec![7; 70_000];
        for part in much.chunks(16_000) {
            wire.send_within(&data(1, part)).await;
        }
        wire.expect_data(1, &much[..DEFAULT as usize]).await;
        wire.expect_silence().await;
        // New tunnels open all the same.
        wire.send(&connect(3)).await;
        wire.expect_status(3, 200).await;
        wire.send(&window(0, MAX_WINDOW)).await;
        wire.expect_data(1, &much[DEFAULT as usize..]).await;
    });
}

#[test]
fn an_end_needs_no_window() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        wire.send(&data(1, []).end()).await;
        wire.expect_end(1).await;
    });
}

#[test]
fn a_stream_that_stands_still_stops_no_other() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnel(scene, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        wire.send_all(&[data(1, "never"), connect(3), window(3, 100)])
            .await;
        wire.expect_status(3, 200).await;
        wire.send(&data(3, "at once")).await;
        wire.expect_data(3, b"at once").await;
    });
}

/// What a thread may hold for one workload that is alone and takes nothing, before it gets no new streams.
const SHARE: usize = 32 << 20;

/// The same where all streams are there already.
const MOST: usize = 64 << 20;

/// Streams of one client in these tests.
const STREAMS: usize = 150;

/// So many bytes that their applications do not take.
async fn stall(scene: &mut Scene, bytes: usize) -> (Vec<Wire>, Vec<Incoming>) {
    let (mut wires, mut held) = (Vec::new(), Vec::new());
    let mut sent = 0;
    while sent < bytes {
        let mut wire = scene.client().await;
        for id in (1..).step_by(2).take(STREAMS) {
            wire.send(&connect(id)).await;
            held.push(scene.incoming().await);
            while wire.room(id) > 0 && sent < bytes {
                let n = wire.room(id).min(16_384);
                wire.send_within(&data(id, vec![0; n])).await;
                sent += n;
            }
            if sent >= bytes {
                break;
            }
        }
        wires.push(wire);
    }
    for wire in &mut wires {
        wire.expect_alive().await;
    }
    (wires, held)
}

#[test]
fn more_memory_than_there_is() {
    attacked(Setup::held(), async |scene| {
        let (_wires, mut held) = stall(scene, SHARE).await;
        let mut last = scene.client().await;
        last.send(&connect(1)).await;
        last.expect_reset(1, REFUSED_STREAM).await;
        // What is given up is there for others.
        held.truncate(held.len() / 2);
        last.send(&connect(3)).await;
        held.push(scene.incoming().await);
    });
}

/// Streams that are all open before the first byte comes, and then filled: more than [`MOST`]. The oldest come first.
async fn open_then_fill(scene: &mut Scene) -> (Vec<Wire>, Vec<Incoming>) {
    let (mut wires, mut held) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let mut wire = scene.client().await;
        for id in (1..).step_by(2).take(STREAMS) {
            wire.send(&connect(id)).await;
            held.push(scene.incoming().await);
        }
        wires.push(wire);
    }
    let mut sent = 0;
    for wire in &mut wires {
        for id in (1..).step_by(2).take(STREAMS) {
            while wire.room(id) > 0 {
                let n = wire.room(id).min(16_384);
                wire.send_within(&data(id, vec![0; n])).await;
                sent += n;
            }
        }
        wire.expect_alive().await;
    }
    assert!(sent > MOST, "{sent} bytes are too few for this test");
    (wires, held)
}

#[test]
fn who_never_reads_takes_no_room_from_a_neighbour_on_the_same_thread() {
    attacked(Setup::held(), async |scene| {
        let (_wires, _held) = open_then_fill(scene).await;
        let (_writer, credentials) = scene.lab.ca.credentials(NEIGHBOUR);
        let limits = ServerLimits::default();
        let acceptor = Acceptor::new(credentials, [TrustDomain::default()], limits);
        let mut served = Served::start(acceptor).await;
        let to = destination(served.addr, NEIGHBOUR);
        let (request, pool) = (request(), scene.lab.pool.clone());
        let opening = pool.open(&to, &request);
        let accepting = async {
            let incoming = timeout(PATIENCE, served.incoming.recv()).await;
            let incoming = incoming.expect("no request comes").unwrap();
            incoming.accept(Response::default()).unwrap()
        };
        let (opened, _accepted) = tokio::join!(opening, accepting);
        opened.unwrap();
    });
}

#[test]
fn streams_that_are_opened_first_and_filled_then() {
    attacked(Setup::held(), async |scene| {
        let (mut wires, _held) = open_then_fill(scene).await;
        for id in (1..).step_by(2).take(STREAMS) {
            wires[0].expect_reset(id, ENHANCE_YOUR_CALM).await;
        }
        // The youngest stay.
        wires[7].expect_alive().await;
    });
}
