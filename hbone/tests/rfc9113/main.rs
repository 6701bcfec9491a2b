//! What RFC 9113 (and 7541) demand of ends that know only CONNECT: one table for each role.

// One row, one line.
#[rustfmt::skip]
mod client;
#[rustfmt::skip]
mod server;

#[path = "../support/mod.rs"]
mod support;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt;
use futures_util::future::join_all;
use support::frames::*;
use support::scene::{Scene, Setup, attacked};
use support::wire::Wire;

/// A section, what happens, the frames that do it, and what the other end must do about it.
struct Row {
    section: &'static str,
    what: &'static str,
    /// The first words of the peer's side; nothing for good ones.
    opening: Option<Vec<u8>>,
    send: Vec<Frame>,
    expect: Reaction,
}

/// What is expected. After anything but a GOAWAY the connection must work as before.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    /// GOAWAY with this code, then the end.
    Goaway(u32),
    /// The end, however it comes.
    Closed,
    /// A reset of this stream with this code.
    Reset(u32, u32),
    /// An answer on this stream with this status.
    Status(u32, u16),
    /// Bytes said back on this stream.
    Echo(u32, &'static str),
    /// Nothing.
    Ignored,
}

use Reaction::{Closed, Echo, Goaway, Ignored, Reset, Status};

fn row(section: &'static str, what: &'static str, send: Vec<Frame>, expect: Reaction) -> Row {
    Row {
        section,
        what,
        opening: None,
        send,
        expect,
    }
}

/// A row about the first words themselves.
fn opening(section: &'static str, what: &'static str, words: Vec<u8>, expect: Reaction) -> Row {
    Row {
        opening: Some(words),
        ..row(section, what, Vec::new(), expect)
    }
}

/// A row of one request whose head has this block.
fn head(what: &'static str, section: &'static str, block: Vec<u8>, expect: Reaction) -> Row {
    row(section, what, vec![headers(1, block)], expect)
}

impl Row {
    fn name(&self) -> String {
        format!("§{} {}: {:?}", self.section, self.what, self.expect)
    }
}

impl Reaction {
    async fn check(self, wire: &mut Wire) {
        match self {
            Goaway(code) => wire.expect_thrown_out(code).await,
            Closed => wire.expect_closed().await,
            Reset(stream, code) => wire.expect_reset(stream, code).await,
            Status(stream, status) => wire.expect_status(stream, status).await,
            Echo(stream, text) => wire.expect_data(stream, text.as_bytes()).await,
            Ignored => {}
        }
    }

    fn leaves_the_connection(self) -> bool {
        !matches!(self, Goaway(_) | Closed)
    }
}

/// Runs all rows of a table side by side and tells which fail.
async fn all<F: Future<Output = ()>>(rows: Vec<Row>, run: impl Fn(Row) -> F) {
    let names: Vec<_> = rows.iter().map(Row::name).collect();
    let runs = rows
        .into_iter()
        .map(|row| AssertUnwindSafe(run(row)).catch_unwind());
    let outcomes = join_all(runs).await;
    let failed = names.iter().zip(outcomes);
    let failed: Vec<_> = failed
        .filter_map(|(name, outcome)| Some(because(name, &*outcome.err()?)))
        .collect();
    none(&failed);
}

fn because(name: &str, panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map_or("", String::as_str);
    format!("{name}\n    {}", said.replace('\n', "\n    "))
}

fn none(failed: &[String]) {
    let text = failed.join("\n");
    assert!(failed.is_empty(), "{} rows fail:\n{text}", failed.len());
}

async fn serves(scene: &Scene, row: Row) {
    let mut wire = scene.silent().await;
    match row.opening {
        Some(words) => wire.flood(&words).await,
        None => wire.greet(&[]).await,
    }
    let bytes: Vec<u8> = row.send.iter().flat_map(Frame::encode).collect();
    wire.flood(&bytes).await;
    row.expect.check(&mut wire).await;
    if !row.expect.leaves_the_connection() {
        return;
    }
    wire.expect_alive().await;
    // Who has said goodbye asks for nothing more.
    if row.send.iter().all(|frame| frame.kind != GOAWAY) {
        wire.send(&connect(101)).await;
        wire.expect_status(101, 200).await;
    }
}

#[test]
fn as_server() {
    attacked(Setup::default(), async |scene| {
        let scene = &*scene;
        all(server::table(), |row| serves(scene, row)).await;
    });
}

async fn asks(scene: &Scene, row: Row) {
    let (mut wire, wanted) = scene.silent_server().await;
    match row.opening {
        Some(words) => wire.flood(&words).await,
        None => {
            wire.greet(&[]).await;
            wire.expect_headers(1).await;
        }
    }
    let bytes: Vec<u8> = row.send.iter().flat_map(Frame::encode).collect();
    wire.flood(&bytes).await;
    row.expect.check(&mut wire).await;
    if row.expect.leaves_the_connection() {
        wire.expect_alive().await;
    }
    let opens = row.send.contains(&headers(1, OK));
    drop(wire);
    if opens {
        // Whether before or after, it was opened.
        let _ = wanted.await.unwrap();
    } else {
        wanted.abort();
    }
}

/// Each row has a pool of its own, so these take turns.
#[test]
fn as_client() {
    let mut failed = Vec::new();
    for row in client::table() {
        let name = row.name();
        let run = || {
            attacked(Setup::default(), async |scene| asks(scene, row).await);
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            failed.push(because(&name, &*panic));
        }
    }
    none(&failed);
}
