//! Scripted HTTP/2 peers behind real TLS, for what our own end would never send.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{CLIENT, Ca, SERVER};

pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;
pub type RawServer = h2::server::Connection<TlsStream<TcpStream>, Bytes>;

/// An HTTP/2 client with a good certificate.
pub async fn client(tcp: TcpStream, ca: &Ca) -> SendRequest<Bytes> {
    let tls = client_tls(tcp, ca, b"h2").await;
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    spawn_local(async move { drop(connection.await) });
    sender.ready().await.unwrap()
}

/// A TLS client with a good certificate.
pub async fn client_tls(tcp: TcpStream, ca: &Ca, alpn: &[u8]) -> ClientStream {
    try_client_tls(tcp, ca, alpn).await.unwrap()
}

/// A TLS client that may not be let in.
pub async fn try_client_tls(tcp: TcpStream, ca: &Ca, alpn: &[u8]) -> io::Result<ClientStream> {
    let (chain, key) = pem(ca, CLIENT);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::IpAddress(tcp.peer_addr().unwrap().ip().into());
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// The server's side of one connection, with a good certificate.
pub async fn server(tcp: TcpStream, ca: &Ca, builder: &h2::server::Builder) -> RawServer {
    builder.handshake(server_tls(tcp, ca).await).await.unwrap()
}

/// A TLS server with a good certificate.
pub async fn server_tls(tcp: TcpStream, ca: &Ca) -> TlsStream<TcpStream> {
    let (chain, key) = pem(ca, SERVER);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.root.as_bytes()).unwrap())
        .unwrap();
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
        .accept(tcp)
        .await
        .unwrap()
}

fn pem(ca: &Ca, id: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let (chain, key) = ca.leaf(&[id], |_| ());
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    (
        chain,
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    )
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Takes every server for the right one.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
