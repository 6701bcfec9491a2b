//! Sessions go on between two ends that are what they were, and between no others.

use std::sync::Arc;

use rustls::{AlertDescription, ServerConfig};

use crate::tls::handshake;
use crate::tls::lab::{CLIENT, Ca, End, SERVER, config, expect, meet};
use crate::{Error, Expect, Identity, UnknownRevocation};

/// Meets once, and says whether it was an earlier session that went on.
async fn resumes(client: &Identity, expect: &Expect, server: &Arc<ServerConfig>) -> bool {
    let (near, far) = meet(client, expect, server).await;
    let (mut near, mut far): (End, End) = (near.unwrap(), far.unwrap());
    assert_eq!(near.proved.peer.id.as_str(), SERVER);
    assert_eq!(far.proved.peer.id.as_str(), CLIENT);
    assert!(!near.proved.chain.is_empty() && !far.proved.chain.is_empty());
    assert_eq!(near.proved.resumed, far.proved.resumed);
    // The ticket comes before this.
    far.send(b"x").await;
    near.gets(b"x").await;
    near.send(b"y").await;
    far.gets(b"y").await;
    near.proved.resumed
}

#[tokio::test]
async fn the_second_dial_is_resumed_and_so_on() {
    let ca = Ca::new();
    let (client, server) = (ca.identity(CLIENT), config(&ca.identity(SERVER)));
    for resumed in [false, true, true, true] {
        assert_eq!(resumes(&client, &expect(SERVER), &server).await, resumed);
    }
}

#[tokio::test]
async fn a_ticket_is_used_once() {
    let ca = Ca::new();
    let (client, server) = (ca.identity(CLIENT), config(&ca.identity(SERVER)));
    assert!(!resumes(&client, &expect(SERVER), &server).await);
    // Nobody reads the ticket of the second one.
    let (near, far) = meet(&client, &expect(SERVER), &server).await;
    assert!(near.unwrap().proved.resumed && far.unwrap().proved.resumed);
    assert!(!resumes(&client, &expect(SERVER), &server).await);
}

#[tokio::test]
async fn whoever_is_renewed_begins_anew() {
    let ca = Ca::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (expect, first) = (expect(SERVER), config(&server));
    assert!(!resumes(&client, &expect, &first).await);
    let renewed = config(&ca.identity(SERVER));
    assert!(!resumes(&client, &expect, &renewed).await);
    assert!(resumes(&client, &expect, &renewed).await);
    assert!(!resumes(&ca.identity(CLIENT), &expect, &renewed).await);

    // News of revocations is a renewal.
    let lists = ca.revoke(&[], 3600);
    let client = client.with_revocations(&lists, UnknownRevocation::Allow);
    let client = client.unwrap();
    assert!(!resumes(&client, &expect, &renewed).await);
    assert!(resumes(&client, &expect, &renewed).await);
    let server = server.with_revocations(&lists, UnknownRevocation::Allow);
    let server = config(&server.unwrap());
    assert!(!resumes(&client, &expect, &server).await);
    assert!(resumes(&client, &expect, &server).await);
}

#[tokio::test]
async fn another_expectation_begins_anew() {
    let ca = Ca::new();
    let (client, server) = (ca.identity(CLIENT), config(&ca.identity(SERVER)));
    let other = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
    let either = Expect::any_of([SERVER.parse().unwrap(), other]).unwrap();
    for resumed in [false, true] {
        assert_eq!(resumes(&client, &expect(SERVER), &server).await, resumed);
        assert_eq!(resumes(&client, &either, &server).await, resumed);
    }
}

#[tokio::test]
async fn who_refuses_the_unknown_asks_each_time() {
    let ca = Ca::new();
    let strict = |id: &str| {
        let lists = ca.revoke(&[], 3600);
        let identity = ca.identity(id);
        identity.with_revocations(&lists, UnknownRevocation::Refuse)
    };
    let (client, server) = (ca.identity(CLIENT), config(&strict(SERVER).unwrap()));
    for _ in 0..2 {
        assert!(!resumes(&client, &expect(SERVER), &server).await);
    }
    let (client, server) = (strict(CLIENT).unwrap(), config(&ca.identity(SERVER)));
    for _ in 0..2 {
        assert!(!resumes(&client, &expect(SERVER), &server).await);
    }
}

#[tokio::test]
async fn a_server_without_tickets_is_met_in_full() {
    let ca = Ca::new();
    let client = ca.identity(CLIENT);
    let mut stock = (*config(&ca.identity(SERVER))).clone();
    stock.send_tls13_tickets = 0;
    let stock = Arc::new(stock);
    for _ in 0..2 {
        assert!(!resumes(&client, &expect(SERVER), &stock).await);
    }
}

#[test]
fn one_configuration_serves_all_dials_of_an_expectation() {
    let client = Ca::new().identity(CLIENT);
    let config = client.client_config(&expect(SERVER)).unwrap();
    let again = client.client_config(&expect(SERVER)).unwrap();
    assert!(Arc::ptr_eq(&config, &again));
    // However many there are, they are bounded.
    for number in 0..1000 {
        let other = format!("spiffe://cluster.local/ns/shop/sa/{number}");
        client.client_config(&expect(&other)).unwrap();
    }
    assert!(client.configurations() <= 256);
}

#[test]
fn a_session_ends_with_the_certificate_of_its_beginning() {
    let client = Ca::new().identity(CLIENT);
    let (chain, addr) = (client.key.cert.as_slice(), "127.0.0.1:1".parse().unwrap());
    let agreed = |now| handshake::agreed(addr, Some(b"h2"), chain, now);
    assert_eq!(agreed(client.not_before()).unwrap().0.id.as_str(), CLIENT);
    let (alert, error) = agreed(client.not_after()).unwrap_err();
    assert_eq!(alert, AlertDescription::CertificateExpired);
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    let (alert, _) = handshake::agreed(addr, None, chain, client.not_before()).unwrap_err();
    assert_eq!(alert, AlertDescription::NoApplicationProtocol);
}
