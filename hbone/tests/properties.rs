//! However bytes are cut, mixed, slowed and broken off: what goes in comes out, or both sides learn of it.

mod support;

use std::io;
use std::time::Duration;

use hbone::TunnelIo;
use proptest::collection::vec;
use proptest::prelude::*;
use support::frames::*;
use support::scene::{Scene, Setup, round};
use support::wire::{PATIENCE, Wire};
use support::{Lab, local};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::task::spawn_local;
use tokio::time::timeout;

/// Enough to find what is broken, few enough for every day.
const CASES: u32 = 24;

/// How one direction of a stream ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Finish,
    /// Dropped after its bytes.
    Break,
}

/// One direction of a stream.
#[derive(Clone, Debug)]
struct Direction {
    bytes: usize,
    write: usize,
    read: usize,
    end: End,
}

fn direction() -> impl Strategy<Value = Direction> {
    let end = prop_oneof![4 => Just(End::Finish), 1 => Just(End::Break)];
    let bytes = prop_oneof![Just(0), 1..2000_usize, 1..400_000_usize];
    (bytes, 1..40_000_usize, 1..40_000_usize, end).prop_map(|(bytes, write, read, end)| {
        Direction {
            bytes,
            // Not so small that a case takes long.
            write: write.max(bytes / 200),
            read: read.max(bytes / 200),
            end,
        }
    })
}

/// The bytes of a stream's direction: each place has its own.
fn bytes(seed: usize, n: usize) -> Vec<u8> {
    (0..n).map(|at| (at * 31 + at / 251 + seed) as u8).collect()
}

async fn write(mut half: WriteHalf<TunnelIo>, plan: Direction, seed: usize) -> io::Result<()> {
    for part in bytes(seed, plan.bytes).chunks(plan.write) {
        half.write_all(part).await?;
    }
    match plan.end {
        End::Finish => half.shutdown().await,
        End::Break => Err(io::ErrorKind::Interrupted.into()),
    }
}

async fn read(mut half: ReadHalf<TunnelIo>, piece: usize) -> (Vec<u8>, io::Result<()>) {
    let (mut got, mut space) = (Vec::new(), vec![0; piece]);
    loop {
        match half.read(&mut space).await {
            Ok(0) => return (got, Ok(())),
            Ok(n) => got.extend(&space[..n]),
            Err(error) => return (got, Err(error)),
        }
    }
}

/// One end of a stream; when either direction breaks, the whole is dropped. What was read, and how it ended.
async fn end(io: TunnelIo, out: Direction, piece: usize, seed: usize) -> (Vec<u8>, io::Result<()>) {
    let (reading, writing) = split(io);
    let reading = spawn_local(read(reading, piece));
    let written = write(writing, out, seed).await;
    if written.is_err() {
        // The other half goes, too: a reset.
        reading.abort();
    }
    match reading.await {
        Ok((got, read)) => (got, read.and(written)),
        Err(_) => (
            Vec::new(),
            written.and(Err(io::ErrorKind::Interrupted.into())),
        ),
    }
}

async fn streams(plans: Vec<(Direction, Direction)>) -> Result<(), TestCaseError> {
    let mut lab = Lab::new().await;
    let mut ends = Vec::new();
    for (seed, (up, down)) in plans.into_iter().enumerate() {
        let (near, far) = lab.tunnels().await;
        let near = spawn_local(end(near.into_io(), up.clone(), down.read, seed));
        let far = spawn_local(end(far.into_io(), down.clone(), up.read, seed + 100));
        ends.push((seed, up, down, near, far));
    }
    for (seed, up, down, near, far) in ends {
        let ((down_got, near_end), (up_got, far_end)) = (near.await.unwrap(), far.await.unwrap());
        let breaks = up.end == End::Break || down.end == End::Break;
        let (up_all, down_all) = (bytes(seed, up.bytes), bytes(seed + 100, down.bytes));
        prop_assert!(up_all.starts_with(&up_got), "other bytes went up");
        prop_assert!(down_all.starts_with(&down_got), "other bytes came down");
        if !breaks {
            prop_assert!(near_end.is_ok(), "{near_end:?}");
            prop_assert!(far_end.is_ok(), "{far_end:?}");
        }
        // An end in order is told only where all has arrived.
        if near_end.is_ok() {
            prop_assert_eq!(down_got.len(), down.bytes);
        }
        if far_end.is_ok() {
            prop_assert_eq!(up_got.len(), up.bytes);
        }
        if breaks {
            prop_assert!(
                near_end.is_err() && far_end.is_err(),
                "{near_end:?}, {far_end:?}"
            );
        }
    }
    Ok(())
}

/// A conversation of a raw client with an echo, as bytes.
fn conversation(bodies: &[usize], padding: u8) -> Vec<u8> {
    let ids = (1..).step_by(2);
    let mut frames = vec![
        settings(&[(INITIAL_WINDOW_SIZE, MAX_WINDOW)]),
        settings_ack(),
    ];
    frames.push(window(0, MAX_WINDOW - 0xffff));
    frames.extend(ids.clone().zip(bodies).map(|(id, _)| connect(id)));
    for (id, body) in ids.zip(bodies) {
        let bytes = bytes(id as usize, *body);
        let parts = bytes.chunks(9000);
        frames.extend(parts.map(|part| data(id, part).padded(padding)));
        frames.push(data(id, []).end());
    }
    let frames = frames.iter().flat_map(Frame::encode);
    PREFACE.iter().copied().chain(frames).collect()
}

async fn chunks(bodies: Vec<usize>, cuts: Vec<usize>, padding: u8) {
    let scene = Scene::start(Setup::default()).await;
    let mut wire = scene.silent().await;
    let all = conversation(&bodies, padding);
    let mut cuts = cuts.into_iter().cycle();
    let mut rest = &all[..];
    while !rest.is_empty() {
        let (part, later) =
            rest.split_at(cuts.next().unwrap().max(all.len() / 300).min(rest.len()));
        wire.flood(part).await;
        rest = later;
    }
    for (id, body) in (1..).step_by(2).zip(bodies) {
        all_back(&mut wire, id, &bytes(id as usize, body)).await;
    }
}

async fn all_back(wire: &mut Wire, id: u32, sent: &[u8]) {
    wire.expect_status(id, 200).await;
    let mut got: Vec<u8> = Vec::new();
    loop {
        let what = format!("DATA({id})");
        let frame = wire
            .until(&what, |f| {
                (f.stream == id && matches!(f.kind, DATA | RST_STREAM)).then(|| f.clone())
            })
            .await;
        assert_eq!(frame.kind, DATA, "{frame:?}");
        got.extend(&frame.payload);
        if frame.has(END_STREAM) {
            break;
        }
    }
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );
}

/// A peer that grants windows as it likes gets all bytes, and never more than it has granted.
async fn grants(initial: u32, later: u32, grants: Vec<u32>, body: usize) {
    let scene = Scene::start(Setup::default()).await;
    let mut wire = scene.silent().await;
    wire.greet(&[(INITIAL_WINDOW_SIZE, initial)]).await;
    wire.send_all(&[window(0, MAX_WINDOW - 0xffff), connect(1)])
        .await;
    wire.expect_status(1, 200).await;
    let sent = bytes(7, body);
    for part in sent.chunks(16_384) {
        wire.send_within(&data(1, part)).await;
    }
    wire.send(&data(1, []).end()).await;
    let (mut granted, mut got) = (i64::from(initial), Vec::<u8>::new());
    wire.send(&settings(&[(INITIAL_WINDOW_SIZE, later)])).await;
    wire.expect_ack().await;
    let most = i64::from(initial.max(later));
    granted += i64::from(later) - i64::from(initial);
    let mut grants = grants.into_iter().cycle();
    loop {
        while granted <= got.len() as i64 && got.len() < body {
            // Not so small that a case takes long.
            let more = grants.next().unwrap().max(body as u32 / 100);
            granted += i64::from(more);
            wire.send(&window(1, more)).await;
        }
        let frame = wire
            .until("DATA(1)", |f| {
                (f.stream == 1 && matches!(f.kind, DATA | RST_STREAM)).then(|| f.clone())
            })
            .await;
        assert_eq!(frame.kind, DATA, "{frame:?}");
        got.extend(&frame.payload);
        assert!(got.len() as i64 <= granted.max(most), "more than granted");
        if frame.has(END_STREAM) {
            break;
        }
    }
    assert!(got == sent, "{} of {} bytes came back", got.len(), body);
}

/// A stream that may be open, closed, idle or nonsense.
fn stream() -> impl Strategy<Value = u32> {
    prop_oneof![6 => (0..10_u32).prop_map(|n| 2 * n + 1), 1 => 0..20_u32, 1 => any::<u32>()]
}

/// Any setting, and often one that means something.
fn setting() -> impl Strategy<Value = (u16, u32)> {
    let id = prop_oneof![6 => 1..7_u16, 1 => any::<u16>()];
    let value = prop_oneof![0..3_u32, 16_384..100_000_u32, any::<u32>()];
    (id, value)
}

/// Any frame: most make sense by themselves, some do not, few lie about their length.
fn frame() -> impl Strategy<Value = Frame> {
    let bytes = || vec(any::<u8>(), 0..300);
    prop_oneof![
        8 => stream().prop_map(connect),
        2 => stream().prop_map(|id| connect(id).end()),
        2 => (stream(), any::<u8>()).prop_map(|(id, pad)| connect(id).prioritized(id).padded(pad)),
        8 => (stream(), bytes()).prop_map(|(id, bytes)| data(id, bytes)),
        2 => (stream(), bytes()).prop_map(|(id, bytes)| data(id, bytes).end()),
        2 => (stream(), bytes(), any::<u8>()).prop_map(|(id, bytes, pad)| data(id, bytes).padded(pad)),
        2 => stream().prop_map(|id| headers(id, block(&[("x", "y")])).end()),
        2 => stream().prop_map(|id| headers(id, OK)),
        1 => stream().prop_map(|id| headers(id, block(&[(":status", "403")])).end()),
        4 => (stream(), 0..14_u32).prop_map(|(id, code)| reset(id, code)),
        4 => (stream(), prop_oneof![0..100_000_u32, any::<u32>()]).prop_map(|(id, by)| window(id, by)),
        2 => vec(setting(), 0..4).prop_map(|all| settings(&all)),
        1 => Just(settings_ack()),
        1 => any::<[u8; 8]>().prop_map(ping),
        1 => any::<[u8; 8]>().prop_map(|payload| ping(payload).flag(ACK)),
        1 => (stream(), 0..14_u32).prop_map(|(last, code)| goaway(last, code)),
        1 => (stream(), stream()).prop_map(|(id, on)| priority(id, on)),
        1 => (stream(), bytes()).prop_map(|(id, block)| bare(id, block)),
        1 => (stream(), any::<u8>(), any::<u8>(), bytes())
            .prop_map(|(id, kind, flags, bytes)| Frame::new(kind % 12, flags, id, bytes)),
        1 => (stream(), bytes(), 0..400_u32).prop_map(|(id, bytes, says)| data(id, bytes).says(says)),
    ]
}

/// Whatever frames there were: it still answers, or has said why not, or waits for the rest of one.
async fn has_a_reason(wire: &mut Wire) {
    let last = ping(*b"and now?");
    wire.flood(&last.encode()).await;
    let answer = async {
        let mut parting = false;
        while let Some(frame) = wire.frame().await {
            parting |= frame.kind == GOAWAY;
            if frame.kind == PING && frame.has(ACK) && frame.payload == last.payload {
                return true;
            }
        }
        parting
    };
    if let Ok(fine) = timeout(Duration::from_millis(200), answer).await {
        assert!(fine, "it left without a word: {}", wire.capture());
    }
}

async fn served(frames: Vec<Frame>) {
    let mut scene = Scene::start(Setup::default()).await;
    let mut bystander = scene.bystander().await;
    let mut wire = scene.client().await;
    let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
    wire.flood(&bytes).await;
    has_a_reason(&mut wire).await;
    drop(wire);
    round(&mut bystander, "after").await;
    scene.settles().await;
}

async fn asked(frames: Vec<Frame>) {
    let mut scene = Scene::start(Setup::default()).await;
    let mut bystander = scene.bystander().await;
    let (mut wire, wanted) = scene.server(&[]).await;
    let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
    wire.flood(&bytes).await;
    has_a_reason(&mut wire).await;
    drop(wire);
    // It was opened, refused or failed, and what was opened has come to an end.
    let outcome = tokio::select! {
        outcome = wanted => Some(outcome.unwrap()),
        // Or it is asked for once more.
        again = scene.caught() => {
            drop(again);
            None
        }
    };
    if let Some(Ok(opened)) = outcome {
        let (half, _keep) = split(opened.tunnel.into_io());
        let _ = timeout(PATIENCE, read(half, 1000))
            .await
            .expect("it never ends");
    }
    round(&mut bystander, "after").await;
    scene.settles().await;
}

fn cases(n: u32) -> ProptestConfig {
    let more = std::env::var("HOSTILE_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: more.unwrap_or(n),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(2 * CASES))]

    #[test]
    fn any_frames_for_a_server(frames in vec(frame(), 1..60)) {
        local(served(frames));
    }

    #[test]
    fn any_frames_for_a_client(frames in vec(frame(), 1..60), answers in any::<bool>()) {
        let answer = answers.then(|| headers(1, OK));
        local(asked(answer.into_iter().chain(frames).collect()));
    }
}

proptest! {
    #![proptest_config(cases(CASES))]

    #[test]
    fn bytes_out_are_bytes_in_or_an_error_on_both_sides(
        plans in vec((direction(), direction()), 1..6),
    ) {
        local(streams(plans))?;
    }

    #[test]
    fn bytes_may_be_cut_anywhere(
        // Together less than the first window of a connection.
        bodies in vec(0..9000_usize, 1..6),
        cuts in vec(1..3000_usize, 1..20),
        padding in any::<u8>(),
    ) {
        local(chunks(bodies, cuts, padding));
    }

    #[test]
    fn windows_may_be_granted_in_any_way(
        initial in 0..100_000_u32,
        later in 0..100_000_u32,
        more in vec(1..30_000_u32, 1..20),
        body in 0..200_000_usize,
    ) {
        local(grants(initial, later, more, body));
    }
}
