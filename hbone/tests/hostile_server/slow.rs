//! Clients that stop in the middle of something.

use std::future::pending;
use std::time::Duration;

use hbone::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, interval, timeout};

use crate::support::frames::*;
use crate::support::scene::{Setup, attacked};
use crate::support::wire::closes;

const SHORT: Duration = Duration::from_millis(100);

/// How long an answer to a ping may take: long enough for the bystander on a busy machine.
const PATIENT: Duration = Duration::from_millis(500);

/// Longer than any test waits.
const NEVER: Duration = Duration::from_secs(3600);

/// More than backlog and kernel buffers of both directions hold together.
const MOST_TAKEN: usize = 24 << 20;

fn hasty() -> Setup {
    Setup::default().server(|limits| limits.handshake_timeout = SHORT)
}

fn watchful() -> Setup {
    Setup::default().server(|limits| {
        limits.ping_interval = SHORT;
        limits.ping_timeout = PATIENT;
    })
}

#[test]
fn says_nothing_at_all() {
    attacked(hasty(), async |scene| {
        let mut tcp = scene.tcp().await;
        closes(&mut tcp).await;
        let error = scene.error().await;
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
    });
}

#[test]
fn stops_in_its_client_hello() {
    attacked(hasty(), async |scene| {
        let mut tcp = scene.tcp().await;
        tcp.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
        closes(&mut tcp).await;
        let error = scene.error().await;
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
    });
}

#[test]
fn sends_no_preface() {
    attacked(hasty(), async |scene| {
        let mut wire = scene.silent().await;
        wire.expect_closed().await;
        let error = scene.error().await;
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
    });
}

#[test]
fn sends_half_a_preface() {
    attacked(hasty(), async |scene| {
        let mut wire = scene.silent().await;
        wire.send_raw(&PREFACE[..10]).await;
        wire.expect_closed().await;
    });
}

#[test]
fn sends_no_settings() {
    attacked(hasty(), async |scene| {
        let mut wire = scene.silent().await;
        wire.send_raw(PREFACE).await;
        wire.expect_closed().await;
    });
}

#[test]
fn says_everything_byte_by_byte() {
    attacked(hasty(), async |scene| {
        let mut wire = scene.silent().await;
        let mut pace = interval(SHORT / 10);
        // Each byte is progress, but all of them together take too long.
        for byte in PREFACE.iter().chain(&[0; 9]) {
            wire.flood(&[*byte]).await;
            pace.tick().await;
        }
        wire.expect_closed().await;
        let error = scene.error().await;
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
    });
}

#[test]
#[ignore = "takes as long as the limit: 10 s"]
fn never_acknowledges_settings() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.silent().await;
        wire.open(&[]).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(9) {
            wire.expect_alive().await;
            timeout(SHORT, pending::<()>()).await.unwrap_err();
        }
        wire.expect_thrown_out(SETTINGS_TIMEOUT).await;
    });
}

#[test]
fn does_not_leave_when_thrown_out() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.send_all(&[connect(1), data(0, "x")]).await;
        wire.expect_thrown_out(PROTOCOL_ERROR).await;
        // Its socket is still open, ours is not.
        scene.settles().await;
        drop(wire);
    });
}

#[test]
fn goes_on_when_thrown_out() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&data(0, "x")).await;
        wire.flood(&ping([7; 8]).times(1_000_000)).await;
        scene.settles().await;
    });
}

#[test]
fn leaves_during_the_handshake() {
    attacked(Setup::default(), async |scene| {
        drop(scene.tcp().await);
        drop(scene.silent().await);
        let mut wire = scene.silent().await;
        wire.send_raw(PREFACE).await;
        drop(wire);
        for _ in 0..2 {
            scene.error().await;
        }
    });
}

#[test]
fn sends_half_a_frame() {
    attacked(watchful(), async |scene| {
        let mut wire = scene.client().await;
        wire.lives = false;
        wire.send(&connect(1)).await;
        wire.expect_status(1, 200).await;
        wire.send_raw(&data(1, "half").says(1000).encode()).await;
        wire.expect_data(1, b"half").await;
        // Nothing that comes now can be an answer to a ping.
        wire.expect_closed().await;
        let error = scene.error().await;
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    });
}

#[test]
fn sends_half_a_header_block() {
    attacked(watchful(), async |scene| {
        let mut wire = scene.client().await;
        wire.lives = false;
        wire.send(&connect(1).without(END_HEADERS)).await;
        wire.expect_closed().await;
        let error = scene.error().await;
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    });
}

#[test]
fn answers_no_pings() {
    attacked(watchful(), async |scene| {
        let mut wire = scene.client().await;
        wire.lives = false;
        wire.expect_closed().await;
        let error = scene.error().await;
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    });
}

#[test]
fn answers_pings_with_something_else() {
    attacked(watchful(), async |scene| {
        let mut wire = scene.client().await;
        wire.lives = false;
        let mut lies = 0;
        while let Some(frame) = wire.frame().await {
            if frame.kind == PING && lies < 5 {
                lies += 1;
                wire.send(&ping([0x66; 8]).flag(ACK)).await;
            }
        }
        let error = scene.error().await;
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    });
}

#[test]
fn answers_pings_and_may_stay() {
    // The next comes an interval after the last, however long the last might have taken.
    let setup = watchful().server(|limits| limits.ping_timeout = NEVER);
    attacked(setup, async |scene| {
        let mut wire = scene.client().await;
        for _ in 0..8 {
            wire.until("a ping", |f| (f.kind == PING && !f.has(ACK)).then_some(()))
                .await;
        }
        wire.expect_alive().await;
    });
}

#[test]
fn never_reads() {
    attacked(watchful(), async |scene| {
        let mut wire = scene.silent().await;
        wire.greet(&[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]).await;
        wire.expect_alive().await;
        // As much as it may, which is said back to it by as many applications.
        let window = wire.room(1);
        wire.send(&window_of_all()).await;
        for id in (1..).step_by(2).take(40) {
            let body = data(id, vec![7; 16_384]).times(window / 16_384);
            wire.push_unread(&[connect(id).encode(), body].concat())
                .await;
        }
        let error = scene.error().await;
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
        assert_eq!(scene.lab.served.living(), 1);
    });
}

fn window_of_all() -> Frame {
    window(0, MAX_WINDOW - 0xffff)
}

#[test]
fn never_reads_the_answers_to_its_pings() {
    attacked(watchful(), async |scene| {
        let mut wire = scene.client().await;
        let taken = wire.push_unread(&ping([7; 8]).times(2_000_000)).await;
        assert!(taken < MOST_TAKEN, "{taken} bytes of pings were taken");
        let error = scene.error().await;
        assert!(
            matches!(error, Error::ConnectionLost { .. } | Error::Protocol(_)),
            "{error}"
        );
    });
}

#[test]
fn wants_nothing() {
    let setup = Setup::default().server(|limits| limits.idle_timeout = SHORT);
    attacked(setup, async |scene| {
        let mut wire = scene.client().await;
        wire.expect_goaway(NO_ERROR).await;
        wire.expect_closed().await;
    });
}
