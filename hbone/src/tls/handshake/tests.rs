//! Handshakes over loopback: ours with ours, and ours with tokio-rustls at either end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::tls::lab::{CLIENT, Ca, End, SERVER, config, ends, expect, meet, pair, stock_client};

#[tokio::test]
async fn data_goes_both_ways_record_by_record() {
    let (mut near, mut far) = ends().await;
    assert_eq!(near.proved.peer.id.as_str(), SERVER);
    assert_eq!(far.proved.peer.id.as_str(), CLIENT);
    assert!(near.proved.not_after > SystemTime::now());
    let most = vec![7; record::MOST];
    for text in [&b"a"[..], b"something", &most] {
        near.send(text).await;
        far.gets(text).await;
        far.send(text).await;
        near.gets(text).await;
    }
    let close = near.records().close_notify().unwrap();
    near.write(&close).await;
    assert_eq!(far.receive().await, Ok(None));
    assert_eq!(far.receive().await, Ok(None));
}

#[tokio::test]
async fn a_stock_server_is_met() {
    let ca = Ca::new();
    let identity = ca.identity(CLIENT);
    let mut stock = (*config(&ca.identity(SERVER))).clone();
    stock.send_tls13_tickets = 4;
    let (near, far, addr) = pair().await;
    let far = async {
        let mut far = TlsAcceptor::from(Arc::new(stock))
            .accept(far)
            .await
            .unwrap();
        far.write_all(b"first from the server").await.unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        far.shutdown().await.unwrap();
        far
    };
    let near = async {
        let proved = dial(near, addr, &identity, &expect(SERVER)).await.unwrap();
        let mut near = End::of(proved).await;
        near.gets(b"first from the server").await;
        near.send(b"ping").await;
        assert_eq!(near.receive().await, Ok(None));
    };
    tokio::join!(far, near);
}

#[tokio::test]
async fn a_stock_client_is_met() {
    let ca = Ca::new();
    let server = config(&ca.identity(SERVER));
    let client = ca.identity(CLIENT);
    let stock = stock_client(&client);
    let (near, far, addr) = pair().await;
    let near = async {
        let connector = TlsConnector::from(Arc::new(stock));
        let name = ServerName::IpAddress(addr.ip().into());
        let mut near = connector.connect(name, near).await.unwrap();
        near.write_all(b"at once").await.unwrap();
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
    };
    let far = async {
        let mut far = End::of(serve(far, addr, server).await.unwrap()).await;
        far.gets(b"at once").await;
        far.send(b"bye").await;
        let close = far.records().close_notify().unwrap();
        far.write(&close).await;
        far
    };
    tokio::join!(near, far);
}

#[tokio::test]
async fn what_comes_with_the_last_flight_is_left_alone() {
    let ca = Ca::new();
    let server = config(&ca.identity(SERVER));
    let client = ca.identity(CLIENT);
    let (near, far, addr) = pair().await;
    let expect = expect(SERVER);
    let near = async {
        let mut proved = dial(near, addr, &client, &expect).await.unwrap();
        let mut all = std::mem::take(&mut proved.unsent);
        let mut near = End::of(proved).await;
        for text in [&b"one"[..], b"two"] {
            all.extend(near.seal(text).unwrap());
        }
        // Cut in the middle of a record.
        let (first, last) = all.split_at(all.len() - 10);
        near.write(first).await;
        near.write(last).await;
        near
    };
    let far = async {
        let mut far = End::of(serve(far, addr, server).await.unwrap()).await;
        far.gets(b"one").await;
        far.gets(b"two").await;
    };
    tokio::join!(near, far);
}

#[tokio::test]
async fn a_rejected_client_reads_why() {
    let ca = Ca::new();
    let server = config(&ca.identity(SERVER));
    let foreign = ca.identity("spiffe://elsewhere.example/ns/shop/sa/client");
    let (near, far, addr) = pair().await;
    let expect = expect(SERVER);
    let near = async {
        let mut near = End::of(dial(near, addr, &foreign, &expect).await.unwrap()).await;
        let error = near.receive().await.unwrap_err();
        assert!(
            error.to_string().contains("received fatal alert: "),
            "{error}"
        );
        assert_eq!(near.records().alert(&error), None);
    };
    let (refused, ()) = tokio::join!(serve(far, addr, server), near);
    let refused = refused.err().unwrap();
    assert!(
        refused.to_string().contains("elsewhere.example"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_rejected_server_reads_why() {
    let ca = Ca::new();
    let server = config(&ca.identity(SERVER));
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    let (near, far) = meet(&ca.identity(CLIENT), &expect(other), &server).await;
    let Some(Error::UnexpectedIdentity { presented, .. }) = near.err() else {
        panic!("another error");
    };
    assert_eq!(presented.unwrap().as_str(), SERVER);
    let far = far.err().unwrap().to_string();
    assert!(far.contains("received fatal alert: "), "{far}");
}

#[tokio::test]
async fn what_is_not_tls_is_refused_at_once() {
    let ca = Ca::new();
    let server = config(&ca.identity(SERVER));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0xff, 0xff, 0]] {
        let (mut near, far, addr) = pair().await;
        let near = async {
            near.write_all(garbage).await.unwrap();
            let mut said = Vec::new();
            near.read_to_end(&mut said).await.unwrap();
            // A fatal alert in the clear.
            assert_eq!(said[..6], [21, 3, 3, 0, 2, 2]);
        };
        let (refused, ()) = tokio::join!(serve(far, addr, server.clone()), near);
        assert!(matches!(refused, Err(Error::Tls { .. })));
    }
    let (near, far, addr) = pair().await;
    drop(near);
    let refused = serve(far, addr, server).await;
    assert!(matches!(refused, Err(Error::Tls { .. })));
}
