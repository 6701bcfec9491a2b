//! The only two TLS configurations: TLS 1.3, ALPN `h2`, both sides proved by SPIFFE certificates.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{Error, Expect, Peer, SpiffeId, TrustDomain};
use credentials::Identity;
use sessions::Store;
use verify::{ClientVerifier, ServerVerifier, Unexpected};

pub(crate) mod chain;
pub(crate) mod credentials;
#[allow(dead_code, reason = "the engine that uses it comes next")]
pub(crate) mod handshake;
#[cfg(test)]
pub(crate) mod lab;
mod sessions;
mod verify;

const ALPN: &[u8] = b"h2";

/// How long a refused client may take to leave, and what it may send until then.
const PARTING_TIME: Duration = Duration::from_secs(1);
const PARTING_BYTES: u64 = 64 << 10;

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

/// A finished handshake, and what it proved.
pub(crate) struct Proved<S> {
    pub(crate) stream: S,
    pub(crate) peer: Peer,
    /// When the peer's certificate runs out.
    pub(crate) not_after: SystemTime,
}

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
    config.resumption = Resumption::store(sessions);
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
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // A client of ours keeps one.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The client's handshake: the server must prove to be one of `expect` before it learns who we are.
pub(crate) async fn connect(
    tcp: TcpStream,
    addr: SocketAddr,
    identity: &Identity,
    expect: &Expect,
) -> Result<Proved<client::TlsStream<TcpStream>>, Error> {
    let config = identity
        .client_config(expect)
        .map_err(|e| tls_error(addr, io::Error::other(e)))?;
    let name = ServerName::IpAddress(addr.ip().into());
    let stream = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| explain(addr, error))?;
    let (_, session) = stream.get_ref();
    let (id, not_after) = agreed(addr, session.alpn_protocol(), session.peer_certificates())?;
    Ok(Proved {
        stream,
        peer: Peer { id, addr },
        not_after,
    })
}

/// The server's handshake.
pub(crate) async fn accept(
    tcp: TcpStream,
    addr: SocketAddr,
    config: Arc<ServerConfig>,
) -> Result<Proved<server::TlsStream<TcpStream>>, Error> {
    let stream = match TlsAcceptor::from(config).accept(tcp).into_fallible().await {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            let_it_read(tcp).await;
            return Err(explain(addr, error));
        }
    };
    let (_, session) = stream.get_ref();
    let (id, not_after) = agreed(addr, session.alpn_protocol(), session.peer_certificates())?;
    Ok(Proved {
        stream,
        peer: Peer { id, addr },
        not_after,
    })
}

/// A socket closed over unread bytes is reset, and with it the alert that says why: so the client
/// gets a moment to read it and leave first.
async fn let_it_read(mut tcp: TcpStream) {
    let leaving = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(PARTING_BYTES), &mut tokio::io::sink()).await
    };
    // However it leaves, nothing more is to be done for it.
    let _ = timeout(PARTING_TIME, leaving).await;
}

/// What the handshake left: HTTP/2 as the protocol, and the leaf the verifier has accepted.
fn agreed(
    addr: SocketAddr,
    alpn: Option<&[u8]>,
    chain: Option<&[CertificateDer<'_>]>,
) -> Result<(SpiffeId, SystemTime), Error> {
    if alpn != Some(ALPN) {
        return Err(Error::protocol("TLS did not agree on h2"));
    }
    let leaf = chain.and_then(<[_]>::first);
    let facts = leaf.and_then(|leaf| verify::Leaf::read(leaf).ok());
    match facts.map(|facts| (facts.id, facts.not_after)) {
        Some((Some(id), not_after)) => Ok((id, not_after)),
        _ => Err(tls_error(
            addr,
            io::Error::other("the peer has no certificate"),
        )),
    }
}

/// Brings the verifier's own words back out of the handshake's error.
fn explain(addr: SocketAddr, error: io::Error) -> Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) = inner
        && let Some(unexpected) = other.0.downcast_ref::<Unexpected>()
    {
        return Error::UnexpectedIdentity {
            expected: unexpected.expected.clone(),
            presented: unexpected.presented.clone(),
        };
    }
    tls_error(addr, error)
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
