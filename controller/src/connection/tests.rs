use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::admission::Class;
use super::*;
use crate::ca::authority::Authority;

/// A gate, and both sides of TLS behind it.
struct Port {
    gate: Gate,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Port {
    async fn open(bounds: Bounds) -> Self {
        let authority = Authority::ephemeral("cluster.local").expect("a root");
        let server = authority
            .server(&["controller".to_owned()])
            .expect("signed");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config
                    .with_no_client_auth()
                    .with_single_cert(server.chain, server.key)
            })
            .expect("a server");
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.roots().as_bytes()).expect("a root");
        roots.add(root).expect("a root");
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("a client")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            gate: Gate::new(bounds, Metrics::default()),
            listener: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        }
    }

    /// Both ends of a new connection.
    async fn connect(&self) -> (TcpStream, TcpStream, Ticket) {
        let address = self.listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).await.expect("connected");
        let (server, peer) = self.listener.accept().await.expect("accepted");
        let ticket = self.gate.arrive(peer).expect("not too fast");
        (client, server, ticket)
    }

    async fn secured(&self) -> (client::TlsStream<TcpStream>, Secured) {
        let (client, server, ticket) = self.connect().await;
        let name = ServerName::try_from("controller").expect("a name");
        let (client, server) = tokio::join!(
            self.connector.connect(name, client),
            ticket.secure(self.acceptor.clone(), server)
        );
        (client.expect("a handshake"), server.expect("a handshake"))
    }
}

/// Of a node proxy.
fn holder() -> Holder {
    Holder {
        pod: "zt".into(),
        class: Class::NodeProxy,
    }
}

async fn read(connection: &mut Secured) -> io::Result<usize> {
    connection.read(&mut [0; 16]).await
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_goes_after_the_first_bytes_bound() {
    let port = Port::open(Bounds::default()).await;
    let (_client, server, ticket) = port.connect().await;
    assert_eq!(port.gate.held(), (1, 0));
    let begun = Instant::now();
    let shed = ticket.secure(port.acceptor.clone(), server).await;
    assert_eq!(shed.expect_err("silent"), Shed::Silent);
    assert_eq!(begun.elapsed().as_secs(), FIRST_BYTE.as_secs());
    assert_eq!(port.gate.held(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_begins_a_handshake_must_end_it() {
    let port = Port::open(Bounds::default()).await;
    let (mut client, server, ticket) = port.connect().await;
    client.write_all(&[22]).await.expect("written");
    let begun = Instant::now();
    let shed = ticket.secure(port.acceptor.clone(), server).await;
    assert_eq!(shed.expect_err("no handshake"), Shed::Handshake);
    assert_eq!(begun.elapsed().as_secs(), HANDSHAKE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn who_opens_no_authorised_call_goes_and_who_does_stays() {
    let port = Port::open(Bounds::default()).await;
    let (_client, mut idle) = port.secured().await;
    let (_client, mut proxy) = port.secured().await;
    let call = proxy.connect_info().prove(holder());
    let call = call.expect("there is room");
    assert_eq!(port.gate.held(), (1, 1));
    let begun = Instant::now();
    let error = read(&mut idle).await.expect_err("no call");
    assert_eq!(error.to_string(), "no_call");
    assert_eq!(begun.elapsed().as_secs(), FIRST_CALL.as_secs());
    assert!(idle.flush().await.is_err(), "nor does it take anything");
    let hour = Duration::from_secs(3600);
    assert!(timeout(hour, read(&mut proxy)).await.is_err(), "it stays");
    let (_client, mut other) = port.secured().await;
    let again = other.connect_info().prove(holder()).expect("there is room");
    let half = IDLE / 2;
    assert!(timeout(half, read(&mut other)).await.is_err());
    let begun = Instant::now();
    drop((call, again));
    assert!(timeout(half, read(&mut proxy)).await.is_err(), "not yet");
    let next = other.connect_info().prove(holder());
    let error = read(&mut proxy).await.expect_err("no call");
    assert_eq!(error.to_string(), "idle");
    assert_eq!(begun.elapsed().as_secs(), IDLE.as_secs());
    assert!(timeout(hour, read(&mut other)).await.is_err(), "it stays");
    drop((idle, proxy, other, next));
    assert_eq!(port.gate.held(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_has_to_go_for_a_newcomer_goes_at_once() {
    let bounds = Bounds {
        unproven_per_source: 1,
        ..Bounds::default()
    };
    let port = Port::open(bounds).await;
    let (_client, mut first) = port.secured().await;
    let begun = Instant::now();
    let (ended, (_client, server, silent)) = tokio::join!(read(&mut first), port.connect());
    assert_eq!(ended.expect_err("no room").to_string(), "no_room");
    let handshake = silent.secure(port.acceptor.clone(), server);
    let (shed, _) = tokio::join!(handshake, port.connect());
    assert_eq!(shed.expect_err("no room"), Shed::NoRoom);
    assert!(begun.elapsed() < FIRST_BYTE, "nobody waited");
    let refused = first.connect_info().prove(holder());
    let refused = refused.expect_err("it is gone");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_opens_more_than_its_share_loses_its_oldest() {
    let port = Port::open(Bounds::default()).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let (client, server) = port.secured().await;
        let call = server.connect_info().prove(holder());
        open.push((client, server, call.expect("there is room")));
    }
    let ended = read(&mut open[0].1).await.expect_err("no room");
    assert_eq!(ended.to_string(), "no_room");
    assert_eq!(port.gate.held(), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_opens_connections_too_fast_gets_no_more_handshakes_and_others_do() {
    let gate = Gate::new(Bounds::default(), Metrics::default());
    let peer = |last, port| SocketAddr::from(([10, 0, 0, last], port));
    let opened = |gate: &Gate| {
        (0..5000)
            .filter(|port| gate.arrive(peer(66, *port)).is_ok())
            .count()
    };
    assert_eq!(opened(&gate), 1000);
    assert_eq!(
        gate.arrive(peer(66, 1)).expect_err("too fast"),
        Shed::TooFast
    );
    assert!(gate.arrive(peer(1, 1)).is_ok());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(opened(&gate), 500);
}
