//! Tunnels that are opened, used and ended in unusual order.

use hbone::{Refusal, Response, TunnelIo};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::frames::*;
use crate::support::scene::{Setup, attacked};

/// Expects a failure where the far side has been reset, not an end of file.
async fn is_cut_off(io: &mut TunnelIo) {
    let error = io.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn a_body_before_the_answer() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.send_all(&[connect(1), data(1, "too early"), data(1, " to end").end()])
            .await;
        let incoming = scene.incoming().await;
        wire.expect_alive().await;
        let mut io = incoming.accept(Response::default()).unwrap().into_io();
        let mut body = String::new();
        io.read_to_string(&mut body).await.unwrap();
        assert_eq!(body, "too early to end");
        wire.expect_status(1, 200).await;
        io.write_all(b"and back").await.unwrap();
        io.shutdown().await.unwrap();
        wire.expect_data(1, b"and back").await;
        wire.expect_end(1).await;
    });
}

#[test]
fn a_body_for_an_answer_that_is_no() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.send_all(&[connect(1), data(1, "in vain")]).await;
        let refusal = Refusal::new(StatusCode::FORBIDDEN, "no", "not you");
        scene.incoming().await.reject(refusal);
        wire.expect_status(1, 403).await;
        wire.send_all(&[data(1, "still in vain"), data(1, []).end(), connect(3)])
            .await;
        let incoming = scene.incoming().await;
        let _tunnel = incoming.accept(Response::default()).unwrap();
        wire.expect_status(3, 200).await;
    });
}

#[test]
fn a_reset_before_the_answer() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&connect(1)).await;
        let incoming = scene.incoming().await;
        wire.send(&reset(1, CANCEL)).await;
        wire.expect_alive().await;
        if let Ok(tunnel) = incoming.accept(Response::default()) {
            is_cut_off(&mut tunnel.into_io()).await;
        }
        wire.expect_silence().await;
    });
}

#[test]
fn a_reset_that_meets_the_answer() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        for id in (1..40).step_by(2) {
            wire.send(&connect(id)).await;
            let incoming = scene.incoming().await;
            // Accepted, and reset before the engine had its turn.
            let tunnel = incoming.accept(Response::default()).unwrap();
            wire.send(&reset(id, CANCEL)).await;
            is_cut_off(&mut tunnel.into_io()).await;
        }
        wire.expect_alive().await;
    });
}

#[test]
fn a_reset_after_the_end_is_no_end() {
    attacked(Setup::held(), async |scene| {
        let (mut wire, tunnel) = scene.held_tunnel().await;
        let mut io = tunnel.into_io();
        wire.send_all(&[data(1, "all").end(), reset(1, CANCEL)])
            .await;
        wire.expect_alive().await;
        assert!(io.write_all(b"answer").await.is_err() || io.flush().await.is_err());
    });
}

#[test]
fn a_connection_that_breaks_in_a_frame() {
    attacked(Setup::held(), async |scene| {
        let (mut wire, tunnel) = scene.held_tunnel().await;
        wire.send_raw(&data(1, "half").says(8).encode()).await;
        drop(wire);
        is_cut_off(&mut tunnel.into_io()).await;
    });
}

#[test]
fn a_connection_that_ends_without_the_streams_end() {
    attacked(Setup::held(), async |scene| {
        let (mut wire, tunnel) = scene.held_tunnel().await;
        wire.send_all(&[data(1, "all"), goaway(0, NO_ERROR)]).await;
        wire.shutdown().await;
        drop(wire);
        is_cut_off(&mut tunnel.into_io()).await;
    });
}

#[test]
fn a_connection_that_is_reset() {
    attacked(Setup::held(), async |scene| {
        let (mut wire, tunnel) = scene.held_tunnel().await;
        wire.send(&data(1, "all")).await;
        wire.expect_alive().await;
        wire.crash();
        is_cut_off(&mut tunnel.into_io()).await;
    });
}

#[test]
fn who_goes_on_talking_to_a_server_that_has_left_is_stopped() {
    attacked(Setup::held(), async |scene| {
        let (mut wire, tunnel) = scene.held_tunnel().await;
        let mut io = tunnel.into_io();
        io.write_all(b"that was all").await.unwrap();
        io.shutdown().await.unwrap();
        drop(io);
        wire.expect_data(1, b"that was all").await;
        wire.expect_end(1).await;
        // A few windows full are heard out, not more.
        let piece = data(1, vec![7; 16_384]);
        for _ in 0..(1 << 20) / 16_384 + 1 {
            wire.send_within(&piece).await;
        }
        wire.expect_reset(1, NO_ERROR).await;
        wire.expect_alive().await;
    });
}

#[test]
fn a_goaway_leaves_running_tunnels_alone() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.tunnel().await;
        wire.send_all(&[goaway(0, NO_ERROR), data(1, "still").end()])
            .await;
        wire.expect_data(1, b"still").await;
        wire.expect_end(1).await;
    });
}

#[test]
fn a_drained_server_answers_no_new_requests() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.tunnel().await;
        scene.lab.served.drain.notify_waiters();
        wire.expect_goaway(NO_ERROR).await;
        wire.send(&data(1, "old ones run")).await;
        wire.expect_data(1, b"old ones run").await;
        wire.send(&data(1, []).end()).await;
        wire.expect_end(1).await;
        wire.expect_closed().await;
    });
}

#[test]
fn who_asks_for_nothing_can_be_sent_away() {
    attacked(Setup::default(), async |scene| {
        let before = scene.lab.served.connections.get();
        let mut wire = scene.client().await;
        wire.expect_alive().await;
        assert_eq!(scene.lab.served.connections.get(), before + 1);
        scene.lab.served.drain.notify_waiters();
        wire.expect_goaway(NO_ERROR).await;
        wire.expect_closed().await;
    });
}

#[test]
fn every_place_is_free_again_after_use() {
    let setup = Setup::default().server(|limits| limits.max_streams = 4);
    attacked(setup, async |scene| {
        let mut wire = scene.client().await;
        for round in 0..20 {
            let ids: Vec<u32> = (0..4).map(|n| 1 + 2 * (4 * round + n)).collect();
            for id in &ids {
                wire.send(&connect(*id)).await;
            }
            for id in &ids {
                wire.expect_status(*id, 200).await;
            }
            wire.send(&data(ids[0], "bye").end()).await;
            wire.expect_data(ids[0], b"bye").await;
            wire.expect_end(ids[0]).await;
            wire.send(&headers(ids[1], block(&[("x-trailer", "t")])).end())
                .await;
            wire.expect_end(ids[1]).await;
            wire.send(&reset(ids[2], CANCEL)).await;
            // A malformed frame for one stream costs that stream.
            wire.send(&window(ids[3], 0)).await;
            wire.expect_reset(ids[3], PROTOCOL_ERROR).await;
        }
    });
}
