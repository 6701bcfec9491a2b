//! From a host name to a connection, plain or TLS.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Ask;

/// Connects to the first address that answers.
pub(super) async fn tcp(ask: &Ask) -> Result<TcpStream> {
    let found = tokio::net::lookup_host((ask.host.as_str(), ask.port))
        .await
        .with_context(|| format!("cannot resolve {}", ask.host))?;
    let mut last = anyhow!("{} has no address", ask.host);
    for addr in found {
        match TcpStream::connect(addr).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = anyhow::Error::new(error).context(format!("connect to {addr}")),
        }
    }
    Err(last)
}

/// TLS to whoever answers, whatever its certificate; `alpn` is all that is offered.
pub(super) async fn tls(ask: &Ask, alpn: &[u8]) -> Result<TlsStream<TcpStream>> {
    let provider = crate::echo::crypto();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name =
        ServerName::try_from(ask.host.clone()).with_context(|| format!("{:?} in TLS", ask.host))?;
    let stream = tcp(ask).await?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .context("TLS")
}

/// Trusts every certificate: the echo's own proves nothing, and tests want to see who answered.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
