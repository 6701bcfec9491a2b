//! Heads that are too large or are made to become so; what is wrong with single fields is in `rfc9113`.

use crate::support::frames::*;
use crate::support::scene::{Scene, Setup, attacked};
use crate::support::wire::Wire;

const TOO_LARGE: u16 = 431;

/// The request gets `status`, and the connection is as good as before.
async fn is_refused(wire: &mut Wire, id: u32, status: u16) {
    wire.expect_status(id, status).await;
    wire.send(&connect(id + 2)).await;
    wire.expect_status(id + 2, 200).await;
}

fn with(fields: usize, length: usize) -> Frame {
    let value = "v".repeat(length);
    let field = block(&[("x-more", &value)]);
    headers(1, [block(CONNECT), field.repeat(fields)].concat())
}

async fn too_large(scene: &mut Scene, head: &Frame) {
    let mut wire = scene.client().await;
    let mut parts = head.payload.chunks(16_000);
    let first = parts.next().unwrap();
    wire.send(&bare(1, first).without(END_HEADERS)).await;
    for part in parts {
        let more = continuation(1, part).without(END_HEADERS);
        wire.send(&more).await;
    }
    wire.send(&continuation(1, [])).await;
    is_refused(&mut wire, 1, TOO_LARGE).await;
}

#[test]
fn a_list_of_many_bytes() {
    // 16 KiB less a little on the wire, more with what RFC 9113 counts for each field.
    attacked(Setup::default(), async |scene| {
        too_large(scene, &with(55, 280)).await;
    });
}

#[test]
fn a_list_of_many_fields() {
    attacked(Setup::default(), async |scene| {
        too_large(scene, &with(70, 1)).await;
    });
}

#[test]
fn a_list_within_the_limit() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        wire.send(&with(40, 200)).await;
        wire.expect_status(1, 200).await;
    });
}

#[test]
fn one_byte_for_a_field_of_the_table() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.silent().await;
        // Our table may be used until we acknowledge that there is none.
        wire.open(&[]).await;
        let large = "v".repeat(3900);
        let bomb = [block(CONNECT), indexed("x-large", &large), vec![0xbe; 8000]].concat();
        wire.send(&bare(1, bomb)).await;
        is_refused(&mut wire, 1, TOO_LARGE).await;
    });
}

#[test]
fn a_field_of_a_table_that_is_closed() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        let bomb = [block(CONNECT), indexed("x-large", "v"), vec![0xbe; 100]].concat();
        wire.send(&headers(1, bomb)).await;
        wire.expect_thrown_out(COMPRESSION_ERROR).await;
    });
}

#[test]
fn a_table_larger_than_allowed() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.silent().await;
        wire.open(&[]).await;
        let head = [table_size(4097), block(CONNECT)].concat();
        wire.send(&bare(1, head)).await;
        wire.expect_thrown_out(COMPRESSION_ERROR).await;
    });
}

#[test]
fn a_table_that_changes_its_size_without_end() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.silent().await;
        wire.open(&[]).await;
        let changes = [table_size(0), table_size(4096)].concat().repeat(1000);
        wire.send(&bare(1, [changes, block(CONNECT)].concat()))
            .await;
        wire.expect_thrown_out(COMPRESSION_ERROR).await;
    });
}

#[test]
fn a_table_that_is_filled_again_and_again() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.silent().await;
        wire.open(&[]).await;
        for id in [1, 3, 5, 7] {
            let fields: Vec<u8> = (0..60)
                .flat_map(|n| indexed("x-fill", &format!("{id}-{n}-{}", "v".repeat(100))))
                .collect();
            wire.send(&bare(id, [block(CONNECT), fields].concat()))
                .await;
            wire.expect_status(id, 200).await;
        }
    });
}

#[test]
fn an_integer_without_end() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        let endless = [vec![0xff], vec![0x80; 40], vec![0x01]].concat();
        wire.send(&headers(1, endless)).await;
        wire.expect_thrown_out(COMPRESSION_ERROR).await;
    });
}

#[test]
fn a_huge_string_that_never_comes() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.client().await;
        let mut head = vec![0];
        integer(&mut head, 0, 7, u32::MAX as usize);
        head.extend(b"x");
        wire.send(&headers(1, head)).await;
        wire.expect_thrown_out(COMPRESSION_ERROR).await;
    });
}
