//! What a long-lived connection keeps of streams that are over: nothing.

use std::fs;

use hbone::{Refusal, Response};
use http::StatusCode;
use tokio::io::AsyncWriteExt;

use crate::support::frames::*;
use crate::support::scene::{Scene, Setup, attacked};
use crate::support::wire::Wire;

/// Streams before the first look, and until the second.
const WARM: u32 = 2000;
const MANY: u32 = 20_000;

/// Less than a stream takes, for each of them, besides what the allocator does as it likes.
const GROWTH: usize = 1 << 20;

/// Resident bytes of this process.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

/// Opens one stream and ends it in one of many ways.
async fn one(scene: &mut Scene, wire: &mut Wire, n: u32) {
    let id = 2 * n + 1;
    wire.send(&connect(id)).await;
    let incoming = scene.incoming().await;
    match n % 5 {
        0 => {
            let mut io = incoming.accept(Response::default()).unwrap().into_io();
            wire.send(&data(id, "x").end()).await;
            io.shutdown().await.unwrap();
            wire.expect_end(id).await;
        }
        1 => {
            let _tunnel = incoming.accept(Response::default()).unwrap();
            wire.expect_status(id, 200).await;
            wire.send(&reset(id, CANCEL)).await;
        }
        2 => {
            incoming.reject(Refusal::new(StatusCode::FORBIDDEN, "no", "not you"));
            wire.expect_status(id, 403).await;
            wire.send(&data(id, []).end()).await;
        }
        3 => {
            drop(incoming.accept(Response::default()).unwrap());
            wire.expect_reset(id, CANCEL).await;
        }
        _ => {
            let mut io = incoming.accept(Response::default()).unwrap().into_io();
            io.shutdown().await.unwrap();
            drop(io);
            wire.expect_end(id).await;
            wire.send(&data(id, []).end()).await;
        }
    }
    wire.forget();
}

#[test]
#[ignore = "looks at the whole process: alone only"]
fn streams_that_are_over() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        for n in 0..WARM {
            one(scene, &mut wire, n).await;
        }
        let before = resident();
        for n in WARM..MANY {
            one(scene, &mut wire, n).await;
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes for streams that are over");
    });
}

/// Bytes of window that are granted one at a time before the first look, and until the second: what keeps a
/// key for each of them outgrows [`GROWTH`].
const WARM_GRANTS: usize = 40_000;
const GRANTS: usize = 240_000;

#[test]
#[ignore = "looks at the whole process: alone only"]
fn window_byte_by_byte() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.silent().await;
        wire.greet(&[(INITIAL_WINDOW_SIZE, 0)]).await;
        wire.send(&window(0, MAX_WINDOW - 0xffff)).await;
        wire.send(&connect(1)).await;
        wire.expect_status(1, 200).await;
        wire.send(&data(1, vec![b'x'; 8000])).await;
        let mut before = 0;
        for n in 0..GRANTS {
            if n == WARM_GRANTS {
                before = resident();
            }
            if n % 4000 == 0 {
                wire.send_within(&data(1, vec![b'x'; 4000])).await;
            }
            wire.send(&window(1, 1)).await;
            wire.expect_data(1, b"x").await;
            wire.forget();
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes for waiting");
    });
}
