//! The port on which proxies call: TLS by our own authority, renewed while it runs.

mod renewal;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh::proto::certificate::istio_certificate_service_server::IstioCertificateServiceServer;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use self::renewal::Renewal;
use crate::ca::Certificates;
use crate::ca::authority::Authority;
use crate::connection::admission::Bounds;
use crate::connection::{Gate, Secured, Ticket};
use crate::discovery::service::DiscoveryServer;
use crate::discovery::{Discovery, Streams};
use crate::index::Input;
use crate::message_limit::Limited;

/// Connections that wait until gRPC takes them.
const SECURED: usize = 256;
/// Calls at once on one connection: a node that starts asks for eight certificates at once.
const CALLS: u32 = 64;
/// Until a call's first answer: the review of a token and the reading of a signing request.
const ANSWER: Duration = Duration::from_secs(20);
/// What a connection may send before somebody reads it. Whoever is not authorised is never read.
const WINDOW: u32 = 64 << 10;
/// A token is one to four kilobytes.
const MAX_HEAD: u32 = 16 << 10;
/// A proxy that resumes names every resource that it has. What a caller may really send follows from what it may see.
const MAX_REQUEST: usize = 256 << 20;
/// A signing request is about a kilobyte.
const MAX_SIGNING_REQUEST: usize = 64 << 10;

/// The certificate in use.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

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
    let (key, renewal) = certified(&authority, &names)?;
    let current = Arc::new(Current(ArcSwap::from_pointee(key)));
    let acceptor = TlsAcceptor::from(Arc::new(config(current.clone())?));
    let gate = Gate::new(Bounds::default(), certificates.metrics.clone());
    let (streams, index) = (discovery.streams.clone(), discovery.index.clone());
    let (ready, connections) = mpsc::channel(SECURED);
    let grpc = Server::builder()
        .timeout(ANSWER)
        .max_concurrent_streams(CALLS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(MAX_HEAD)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(Limited(DiscoveryServer::new(discovery, MAX_REQUEST)))
        .add_service(
            IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_SIGNING_REQUEST),
        )
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        ended = grpc => Ok(ended?),
        ended = accept(listener, acceptor, gate, ready) => Err(ended.into()),
        ended = renew(&authority, &names, &current, renewal) => match ended {},
        never = told(streams, index) => match never {},
    }
}

/// Says which nodes have gone. That the index has gone is others' business: streams end with it.
async fn told(streams: Streams, index: mpsc::Sender<Input>) -> Infallible {
    streams.tell(index).await;
    std::future::pending().await
}

/// A new certificate, and when the next one is due.
fn certified(
    authority: &Authority,
    names: &[String],
) -> Result<(CertifiedKey, Renewal), ServeError> {
    let server = authority.server(names)?;
    let key = CertifiedKey::from_der(server.chain, server.key, &aws_lc_rs::default_provider())?;
    Ok((key, Renewal::issued(SystemTime::now(), server.not_after)))
}

fn config(current: Arc<Current>) -> Result<ServerConfig, ServeError> {
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Accepts for ever, and never waits for anybody who was accepted.
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    gate: Gate,
    ready: mpsc::Sender<io::Result<Secured>>,
) -> io::Error {
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if transient(&error) => {
                tracing::warn!(%error, "accept failed; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(error) => return error,
        };
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let ticket = match gate.arrive(peer) {
            Ok(ticket) => ticket,
            Err(shed) => {
                gate.shed(shed);
                continue;
            }
        };
        let (acceptor, ready, gate) = (acceptor.clone(), ready.clone(), gate.clone());
        handshakes.spawn(async move {
            match Ticket::secure(ticket, acceptor, tcp).await {
                // When nobody takes it, gRPC has ended and so does the process.
                Ok(secured) => drop(ready.send(Ok(secured)).await),
                Err(shed) => {
                    gate.shed(shed);
                    tracing::debug!(%peer, reason = shed.reason(), "no connection");
                }
            }
        });
    }
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
    mut renewal: Renewal,
) -> Infallible {
    let mut roots = authority.watch_roots();
    loop {
        while let Some(wait) = renewal.wait(SystemTime::now()) {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Another key signs: what the former one signed goes out of trust with its root.
                Ok(()) = roots.changed() => break,
            }
        }
        renewal = match certified(authority, names) {
            Ok((key, next)) => {
                current.0.store(Arc::new(key));
                next
            }
            Err(error) => {
                tracing::error!(%error, "the server's certificate was not renewed; trying again soon");
                renewal.failed(SystemTime::now())
            }
        };
    }
}

// === impl Current ===

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn another_signing_key_certifies_the_server_at_once() {
        let key = || Authority::ephemeral("cluster.local").expect("a key");
        let (authority, names) = (key(), ["a".to_owned()]);
        let (certified, renewal) = certified(&authority, &names).expect("certified");
        let before = certified.cert.clone();
        let current = Current(ArcSwap::from_pointee(certified));
        let renewing = renew(&authority, &names, &current, renewal);
        tokio::pin!(renewing);
        assert!(poll!(&mut renewing).is_pending());
        assert_eq!(current.0.load().cert, before);
        authority.take_over(&key());
        assert!(poll!(&mut renewing).is_pending());
        assert_ne!(current.0.load().cert, before);
    }
}
