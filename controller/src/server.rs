//! The port on which proxies call: TLS by our own authority, renewed while it runs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh::proto::certificate::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::ca::Certificates;
use crate::ca::authority::Authority;
use crate::ca::issue::LIFETIME;
use crate::discovery::Discovery;

/// Handshakes at once, and how long one may take: a stranger must not keep proxies out.
const HANDSHAKES: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A proxy that resumes names every resource that it has.
const MAX_REQUEST: usize = 256 << 20;
/// A signing request is about a kilobyte.
const MAX_SIGNING_REQUEST: usize = 64 << 10;

/// The certificate in use.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

/// A connection whose handshake is done.
struct Secured(TlsStream<TcpStream>);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// Our own certificate.
    #[error("no server certificate: {0}")]
    Issue(#[from] crate::ca::issue::IssueError),
    /// TLS.
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// gRPC.
    #[error("gRPC ended: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

/// Serves both services until the listener fails.
pub async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    names: Vec<String>,
    discovery: Discovery,
    certificates: Certificates,
) -> Result<(), ServeError> {
    let current = Arc::new(Current(ArcSwap::from_pointee(certified(
        &authority, &names,
    )?)));
    let acceptor = TlsAcceptor::from(Arc::new(config(current.clone())?));
    let (ready, connections) = mpsc::channel(HANDSHAKES);
    let grpc = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(
            AggregatedDiscoveryServiceServer::new(discovery).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_SIGNING_REQUEST),
        )
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        ended = grpc => Ok(ended?),
        ended = accept(listener, acceptor, ready) => Err(ended.into()),
        ended = renew(&authority, &names, &current) => match ended {},
    }
}

fn certified(authority: &Authority, names: &[String]) -> Result<CertifiedKey, ServeError> {
    let (chain, key) = authority.server(names)?;
    Ok(CertifiedKey::from_der(
        chain,
        key,
        &aws_lc_rs::default_provider(),
    )?)
}

fn config(current: Arc<Current>) -> Result<ServerConfig, ServeError> {
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<io::Result<Secured>>,
) -> io::Error {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if transient(&error) => {
                tracing::warn!(%error, "accept failed; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(error) => return error,
        };
        let Ok(permit) = handshakes.clone().acquire_owned().await else {
            continue;
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            if let Some(secured) = handshake(acceptor, tcp, peer).await {
                // When nobody takes it, gRPC has ended and so does the process.
                let _ = ready.send(Ok(secured)).await;
            }
            drop(permit);
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream, peer: SocketAddr) -> Option<Secured> {
    let error = match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => return Some(Secured(tls)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it took too long".to_owned(),
    };
    tracing::debug!(%peer, error, "a handshake failed");
    None
}

/// Descriptors and memory come back; a listener does not.
fn transient(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotConnected
    )
}

async fn renew(
    authority: &Authority,
    names: &[String],
    current: &Current,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LIFETIME / 2).await;
        match certified(authority, names) {
            Ok(key) => current.0.store(Arc::new(key)),
            Err(error) => {
                tracing::error!(%error, "the server's certificate cannot be renewed; trying again later");
            }
        }
    }
}

// === impl Current ===

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

// === impl Secured ===

impl Connected for Secured {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.get_ref().0.connect_info()
    }
}

impl tokio::io::AsyncRead for Secured {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Secured {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
