//! A chain that was found good before is taken at its word: for what it was, and while it is valid.

use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::UnknownRevocation;
use crate::tls::chain::Role;
use crate::tls::lab::{CLIENT, Ca, SERVER};

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

#[test]
fn a_known_chain_is_good_while_it_is_valid() {
    let ca = Ca::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let leaf = &client.key.cert[0];
    let verify = |now| {
        server
            .authorities
            .verify(leaf, &[], unix(now), Role::Client)
    };
    let second = Duration::from_secs(1);
    for _ in 0..2 {
        assert!(verify(client.not_before()).is_ok());
        assert!(verify(client.not_after() - second).is_ok());
        assert!(verify(client.not_before() - second).is_err());
        assert!(verify(client.not_after() + second).is_err());
    }
}

#[test]
fn it_is_known_as_what_it_was() {
    let ca = Ca::new();
    let client = ca.leaf(CLIENT, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let server = ca.identity(SERVER);
    let (leaf, now) = (&client.key.cert[0], UnixTime::now());
    let verify = |leaf: &CertificateDer<'_>, role| server.authorities.verify(leaf, &[], now, role);
    assert!(verify(leaf, Role::Client).is_ok());
    assert!(verify(leaf, Role::Server).is_err());
    assert!(verify(leaf, Role::Client).is_ok());
    // Nor is a forgery of it, nor what others have found good.
    for at in [leaf.len() / 2, leaf.len() - 1] {
        let mut forged = leaf.to_vec();
        forged[at] ^= 1;
        assert!(verify(&forged.into(), Role::Client).is_err());
    }
    let strangers = Ca::new().identity(SERVER);
    let verified = strangers.authorities.verify(leaf, &[], now, Role::Client);
    assert!(verified.is_err());
    assert!(verify(leaf, Role::Client).is_ok());
}

#[test]
fn news_of_revocations_makes_it_unknown() {
    let ca = Ca::new();
    let client = ca.leaf(CLIENT, |params| params.serial_number = Some(7.into()));
    let (leaf, now) = (&client.key.cert[0], UnixTime::now());
    for unknown in [UnknownRevocation::Allow, UnknownRevocation::Refuse] {
        let server = ca.identity(SERVER);
        let verified = server.authorities.verify(leaf, &[], now, Role::Client);
        assert!(verified.is_ok());
        let server = server.with_revocations(&ca.revoke(&[7], 3600), unknown);
        let authorities = server.unwrap().authorities;
        for _ in 0..2 {
            assert!(authorities.verify(leaf, &[], now, Role::Client).is_err());
        }
    }
}

#[test]
fn not_more_are_known_than_may_be() {
    let ca = Ca::new();
    let (client, known) = (
        ca.identity(CLIENT),
        crate::tls::verified::VerifiedChains::default(),
    );
    let leaf = &client.key.cert[0];
    for number in 0..3000_u32 {
        let other = number.to_be_bytes().to_vec().into();
        let digest = crate::tls::verified::ChainDigest::of(Role::Client, [&other].into_iter());
        known.remember(digest, [leaf].into_iter());
        assert!(known.is_good(&digest, UnixTime::now()));
    }
    assert!(known.len() <= 1024);
}
