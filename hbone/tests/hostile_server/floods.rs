//! Frames that are each allowed, in numbers that are not.

use crate::support::frames::*;
use crate::support::scene::{Scene, Setup, attacked};
use crate::support::wire::Wire;

/// More than the burst of any limit.
const FLOOD: usize = 3000;

/// Less than the burst of any limit.
const USE: usize = 300;

/// Odd stream ids from `first` on.
fn streams(first: u32, n: usize) -> impl Iterator<Item = u32> {
    (first..).step_by(2).take(n)
}

fn opened_and_reset(n: usize) -> Vec<u8> {
    streams(1, n)
        .flat_map(|id| [connect(id).encode(), reset(id, CANCEL).encode()].concat())
        .collect()
}

#[test]
fn rapid_reset() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.flood(&opened_and_reset(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

#[test]
fn rapid_reset_while_applications_are_dialled() {
    attacked(Setup::held(), async |scene| {
        let mut wire = scene.client().await;
        wire.flood(&opened_and_reset(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
        let mut surfaced = 0;
        while scene.held.try_recv().is_ok() {
            surfaced += 1;
        }
        assert!(surfaced < 1000, "{surfaced} dials for one client");
    });
}

#[test]
fn a_client_that_gives_up_on_all_it_wanted_is_no_attacker() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.flood(&opened_and_reset(150)).await;
        wire.expect_alive().await;
        wire.send(&connect(1001)).await;
        wire.expect_status(1001, 200).await;
    });
}

#[test]
fn more_streams_than_allowed_are_refused_and_then_too_many() {
    let setup = Setup::held().server(|limits| limits.max_streams = 2);
    attacked(setup, async |scene| {
        let mut wire = scene.client().await;
        let held = [
            scene_open(&mut wire, scene, 1).await,
            scene_open(&mut wire, scene, 3).await,
        ];
        wire.send(&connect(5)).await;
        wire.expect_reset(5, REFUSED_STREAM).await;
        // A place that is free again can be taken.
        let [first, second] = held;
        drop(first);
        wire.expect_reset(1, CANCEL).await;
        let third = scene_open(&mut wire, scene, 7).await;
        let flood: Vec<u8> = streams(9, FLOOD)
            .flat_map(|id| connect(id).encode())
            .collect();
        wire.flood(&flood).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
        drop((second, third));
    });
}

async fn scene_open(wire: &mut Wire, scene: &mut Scene, id: u32) -> hbone::Incoming {
    wire.send(&connect(id)).await;
    scene.incoming().await
}

#[test]
fn requests_that_cannot_be_understood() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        let nonsense = |id| headers(id, block(&[CONNECT[0], (":authority", "nowhere")])).end();
        let some: Vec<u8> = streams(1, 100)
            .flat_map(|id| nonsense(id).encode())
            .collect();
        wire.flood(&some).await;
        wire.expect_status(199, 400).await;
        let many: Vec<u8> = streams(201, FLOOD)
            .flat_map(|id| nonsense(id).encode())
            .collect();
        wire.flood(&many).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

/// Floods a connection that has one tunnel, on stream 1, and one that is closed, stream 3.
fn flooded(frame: &Frame) {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnelled(scene).await;
        wire.flood(&frame.times(USE)).await;
        wire.expect_alive().await;
        wire.send(&data(1, "as before")).await;
        wire.expect_data(1, b"as before").await;
        wire.flood(&frame.times(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

async fn tunnelled(scene: &Scene) -> Wire {
    let mut wire = scene.client().await;
    wire.send_all(&[connect(1), connect(3)]).await;
    wire.expect_status(1, 200).await;
    wire.expect_status(3, 200).await;
    wire.send(&reset(3, CANCEL)).await;
    wire
}

#[test]
fn settings() {
    flooded(&crate::support::frames::settings(&[]));
}

#[test]
fn settings_that_change_all_windows() {
    let change = |size| crate::support::frames::settings(&[(INITIAL_WINDOW_SIZE, size)]).encode();
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnelled(scene).await;
        let flood = [change(0), change(70_000)].concat().repeat(FLOOD / 2);
        wire.flood(&flood).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

#[test]
fn pings() {
    flooded(&ping([7; 8]));
}

#[test]
fn answers_to_pings_that_nobody_sent() {
    flooded(&ping([7; 8]).flag(ACK));
}

#[test]
fn pings_whose_answers_are_not_read() {
    let setup = Setup::default().server(|limits| {
        limits.ping_interval = std::time::Duration::from_millis(50);
        limits.ping_timeout = std::time::Duration::from_millis(500);
    });
    attacked(setup, async |scene| {
        let mut wire = scene.client().await;
        // Either the flood is noticed or the peer is taken for dead: it ends, and by itself.
        wire.flood(&ping([7; 8]).times(20 * FLOOD)).await;
        wire.expect_closed().await;
    });
}

#[test]
fn empty_data() {
    flooded(&data(1, []));
}

#[test]
fn data_of_nothing_but_padding() {
    flooded(&data(1, []).padded(0));
}

#[test]
fn window_updates_by_one() {
    flooded(&window(1, 1));
}

#[test]
fn window_updates_of_the_connection_by_one() {
    flooded(&window(0, 1));
}

#[test]
fn priorities() {
    flooded(&priority(1, 0));
}

#[test]
fn priorities_of_streams_to_come() {
    flooded(&priority(4001, 0));
}

#[test]
fn unknown_frames() {
    flooded(&Frame::new(0xbe, 0xff, 1, *b"whatever"));
}

#[test]
fn goaways() {
    flooded(&goaway(0, NO_ERROR));
}

#[test]
fn resets_of_a_closed_stream() {
    flooded(&reset(3, CANCEL));
}

#[test]
fn window_updates_of_a_closed_stream() {
    flooded(&window(3, 1));
}

#[test]
fn data_for_a_closed_stream() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnelled(scene).await;
        wire.flood(&data(3, []).times(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

#[test]
fn ends_of_a_closed_stream() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnelled(scene).await;
        wire.flood(&data(3, []).end().times(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

#[test]
fn control_frames_are_paid_for_by_data() {
    attacked(Setup::default(), async |scene| {
        let mut wire = tunnelled(scene).await;
        let turn = [data(1, "x").encode(), ping([1; 8]).encode()].concat();
        wire.flood(&turn.repeat(FLOOD)).await;
        wire.expect_data(1, &[b'x'; FLOOD]).await;
        wire.expect_alive().await;
    });
}

#[test]
fn continuations_without_end() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        let more = continuation(1, block(&[("x", "y")])).without(END_HEADERS);
        wire.send(&connect(1).without(END_HEADERS)).await;
        wire.flood(&more.times(FLOOD)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

#[test]
fn empty_continuations() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&connect(1).without(END_HEADERS)).await;
        let nothing = continuation(1, []).without(END_HEADERS);
        wire.send_raw(&nothing.times(9)).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}

#[test]
fn few_continuations_are_no_flood() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&connect(1).without(END_HEADERS)).await;
        let more = continuation(1, []).without(END_HEADERS);
        wire.send_raw(&more.times(7)).await;
        wire.send(&continuation(1, block(&[("x", "y")]))).await;
        wire.expect_status(1, 200).await;
    });
}

#[test]
fn a_block_that_is_too_long_is_not_even_decoded() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        // What decodes to nothing would be a compression error if it were.
        let garbage = vec![0xff; 9000];
        wire.send(&headers(1, garbage.clone()).without(END_HEADERS))
            .await;
        wire.flood(&continuation(1, garbage).encode()).await;
        wire.expect_thrown_out(ENHANCE_YOUR_CALM).await;
    });
}
