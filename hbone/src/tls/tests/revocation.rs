//! Revocation lists: both sides look, both policies are kept, and nothing is read by halves.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use crate::tls::lab::{CLIENT, Ca, SERVER, config, expect, meet};
use crate::{Identity, InvalidCredentials, UnknownRevocation};

use UnknownRevocation::{Allow, Refuse};

const LATER: i64 = 3600;

fn numbered(ca: &Ca, id: &str, serial: u64) -> Identity {
    ca.leaf(id, |params| params.serial_number = Some(serial.into()))
}

/// What the client and the server say of one another.
async fn met(client: &Identity, server: &Identity) -> (Result<(), String>, Result<(), String>) {
    let (near, far) = meet(client, &expect(SERVER), &config(server)).await;
    // A client that is refused learns it afterwards.
    let near = match near {
        Ok(mut near) if far.is_err() => Err(near.receive().await.unwrap_err().to_string()),
        near => near.map(drop).map_err(|e| e.to_string()),
    };
    (near, far.map(drop).map_err(|e| e.to_string()))
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_told() {
    let ca = Ca::new();
    let lists = ca.revoke(&[7, 9], LATER);
    let server = numbered(&ca, SERVER, 8).with_revocations(&lists, Allow);
    let server = server.unwrap();
    let (near, far) = met(&numbered(&ca, CLIENT, 7), &server).await;
    assert_eq!(
        near.unwrap_err(),
        "received fatal alert: CertificateRevoked"
    );
    assert!(far.unwrap_err().contains("Revoked"));
    let (near, far) = met(&numbered(&ca, CLIENT, 6), &server).await;
    assert_eq!((near, far), (Ok(()), Ok(())));
}

#[tokio::test]
async fn a_revoked_server_is_refused_and_told() {
    let ca = Ca::new();
    let lists = ca.revoke(&[7], LATER);
    let client = ca.identity(CLIENT).with_revocations(&lists, Allow).unwrap();
    let (near, far) = met(&client, &numbered(&ca, SERVER, 7)).await;
    assert!(near.unwrap_err().contains("Revoked"));
    assert!(far.unwrap_err().contains("CertificateRevoked"));
    let (near, far) = met(&client, &numbered(&ca, SERVER, 8)).await;
    assert_eq!((near, far), (Ok(()), Ok(())));
}

#[tokio::test]
async fn what_no_list_speaks_of_is_judged_by_the_policy() {
    let (ca, elsewhere) = (Ca::new(), Ca::other());
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let foreign = elsewhere.revoke(&[], LATER);
    let old = ca.revoke(&[], -1);
    for lists in [&foreign, &old] {
        let allowing = ca.identity(SERVER).with_revocations(lists, Allow);
        assert_eq!(met(&client, &allowing.unwrap()).await, (Ok(()), Ok(())));
        let allowing = ca.identity(CLIENT).with_revocations(lists, Allow);
        assert_eq!(met(&allowing.unwrap(), &server).await, (Ok(()), Ok(())));

        let refusing = ca.identity(SERVER).with_revocations(lists, Refuse);
        let (near, far) = met(&client, &refusing.unwrap()).await;
        assert!(near.is_err() && far.is_err());
        let refusing = ca.identity(CLIENT).with_revocations(lists, Refuse);
        let (near, far) = met(&refusing.unwrap(), &server).await;
        assert!(near.is_err() && far.is_err());
    }
    // Several lists are one.
    let both = format!("{foreign}{}", ca.revoke(&[], LATER));
    let refusing = ca.identity(SERVER).with_revocations(&both, Refuse);
    assert_eq!(met(&client, &refusing.unwrap()).await, (Ok(()), Ok(())));
}

#[tokio::test]
async fn an_old_list_still_revokes() {
    let ca = Ca::new();
    let old = ca.revoke(&[7], -1);
    let server = ca.identity(SERVER).with_revocations(&old, Allow).unwrap();
    let (near, far) = met(&numbered(&ca, CLIENT, 7), &server).await;
    assert!(near.is_err() && far.is_err());
}

#[tokio::test]
async fn a_list_of_a_forged_authority_counts_for_nothing() {
    // The same name, another key.
    let (ca, forger) = (Ca::new(), Ca::new());
    let forged = forger.revoke(&[7], LATER);
    let client = numbered(&ca, CLIENT, 7);
    let server = ca.identity(SERVER).with_revocations(&forged, Allow);
    let server = server.unwrap();
    assert!(!server.is_revoked(client.key.cert.as_slice()));
    // It is refused all the same: somebody has tampered with what we go by.
    let (_, far) = met(&client, &server).await;
    assert!(far.is_err());
}

#[tokio::test]
async fn an_intermediate_can_be_revoked() {
    let ca = Ca::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(7.into());
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "intermediate");
    let intermediate = params.signed_by(&key, &ca.issuer).unwrap().pem();
    let between = Ca {
        root: ca.root.clone(),
        issuer: Issuer::new(params, key),
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(CLIENT.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let leaf = params.signed_by(&key, &between.issuer).unwrap().pem();
    let chain = format!("{leaf}{intermediate}");
    let client = Identity::from_pem(&chain, &key.serialize_pem(), &ca.root).unwrap();

    let all_well = [ca.revoke(&[], LATER), between.revoke(&[], LATER)].concat();
    let revoked = ca.revoke(&[7], LATER);
    let half_known = between.revoke(&[], LATER);
    for (lists, policy, is_met) in [
        (&all_well, Refuse, true),
        (&revoked, Allow, false),
        (&half_known, Allow, true),
        (&half_known, Refuse, false),
    ] {
        let server = ca.identity(SERVER).with_revocations(lists, policy);
        let server = server.unwrap();
        let (near, far) = met(&client, &server).await;
        assert_eq!((near.is_ok(), far.is_ok()), (is_met, is_met), "{policy:?}");
        let chain = client.key.cert.as_slice();
        assert_eq!(server.is_revoked(chain), lists == &revoked);
    }
}

#[test]
fn who_was_let_in_is_judged_anew() {
    let ca = Ca::new();
    let (client, server) = (numbered(&ca, CLIENT, 7), numbered(&ca, SERVER, 8));
    let chain = client.key.cert.as_slice();
    assert!(!server.is_revoked(chain));
    let lists = ca.revoke(&[7], LATER);
    let server = server.with_revocations(&lists, Refuse).unwrap();
    assert!(server.is_revoked(chain));
    assert!(!server.is_revoked(server.key.cert.as_slice()));
    assert!(!server.is_revoked(&[]));
    // Of another authority: not trusted any more perhaps, but not revoked.
    let stranger = numbered(&Ca::new(), CLIENT, 7);
    assert!(!server.is_revoked(stranger.key.cert.as_slice()));
}

#[test]
fn lists_are_read_whole_or_refused() {
    let ca = Ca::new();
    let good = ca.revoke(&[7], LATER);
    let cut = good.replace("-----END X509 CRL-----", "");
    let (first, last) = good.split_at(good.len() / 2);
    let garbled = format!("{first}AAAA{last}");
    for bad in ["", "garbage", &ca.root, &cut, &format!("{good}{garbled}")] {
        let read = ca.identity(CLIENT).with_revocations(bad, Allow);
        assert!(
            matches!(read, Err(InvalidCredentials::Revocations(_))),
            "{bad}"
        );
    }
}
