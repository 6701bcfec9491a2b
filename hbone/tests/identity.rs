//! Who may talk to whom: chains, SPIFFE IDs, trust domains, and what is said when they do not fit.

mod support;

use std::time::Duration;

use hbone::{
    Acceptor, Ended, Error, Fault, Identity, InvalidCredentials, Pool, PoolLimits, Response,
    Revocations, ServerLimits, TcpDial, TrustDomain, UnknownRevocation, credentials,
};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use support::{CLIENT, Ca, Lab, SERVER, Served, destination, local, request};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;

const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";

#[test]
fn another_identity_than_expected_is_refused_and_both_are_named() {
    local(async {
        let mut lab = Lab::new().await;
        lab.to = destination(lab.served.addr, OTHER);
        let error = lab.open().await.unwrap_err();
        let Error::UnexpectedIdentity {
            expected,
            presented,
        } = &error
        else {
            panic!("{error}");
        };
        assert!(expected.contains(&OTHER.parse().unwrap()));
        assert_eq!(presented.as_ref().unwrap().as_str(), SERVER);
        let text = error.to_string();
        assert!(text.contains(OTHER) && text.contains(SERVER), "{text}");
        assert_eq!(error.fault(), Fault::Peer);
        assert!(!error.anything_sent());
        assert!(matches!(
            lab.served.errors.recv().await.unwrap(),
            Error::Tls { .. }
        ));
        assert!(lab.served.incoming.try_recv().is_err());
    });
}

#[test]
fn any_of_several_expected_identities_will_do() {
    local(async {
        let mut lab = Lab::new().await;
        let ids = [OTHER, SERVER].map(|id| id.parse().unwrap());
        lab.to.expect = hbone::Expect::any_of(ids).unwrap();
        drop(lab.tunnels().await);
    });
}

#[test]
fn both_sides_learn_who_the_other_is() {
    local(async {
        let mut lab = Lab::new().await;
        let request = request();
        let accept = async {
            let incoming = lab.served.incoming.recv().await.unwrap();
            assert_eq!(incoming.peer.id.as_str(), CLIENT);
            assert!(incoming.peer.addr.ip().is_loopback());
            assert_eq!(incoming.request, request);
            incoming
                .accept(Response {
                    baggage: request.baggage.clone(),
                })
                .unwrap()
        };
        let (opened, _accepted) = tokio::join!(lab.pool.open(&lab.to, &request), accept);
        let opened = opened.unwrap();
        assert_eq!(opened.peer.as_str(), SERVER);
        assert_eq!(opened.response.baggage, request.baggage);
    });
}

#[test]
fn a_client_of_a_foreign_trust_domain_is_refused_and_told() {
    local(async {
        let ca = Ca::new();
        let foreign = "spiffe://elsewhere.example/ns/shop/sa/client";
        let (error, refused) = meet(ca.identity(foreign), ca.identity(SERVER)).await;
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        assert!(refused.to_string().contains(foreign), "{refused}");
    });
}

#[test]
fn a_chain_to_another_root_is_refused_by_either_side() {
    local(async {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let (error, _) = meet(ours.identity(CLIENT), theirs.identity(SERVER)).await;
        assert!(matches!(error, Error::Tls { .. }), "{error}");

        // A client that trusts the server's root, but is not of it.
        let (chain, key) = theirs.leaf(&[CLIENT], |_| ());
        let stranger = Identity::from_pem(&chain, &key, &ours.root).unwrap();
        let (error, refused) = meet(stranger, ours.identity(SERVER)).await;
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        assert!(matches!(refused, Error::Tls { .. }), "{refused}");
    });
}

#[test]
fn certificates_that_are_not_for_this_are_refused() {
    local(async {
        let ca = Ca::new();
        type Change = fn(&mut rcgen::CertificateParams);
        let changes: [(&str, Change); 3] = [
            ("only for servers", |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            ("signs certificates", |p| {
                p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            }),
            ("is an authority", |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
        ];
        for (what, change) in changes {
            let (chain, key) = ca.leaf(&[CLIENT], change);
            let client = Identity::from_pem(&chain, &key, &ca.root).unwrap();
            let (error, refused) = meet(client, ca.identity(SERVER)).await;
            assert!(matches!(error, Error::Tls { .. }), "{what}: {error}");
            assert!(matches!(refused, Error::Tls { .. }), "{what}: {refused}");
        }
    });
}

#[test]
fn our_own_expired_certificate_is_not_used() {
    local(async {
        let mut lab = Lab::new().await;
        let (chain, key) = lab.ca.leaf(&[CLIENT], |p| {
            p.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
            p.not_after = OffsetDateTime::now_utc() - Duration::from_secs(1);
        });
        drop(lab.tunnels().await);
        lab.client
            .replace(Identity::from_pem(&chain, &key, &lab.ca.root).unwrap());
        let error = lab.open().await.unwrap_err();
        assert!(matches!(error, Error::CredentialsExpired { .. }), "{error}");
        assert_eq!(error.fault(), Fault::Us);
    });
}

#[test]
fn a_swapped_identity_is_used_at_once_by_both_sides() {
    local(async {
        let mut lab = Lab::new().await;
        let (mut old_near, mut old_far) = io(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 1);

        // Everybody moves to a new root: the old certificates are worth nothing for new connections.
        let next = Ca::new();
        lab.server.replace(next.identity(SERVER));
        assert!(matches!(fresh_pool(&lab.ca, &lab).await, Error::Tls { .. }));
        lab.client.replace(next.identity(CLIENT));
        drop(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 2);

        // What ran before runs on.
        support_passes(&mut old_near, &mut old_far).await;
    });
}

#[test]
fn a_revoked_workload_is_refused_by_either_side() {
    local(async {
        let ca = Ca::new();
        let revoked = |id: &str| {
            let (chain, key) = ca.leaf(&[id], |p| p.serial_number = Some(7.into()));
            Identity::from_pem(&chain, &key, &ca.root).unwrap()
        };
        let informed = |id: &str| {
            let identity = ca.identity(id);
            identity.with_revocations(&ca.revoke(&[7]), UnknownRevocation::Refuse)
        };
        let (error, refused) = meet(revoked(CLIENT), informed(SERVER).unwrap()).await;
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        assert!(refused.to_string().contains("Revoked"), "{refused}");
        let (error, refused) = meet(informed(CLIENT).unwrap(), revoked(SERVER)).await;
        assert!(error.to_string().contains("Revoked"), "{error}");
        assert!(matches!(refused, Error::Tls { .. }), "{refused}");
    });
}

#[test]
fn a_running_connection_ends_when_its_peer_is_revoked() {
    local(async {
        let server = ServerLimits {
            ping_interval: Duration::from_millis(5),
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(PoolLimits::default(), server).await;
        let (chain, key) = lab.ca.leaf(&[CLIENT], |p| p.serial_number = Some(7.into()));
        lab.client
            .replace(Identity::from_pem(&chain, &key, &lab.ca.root).unwrap());
        let (near, _far) = lab.tunnels().await;
        // News about somebody else changes nothing.
        for serials in [[8], [7]] {
            let next = lab.ca.identity(SERVER);
            let next = next.with_revocations(&lab.ca.revoke(&serials), UnknownRevocation::Allow);
            lab.server.replace(next.unwrap());
        }
        let error = lab.served.errors.recv().await.unwrap();
        assert!(
            matches!(&error, Error::Revoked { id } if id.as_str() == CLIENT),
            "{error}"
        );
        let error = near.into_io().read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    });
}

/// No clock of the connection has to come round first.
#[test]
fn a_running_connection_hears_of_a_revocation_at_once_at_either_end() {
    const NEVER: Duration = Duration::from_secs(24 * 3600);
    local(async {
        let (pool, server) = (PoolLimits::default(), ServerLimits::default());
        let pool = PoolLimits {
            ping_interval: NEVER,
            ..pool
        };
        let server = ServerLimits {
            ping_interval: NEVER,
            ..server
        };
        let mut lab = Lab::with(pool, server).await;
        let numbered = |ca: &Ca, id: &str, serial: u64| {
            let (chain, key) = ca.leaf(&[id], |p| p.serial_number = Some(serial.into()));
            Identity::from_pem(&chain, &key, &ca.root).unwrap()
        };
        let (client, server) = (numbered(&lab.ca, CLIENT, 7), numbered(&lab.ca, SERVER, 8));
        let told = |identity: &Identity, serials: &[u64]| {
            let lists = Revocations::from_pem(&lab.ca.revoke(serials), UnknownRevocation::Allow);
            identity.informed(Some(lists.unwrap()))
        };
        let (of_client, of_server) = (told(&server, &[7]), told(&client, &[8]));
        let of_others = told(&server, &[9]);
        lab.client.replace(client);
        lab.server.replace(server);
        // The server hears of its client, and not before the client is meant.
        let mut relayed = lab.relayed().await;
        lab.server.replace(of_others);
        support::passes(&mut relayed.near, &mut relayed.far, b"still here").await;
        lab.server.replace(of_client);
        let Ended::Peer(error) = relayed.far_ended.await.unwrap() else {
            panic!("not by its peer");
        };
        assert_eq!(error.code(), "peer_revoked");
        let error = lab.open().await.unwrap_err();
        assert_eq!(error.code(), "tls_failed", "{error}");
        // The client hears of its server.
        lab.server.replace(numbered(&lab.ca, SERVER, 8));
        let relayed = lab.relayed().await;
        lab.client.replace(of_server);
        let Ended::Peer(error) = relayed.near_ended.await.unwrap() else {
            panic!("not by its peer");
        };
        assert_eq!(error.code(), "peer_revoked");
        let error = lab.open().await.unwrap_err();
        assert_eq!(error.code(), "peer_revoked", "{error}");
    });
}

#[test]
fn while_lists_are_unreadable_nobody_is_let_in_and_who_is_in_stays() {
    local(async {
        let mut lab = Lab::new().await;
        let mut relayed = lab.relayed().await;
        let unreadable = |id: &str| {
            lab.ca
                .identity(id)
                .informed(Some(Revocations::unreadable()))
        };
        let (client, server) = (unreadable(CLIENT), unreadable(SERVER));
        lab.server.replace(server);
        let error = fresh_pool(&lab.ca, &lab).await;
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        lab.server.replace(lab.ca.identity(SERVER));
        lab.client.replace(client);
        let error = lab.open().await.unwrap_err();
        assert_eq!(error.code(), "peer_revocation_unknown", "{error}");
        support::passes(&mut relayed.near, &mut relayed.far, b"still here").await;
        lab.client.replace(lab.ca.identity(CLIENT));
        drop(lab.tunnels().await);
    });
}

#[test]
fn unreadable_revocations_leave_things_as_they_were() {
    local(async {
        let mut lab = Lab::new().await;
        drop(lab.tunnels().await);
        let next = lab.ca.identity(SERVER);
        let next = next.with_revocations("garbage", UnknownRevocation::Allow);
        assert!(matches!(next, Err(InvalidCredentials::Revocations(_))));
        drop(lab.tunnels().await);
        let next = lab.ca.identity(SERVER);
        let next = next.with_revocations(&lab.ca.revoke(&[7]), UnknownRevocation::Refuse);
        lab.server.replace(next.unwrap());
        drop(lab.tunnels().await);
    });
}

#[test]
fn identities_are_read_whole_or_refused() {
    let ca = Ca::new();
    let (chain, key) = ca.leaf(&[CLIENT], |p| {
        p.serial_number = Some(vec![0x0a, 0xbc].into());
    });
    let identity = Identity::from_pem(&chain, &key, &ca.root).unwrap();
    assert_eq!(identity.id().as_str(), CLIENT);
    assert_eq!(identity.serial(), "0a:bc");
    assert!(identity.not_before() < identity.not_after());
    // More roots than one, and a chain with its intermediates.
    let two = format!("{}{}", ca.root, Ca::new().root);
    assert!(Identity::from_pem(&format!("{chain}{}", ca.root), &key, &two).is_ok());

    let (_, other_key) = ca.leaf(&[CLIENT], |_| ());
    let of =
        |chain: &str, key: &str, roots: &str| Identity::from_pem(chain, key, roots).unwrap_err();
    assert!(matches!(
        of("", &key, &ca.root),
        InvalidCredentials::Chain(_)
    ));
    assert!(matches!(
        of("garbage", &key, &ca.root),
        InvalidCredentials::Chain(_)
    ));
    assert!(matches!(
        of(&chain, "garbage", &ca.root),
        InvalidCredentials::Key(_)
    ));
    assert!(matches!(
        of(&chain, &other_key, &ca.root),
        InvalidCredentials::KeyMismatch
    ));
    assert!(matches!(of(&chain, &key, ""), InvalidCredentials::Roots(_)));
    for uris in [
        &[][..],
        &[CLIENT, SERVER],
        &["https://example.com/"],
        &["spiffe://td"],
    ] {
        let (chain, key) = ca.leaf(uris, |_| ());
        assert!(
            matches!(of(&chain, &key, &ca.root), InvalidCredentials::NoSpiffeId),
            "{uris:?}"
        );
    }
}

/// What a client and a server that must not meet say of one another.
async fn meet(client: Identity, server: Identity) -> (Error, Error) {
    let (_writer, server) = credentials(server);
    let acceptor = Acceptor::new(server, [TrustDomain::default()], ServerLimits::default());
    let mut served = Served::start(acceptor).await;
    let (_writer, client) = credentials(client);
    let pool = Pool::new(client, TcpDial, PoolLimits::default());
    let to = destination(served.addr, SERVER);
    let error = pool.open(&to, &request()).await.unwrap_err();
    (error, served.errors.recv().await.unwrap())
}

/// What somebody with a certificate of `ca` gets from the lab's server now.
async fn fresh_pool(ca: &Ca, lab: &Lab) -> Error {
    let (_writer, client) = ca.credentials(CLIENT);
    let pool = Pool::new(client, TcpDial, PoolLimits::default());
    pool.open(&lab.to, &request()).await.unwrap_err()
}

fn io((near, far): (hbone::Tunnel, hbone::Tunnel)) -> (hbone::TunnelIo, hbone::TunnelIo) {
    (near.into_io(), far.into_io())
}

async fn support_passes(near: &mut hbone::TunnelIo, far: &mut hbone::TunnelIo) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    near.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");
}
