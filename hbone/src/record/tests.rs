//! Records that a peer may send, and those it may not.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::tls::handshake::{dial, serve};
use crate::tls::lab::{CLIENT, Ca, End, SERVER, config, ends, expect, pair, stock_client};

const UPDATE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];
const UPDATE_ASKED: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 1];

/// Lifetime, age, nonce, ticket, no extensions.
const TICKET: &[u8] = &[
    NEW_SESSION_TICKET,
    0,
    0,
    16,
    0,
    0,
    28,
    32,
    1,
    2,
    3,
    4,
    1,
    9,
    0,
    2,
    7,
    7,
    0,
    0,
];

#[tokio::test]
async fn a_record_is_opened_once_and_only_whole() {
    let (mut near, mut far) = ends().await;
    let record = near.seal(b"text").unwrap();
    for len in 0..record.len() {
        let mut part = record[..len].to_vec();
        assert_eq!(far.records().open(&mut part), Ok(Opened::More));
    }
    assert_eq!(opened(&mut far, &record), data(b"text"));
    assert_eq!(opened(&mut far, &record), Err(RecordError::BadTag));
    // Not even one bit of the head is another.
    let mut record = near.seal(b"text").unwrap();
    record[2] = 4;
    assert_eq!(opened(&mut far, &record), Err(RecordError::BadTag));
    // Nor are two exchanged.
    let (_first, second) = (near.seal(b"a").unwrap(), near.seal(b"b").unwrap());
    assert_eq!(opened(&mut far, &second), Err(RecordError::BadTag));
}

#[tokio::test]
async fn padding_is_taken_off() {
    let (mut near, mut far) = ends().await;
    for text in [&b"text"[..], b"", &[0, 0]] {
        let padded = [text, &[23], &[0; 300]].concat();
        let record = near.records().tx.seal_inner(padded);
        assert_eq!(opened(&mut far, &record), data(text));
    }
    let most = [&[1; MOST][..], &[23]].concat();
    let record = near.records().tx.seal_inner(most);
    assert_eq!(opened(&mut far, &record), data(&[1; MOST]));
}

#[tokio::test]
async fn only_what_is_one_record_is_sealed() {
    let (mut near, mut far) = ends().await;
    for len in [0, HEAD, HEAD + TAIL, HEAD + TAIL + MOST + 1, 1 << 17] {
        let sealed = near.records().seal(&mut vec![0; len]);
        assert_eq!(sealed, Err(RecordError::Misused), "{len}");
    }
    // That used up no number.
    let record = near.seal(b"x").unwrap();
    assert_eq!(opened(&mut far, &record), data(b"x"));
}

#[tokio::test]
async fn what_no_peer_may_send_is_refused_by_name() {
    use RecordError::*;
    let long = [&[1; MOST + 1][..], &[23]].concat();
    let oversized = (u32::try_from(MAX_MESSAGE).unwrap() + 1).to_be_bytes();
    let oversized = [&[NEW_SESSION_TICKET][..], &oversized[1..], &[22]].concat();
    let inner: &[(&[u8], RecordError)] = &[
        (&[0], NoType),
        (&[0; 100], NoType),
        (&[], NoType),
        (&long, TooLong),
        (&[1, 20], UnexpectedType(20)),
        (&[1, 24], UnexpectedType(24)),
        (&[255], UnexpectedType(255)),
        (&[22], Malformed("handshake record")),
        (&[KEY_UPDATE, 0, 0, 1, 2, 22], Malformed("KeyUpdate")),
        (&[KEY_UPDATE, 0, 0, 0, 22], Malformed("KeyUpdate")),
        (&[KEY_UPDATE, 0, 0, 2, 0, 0, 22], Malformed("KeyUpdate")),
        (&[KEY_UPDATE, 0, 0, 1, 0, 9, 22], Interleaved),
        (&oversized, Flood("bytes in a message after the handshake")),
        (&[0, 0, 0, 0, 22], UnexpectedMessage(0)),
        (&[1, 0, 0, 0, 22], UnexpectedMessage(1)),
        (&[13, 0, 0, 1, 0, 22], UnexpectedMessage(13)),
        (&[20, 0, 0, 1, 0, 22], UnexpectedMessage(20)),
        (&[21], Malformed("alert")),
        (&[2, 21], Malformed("alert")),
        (&[2, 40, 40, 21], Malformed("alert")),
        (&[2, 42, 21], Alert(AlertDescription::BadCertificate)),
        // Fatal whatever it says of itself.
        (&[1, 48, 21], Alert(AlertDescription::UnknownCA)),
        (&[1, 200, 21], Alert(AlertDescription::Unknown(200))),
    ];
    for (inner, error) in inner {
        let (mut near, mut far) = ends().await;
        let record = near.records().tx.seal_inner(inner.to_vec());
        assert_eq!(opened(&mut far, &record), Err(*error), "{inner:?}");
        tells(&mut far, &mut near, *error);
    }
    let outer: &[(&[u8], RecordError)] = &[
        (&[20, 3, 3, 0, 1, 1], Unprotected(20)),
        (&[21, 3, 3, 0, 2, 2, 40], Unprotected(21)),
        (&[22, 3, 3, 0, 1], Unprotected(22)),
        (b"HTTP/1.1", Unprotected(b'H')),
        (&[23, 3, 3, 0x41, 0x01], TooLong),
        (&[23, 3, 3, 0, 0], BadTag),
        (&[23, 3, 3, 0, 1, 0], BadTag),
    ];
    for (bytes, error) in outer {
        let (mut near, mut far) = ends().await;
        assert_eq!(opened(&mut far, bytes), Err(*error), "{bytes:?}");
        tells(&mut far, &mut near, *error);
    }
}

#[tokio::test]
async fn tickets_are_for_clients_only() {
    let (mut near, mut far) = ends().await;
    let two = [TICKET, TICKET].concat();
    let record = far.records().sealed(Kind::Handshake, &two).unwrap();
    assert_eq!(opened(&mut near, &record), Ok(Saw::Handled));
    let record = near.records().sealed(Kind::Handshake, TICKET).unwrap();
    let unexpected = RecordError::UnexpectedMessage(NEW_SESSION_TICKET);
    assert_eq!(opened(&mut far, &record), Err(unexpected));

    let broken = [&TICKET[..3], &[17], &TICKET[4..], &[0]].concat();
    let record = far.records().sealed(Kind::Handshake, &broken).unwrap();
    let malformed = RecordError::Malformed("NewSessionTicket");
    assert_eq!(opened(&mut near, &record), Err(malformed));
}

#[tokio::test]
async fn messages_may_come_in_parts() {
    let (mut near, mut far) = ends().await;
    let all = [TICKET, TICKET, &UPDATE_ASKED].concat();
    for part in all.chunks(6) {
        let record = far.records().sealed(Kind::Handshake, part).unwrap();
        assert_eq!(opened(&mut near, &record), Ok(Saw::Handled));
    }
    assert!(near.records().partial.is_empty());
    switch(far.records());
    let answer = near.records().take_urgent().unwrap();
    assert_eq!(opened(&mut far, &answer), Ok(Saw::Handled));
    talk(&mut near, &mut far);

    // But with nothing in between.
    for (kind, content) in [(Kind::Data, &b"x"[..]), (Kind::Alert, &[1, 0])] {
        let (mut near, mut far) = ends().await;
        let record = far.records().sealed(Kind::Handshake, &TICKET[..7]).unwrap();
        assert_eq!(opened(&mut near, &record), Ok(Saw::Handled));
        let record = far.records().sealed(kind, content).unwrap();
        assert_eq!(opened(&mut near, &record), Err(RecordError::Interleaved));
    }
}

#[tokio::test]
async fn keys_are_updated_one_way_and_on_request_the_other() {
    let (mut near, mut far) = ends().await;
    for (update, is_answered) in [(UPDATE, false), (UPDATE_ASKED, true), (UPDATE, false)] {
        let record = near.records().sealed(Kind::Handshake, &update).unwrap();
        switch(near.records());
        assert_eq!(opened(&mut far, &record), Ok(Saw::Handled));
        let before = plain(&mut far, b"sealed before the answer");
        let answer = far.records().take_urgent();
        assert_eq!(answer.is_some(), is_answered);
        assert_eq!(far.records().take_urgent(), None);
        assert_eq!(
            opened(&mut near, &before),
            data(b"sealed before the answer")
        );
        if let Some(answer) = answer {
            assert_eq!(opened(&mut near, &answer), Ok(Saw::Handled));
        }
        // An answer asks for nothing.
        assert_eq!(near.records().take_urgent(), None);
        talk(&mut near, &mut far);
    }
    // What is sealed with a key of the past is worth nothing.
    let record = near.records().sealed(Kind::Handshake, &UPDATE).unwrap();
    let late = near.seal(b"late").unwrap();
    assert_eq!(opened(&mut far, &record), Ok(Saw::Handled));
    assert_eq!(opened(&mut far, &late), Err(RecordError::BadTag));
}

#[tokio::test]
async fn a_key_is_left_before_it_is_used_up() {
    let (mut near, mut far) = ends().await;
    near.records().rekey_after = 3;
    for text in 0..20_u8 {
        let sealed = near.seal(&[text]).unwrap();
        near.write(&sealed).await;
        far.gets(&[text]).await;
        assert!(near.records().tx.sequence() <= 3);
    }
    assert_eq!(far.records().take_urgent(), None);
    talk(&mut near, &mut far);

    near.records().tx.skip_to(MAX_RECORDS - 1);
    assert!(near.records().seal(&mut [0; HEAD + 1 + TAIL]).is_ok());
    let sealed = near.records().seal(&mut [0; HEAD + 1 + TAIL]);
    assert_eq!(sealed, Err(RecordError::Exhausted));
    assert_eq!(near.records().close_notify(), Err(RecordError::Exhausted));
    assert_eq!(near.records().take_urgent(), None);
    near.records().rx.skip_to(u64::MAX);
    let record = far.seal(b"x").unwrap();
    assert_eq!(opened(&mut near, &record), Err(RecordError::Exhausted));
}

#[tokio::test]
async fn chatter_is_limited_and_forgiven() {
    let (mut near, mut far) = ends().await;
    let update = |near: &mut End| {
        let record = near.records().sealed(Kind::Handshake, &UPDATE_ASKED);
        switch(near.records());
        record.unwrap()
    };
    let flood = Err(RecordError::Flood("messages after the handshake"));
    for _ in 0..CHATTER_BURST {
        let record = update(&mut near);
        assert_eq!(opened(&mut far, &record), Ok(Saw::Handled));
    }
    // All these requests have one answer.
    assert!(far.records().take_urgent().is_some());
    assert_eq!(far.records().take_urgent(), None);
    far.records().chatter.since -= CHATTER_PAUSE;
    let record = update(&mut near);
    assert_eq!(opened(&mut far, &record), Ok(Saw::Handled));
    let record = update(&mut near);
    assert_eq!(opened(&mut far, &record), flood);

    let (mut near, mut far) = ends().await;
    let canceled = |near: &mut End| near.records().sealed(Kind::Alert, &[1, USER_CANCELED]);
    for _ in 0..CHATTER_BURST {
        let record = canceled(&mut near).unwrap();
        assert_eq!(opened(&mut far, &record), Ok(Saw::Handled));
    }
    let record = canceled(&mut near).unwrap();
    let flood = Err(RecordError::Flood("warnings"));
    assert_eq!(opened(&mut far, &record), flood);

    // Parts of a message that never becomes whole.
    let (mut near, mut far) = ends().await;
    let parts = [&TICKET[..1], &[0, 16, 0], &[0; 100]].concat();
    for (at, part) in (0..=CHATTER_BURST).zip(parts.chunks(1)) {
        let record = near.records().sealed(Kind::Handshake, part).unwrap();
        assert_eq!(opened(&mut far, &record).is_ok(), at < CHATTER_BURST);
    }
}

#[tokio::test]
async fn empty_records_are_few() {
    let (mut near, mut far) = ends().await;
    for round in 0..2 {
        for _ in 0..MAX_EMPTY {
            let record = near.records().tx.seal_inner(vec![23]);
            assert_eq!(opened(&mut far, &record), data(b""), "{round}");
        }
        talk(&mut near, &mut far);
    }
    for _ in 0..MAX_EMPTY {
        let record = near.records().tx.seal_inner(vec![23]);
        assert_eq!(opened(&mut far, &record), data(b""));
    }
    let record = near.records().tx.seal_inner(vec![23]);
    let flood = Err(RecordError::Flood("records without content"));
    assert_eq!(opened(&mut far, &record), flood);
}

#[tokio::test]
async fn the_end_is_the_end() {
    let (mut near, mut far) = ends().await;
    let canceled = near.records().sealed(Kind::Alert, &[1, USER_CANCELED]);
    assert_eq!(opened(&mut far, &canceled.unwrap()), Ok(Saw::Handled));
    let close = near.records().close_notify().unwrap();
    assert_eq!(opened(&mut far, &close), Ok(Saw::Closed));
    assert_eq!(opened(&mut far, b"whatever follows"), Ok(Saw::Closed));
    // The other direction is still open.
    let record = far.seal(b"x").unwrap();
    assert_eq!(opened(&mut near, &record), data(b"x"));
}

#[tokio::test]
async fn a_stock_server_updates_its_keys() {
    let ca = Ca::new();
    let identity = ca.identity(CLIENT);
    let acceptor = TlsAcceptor::from(config(&ca.identity(SERVER)));
    let (near, far, addr) = pair().await;
    let far = async {
        let mut far = acceptor.accept(far).await.unwrap();
        for text in *b"abc" {
            far.get_mut().1.refresh_traffic_keys().unwrap();
            far.write_all(&[text]).await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), text);
        }
        far
    };
    let expect = expect(SERVER);
    let near = async {
        let mut near = End::of(dial(near, addr, &identity, &expect).await.unwrap()).await;
        near.records().rekey_after = 2;
        for text in *b"abc" {
            near.gets(&[text]).await;
            near.send(&[text]).await;
        }
    };
    tokio::join!(far, near);
}

#[tokio::test]
async fn a_stock_client_updates_its_keys() {
    let ca = Ca::new();
    let server = config(&ca.identity(SERVER));
    let connector = TlsConnector::from(Arc::new(stock_client(&ca.identity(CLIENT))));
    let (near, far, addr) = pair().await;
    let near = async {
        let name = ServerName::IpAddress(addr.ip().into());
        let mut near = connector.connect(name, near).await.unwrap();
        for text in *b"abc" {
            near.get_mut().1.refresh_traffic_keys().unwrap();
            near.write_all(&[text]).await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), text);
        }
        near
    };
    let far = async {
        let mut far = End::of(serve(far, addr, server).await.unwrap()).await;
        far.records().rekey_after = 2;
        for text in *b"abc" {
            far.gets(&[text]).await;
            far.send(&[text]).await;
        }
    };
    tokio::join!(near, far);
}

#[test]
fn no_bytes_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (near, far) = runtime.block_on(ends());
    let ends = std::cell::RefCell::new((near, far));
    let bytes = prop::collection::vec(any::<u8>(), 0..100);
    let inner = prop_oneof![
        bytes.clone(),
        (bytes, 20_u8..=24).prop_map(|(mut bytes, kind)| {
            bytes.push(kind);
            bytes
        })
    ];
    TestRunner::default()
        .run(&inner, |inner| {
            let (near, far) = &mut *ends.borrow_mut();
            let _ = far.records().open(&mut inner.clone());
            near.records().tx.skip_to(far.records().rx.sequence());
            let record = near.records().tx.seal_inner(inner);
            let _ = opened(far, &record);
            if far.records().rx.sequence() == 0 {
                switch(near.records());
            }
            // The next case begins anew.
            let records = far.records();
            records.partial.clear();
            records.chatter = Chatter::new();
            records.closed = false;
            records.empty = 0;
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_change_of_a_record_goes_unseen() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ends = std::cell::RefCell::new(runtime.block_on(ends()));
    let texts = prop::collection::vec(any::<u8>(), 1..300);
    let changes = (texts, any::<prop::sample::Index>(), 1..=u8::MAX);
    TestRunner::default()
        .run(&changes, |(text, at, by)| {
            let (near, far) = &mut *ends.borrow_mut();
            let record = near.seal(&text).unwrap();
            let mut forged = record.clone();
            forged[at.index(record.len())] ^= by;
            let saw = opened(far, &forged);
            prop_assert!(matches!(saw, Err(_) | Ok(Saw::More)), "{saw:?}");
            // Nor does it spoil what was meant.
            prop_assert_eq!(opened(far, &record), data(&text));
            Ok(())
        })
        .unwrap();
}

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
enum Saw {
    Data(Vec<u8>),
    Handled,
    Closed,
    More,
}

fn opened(end: &mut End, bytes: &[u8]) -> Result<Saw, RecordError> {
    let mut buf = bytes.to_vec();
    Ok(match end.records().open(&mut buf)? {
        Opened::Data { plain, used } => {
            assert_eq!(used, bytes.len());
            Saw::Data(buf[plain].to_vec())
        }
        Opened::Handled { used } => {
            assert_eq!(used, bytes.len());
            Saw::Handled
        }
        Opened::Closed => Saw::Closed,
        Opened::More => Saw::More,
    })
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "compared with what may be an error"
)]
fn data(text: &[u8]) -> Result<Saw, RecordError> {
    Ok(Saw::Data(text.to_vec()))
}

/// A record, whatever is urgent.
fn plain(end: &mut End, text: &[u8]) -> Vec<u8> {
    end.records().sealed(Kind::Data, text).unwrap()
}

/// The sending side of a KeyUpdate that a test has sealed by itself.
fn switch(records: &mut Records) {
    records.tx = records.secrets.next_tx().and_then(Keys::new).unwrap();
}

/// Data still goes both ways.
fn talk(near: &mut End, far: &mut End) {
    let record = near.seal(b"there").unwrap();
    assert_eq!(opened(far, &record), data(b"there"));
    let record = far.seal(b"back").unwrap();
    assert_eq!(opened(near, &record), data(b"back"));
}

/// One end tells the other of an error, unless it was told itself.
fn tells(end: &mut End, other: &mut End, error: RecordError) {
    match (end.records().alert(&error), error) {
        (None, RecordError::Alert(_)) => {}
        (Some(alert), _) => assert_eq!(
            opened(other, &alert),
            Err(RecordError::Alert(error.alert().unwrap()))
        ),
        (None, _) => panic!("{error} is kept from the peer"),
    }
}
