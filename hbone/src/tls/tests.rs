//! What a handshake agrees on, what it continues, and whom it refuses.

mod resumption;
mod revocation;
mod verified;

use rustls::NamedGroup;
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::tls::lab::{CLIENT, Ca, SERVER, config, expect, pair, stock_client};

/// Our end against a stock one that knows only these groups: what they agree on, dialling and serving.
async fn agreed_groups(stock: &[NamedGroup]) -> [NamedGroup; 2] {
    let ca = Ca::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let provider = Arc::new(CryptoProvider {
        kx_groups: aws_lc_rs::ALL_KX_GROUPS
            .iter()
            .copied()
            .filter(|group| stock.contains(&group.name()))
            .collect(),
        ..(**PROVIDER).clone()
    });
    let verifier = ClientVerifier::new(server.authorities.clone(), [TrustDomain::default()].into());
    let mut stock_server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(server.key.clone())));
    stock_server.alpn_protocols = vec![ALPN.to_vec()];
    let (near, far, addr) = pair().await;
    let acceptor = TlsAcceptor::from(Arc::new(stock_server));
    let expect = expect(SERVER);
    let dialled = handshake::dial(near, addr, &client, &expect);
    let near = async { lab::End::of(dialled.await.unwrap()).await };
    let (_near, far) = tokio::join!(near, acceptor.accept(far));
    let dialling = far.unwrap().get_ref().1.negotiated_key_exchange_group();

    let ours = stock_client(&client);
    let verifier = ServerVerifier::new(client.authorities.clone(), expect);
    let mut stock_client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(ours.client_auth_cert_resolver.clone());
    stock_client.alpn_protocols = ours.alpn_protocols;
    let (near, far, addr) = pair().await;
    let connector = TlsConnector::from(Arc::new(stock_client));
    let name = ServerName::IpAddress(addr.ip().into());
    let served = handshake::serve(far, addr, config(&server));
    let (near, _far) = tokio::join!(connector.connect(name, near), served);
    let serving = near.unwrap().get_ref().1.negotiated_key_exchange_group();
    [dialling.unwrap().name(), serving.unwrap().name()]
}

#[tokio::test]
async fn the_post_quantum_group_is_preferred_and_the_classic_ones_are_accepted() {
    use NamedGroup::{X25519, X25519MLKEM768, secp256r1, secp384r1};
    for (stock, agreed) in [
        (&[X25519, secp256r1, X25519MLKEM768][..], X25519MLKEM768),
        (&[X25519MLKEM768], X25519MLKEM768),
        (&[secp384r1, secp256r1, X25519], X25519),
        (&[X25519], X25519),
        (&[secp384r1, secp256r1], secp256r1),
    ] {
        let groups = agreed_groups(stock).await;
        // A client chooses the share it sends first; a server takes what is there.
        assert!(groups.iter().all(|group| stock.contains(group)));
        assert_eq!(groups[0], agreed, "{stock:?}");
    }
    assert_eq!(agreed_groups(&[X25519MLKEM768]).await[1], X25519MLKEM768);
    assert_eq!(agreed_groups(&[secp256r1]).await[1], secp256r1);
}
