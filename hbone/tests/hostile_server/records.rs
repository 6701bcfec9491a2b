//! What is wrong below HTTP/2: records, keys, and the end of TLS.

use tokio::io::AsyncReadExt;

use crate::support::frames::*;
use crate::support::scene::{Setup, attacked};

/// Header of a record of application data.
const RECORD: [u8; 3] = [23, 3, 3];

/// Everything that is not a record by the peer ends the connection.
fn ends(bytes: &[u8]) {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.tunnel().await;
        wire.send_tcp(bytes).await;
        wire.expect_closed().await;
        scene.error().await;
    });
}

fn record(length: u16, payload: &[u8]) -> Vec<u8> {
    [&RECORD[..], &length.to_be_bytes(), payload].concat()
}

#[test]
fn a_forged_record() {
    ends(&record(40, &[7; 40]));
}

#[test]
fn a_record_of_nothing() {
    ends(&record(0, &[]));
}

#[test]
fn a_record_shorter_than_its_proof() {
    ends(&record(16, &[7; 16]));
}

#[test]
fn a_record_longer_than_allowed() {
    ends(&record(16_384 + 257, &[]));
}

#[test]
fn a_record_of_another_type() {
    ends(&[&[22, 3, 3, 0, 40][..], &[7; 40]].concat());
}

#[test]
fn an_alert_in_the_clear() {
    ends(&[21, 3, 3, 0, 2, 1, 0]);
}

#[test]
fn bytes_that_are_no_record() {
    ends(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
}

#[test]
fn records_in_the_clear() {
    let frame = ping([1; 8]).encode();
    ends(&record(frame.len() as u16, &frame));
}

#[test]
fn new_keys_now_and_then() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.tunnel().await;
        for round in 0..8_u8 {
            wire.update_keys().await;
            wire.send(&data(1, vec![round; 5000])).await;
            wire.expect_data(1, &[round; 5000]).await;
        }
    });
}

#[test]
fn new_keys_all_the_time() {
    attacked(Setup::default(), async |scene| {
        let mut wire = scene.tunnel().await;
        for _ in 0..200 {
            wire.update_keys().await;
        }
        wire.expect_closed().await;
        scene.error().await;
    });
}

#[test]
fn the_end_of_tls_is_no_end_of_a_stream() {
    attacked(Setup::held(), async |scene| {
        let (mut wire, tunnel) = scene.held_tunnel().await;
        wire.send(&data(1, "all")).await;
        wire.shutdown().await;
        let mut got = Vec::new();
        let error = tunnel.into_io().read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    });
}
