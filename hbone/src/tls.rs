//! The only two TLS configurations: TLS 1.3, ALPN `h2`, both sides proved by SPIFFE certificates.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::{Error, Expect, TrustDomain};
use credentials::Identity;
use sessions::Store;
use verify::{ClientVerifier, ServerVerifier};

pub(crate) mod chain;
pub(crate) mod credentials;
pub(crate) mod handshake;
#[cfg(test)]
pub(crate) mod lab;
pub(crate) mod revocation;
mod sessions;
pub(crate) mod standing;
mod verified;
mod verify;

const ALPN: &[u8] = b"h2";

/// Our algorithms, always passed by hand: a process may link a second provider.
///
/// The post-quantum hybrid comes first; the classic curves are for peers without it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// How an identity dials these servers.
///
/// A resumed session proves what the first one did: it belongs to this very configuration, so to the
/// same identity, authorities, revocations and expectation. Data never goes with the first flight.
pub(crate) fn client_config(
    identity: &Identity,
    expect: &Expect,
    sessions: Arc<Store>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = ServerVerifier::new(identity.authorities.clone(), expect.clone());
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    config.resumption = match identity.authorities.may_remember() {
        true => Resumption::store(sessions),
        false => Resumption::disabled(),
    };
    Ok(config)
}

/// How an identity accepts clients of these trust domains. Its tickets open with its own key only,
/// and so end with it.
pub(crate) fn server_config(
    identity: &Identity,
    trust: &Arc<[TrustDomain]>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = ClientVerifier::new(identity.authorities.clone(), trust.clone());
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_secret_extraction = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    if identity.authorities.may_remember() {
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        // A client of ours keeps one.
        config.send_tls13_tickets = 1;
    }
    Ok(config)
}

/// A failed handshake for a reason that is not the identity.
pub(crate) fn tls_error(addr: SocketAddr, source: io::Error) -> Error {
    Error::Tls {
        addr,
        source: Arc::new(source),
    }
}

#[cfg(test)]
mod tests;
