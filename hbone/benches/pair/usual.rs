//! The usual design, written well: tokio's multi-threaded runtime, tokio-rustls, the `h2` crate, one
//! driver task per connection and one task per stream, windows of 4 and 16 MiB.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Method, Response, StatusCode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::Mutex;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certs::Pem;
use crate::{Result, child};

const WORKERS: usize = 2;

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 1 << 20;

/// Streams of one connection, and what its server allows.
const STREAMS: usize = 100;
const SERVER_STREAMS: u32 = 200;

/// Buffers grow with use, so that small messages need no large ones.
const FIRST_READ: usize = 16 << 10;
const LARGEST_READ: usize = 64 << 10;

const BAGGAGE: &str = "k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client";

/// The near end's connections.
struct Near {
    tls: TlsConnector,
    far: SocketAddr,
    /// Where a CONNECT leads.
    app: String,
    connections: Mutex<Vec<Connection>>,
}

#[derive(Clone)]
struct Connection {
    send: SendRequest<Bytes>,
    streams: Arc<AtomicUsize>,
}

/// A stream's place on its connection.
struct Place(Arc<AtomicUsize>);

/// Accepts applications and tunnels each of them through `far` to `app`.
pub(crate) fn near(far: SocketAddr, app: SocketAddr) -> Result<()> {
    let near: &Near = Box::leak(Box::new(Near {
        tls: TlsConnector::from(Arc::new(Pem::near()?.client()?)),
        far,
        app: app.to_string(),
        connections: Mutex::default(),
    }));
    runtime()?.block_on(async move {
        let listener = TcpListener::bind(child::bind()?).await?;
        child::tell(&format!("ready {}", listener.local_addr()?))?;
        loop {
            let (tcp, client) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            tokio::spawn(async move {
                if let Ok((send, recv, _place)) = Box::pin(near.open(client)).await {
                    let _ = relay(tcp, send, recv).await;
                }
            });
        }
    })
}

/// Accepts tunnels and relays each of them to whom it asks for.
pub(crate) fn far() -> Result<()> {
    let tls = TlsAcceptor::from(Arc::new(Pem::far()?.server()?));
    runtime()?.block_on(async move {
        let listener = TcpListener::bind(child::bind()?).await?;
        child::tell(&format!("ready {}", listener.local_addr()?))?;
        loop {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let tls = tls.clone();
            tokio::spawn(async move {
                // The near end is ended without ceremony when all is measured.
                let _ = Box::pin(serve(tls, tcp)).await;
            });
        }
    })
}

async fn serve(tls: TlsAcceptor, tcp: TcpStream) -> io::Result<()> {
    let tls = tls.accept(tcp).await?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(SERVER_STREAMS)
        .handshake::<_, Bytes>(tls)
        .await
        .map_err(io::Error::other)?;
    while let Some(next) = connection.accept().await {
        let (request, respond) = next.map_err(io::Error::other)?;
        tokio::spawn(async move {
            let (head, recv) = request.into_parts();
            let to = head.uri.authority().map(ToString::to_string);
            if let Ok((tcp, send)) = Box::pin(accept(to, respond)).await {
                let _ = relay(tcp, send, recv).await;
            }
        });
    }
    Ok(())
}

async fn accept(
    to: Option<String>,
    mut respond: SendResponse<Bytes>,
) -> io::Result<(TcpStream, SendStream<Bytes>)> {
    let tcp = TcpStream::connect(to.ok_or_else(|| io::Error::other("no authority"))?).await?;
    tcp.set_nodelay(true)?;
    let response = Response::builder()
        .status(StatusCode::OK)
        .header("baggage", BAGGAGE);
    let response = response.body(()).map_err(io::Error::other)?;
    let send = respond
        .send_response(response, false)
        .map_err(io::Error::other)?;
    Ok((tcp, send))
}

// === impl Near ===

impl Near {
    async fn open(&self, client: SocketAddr) -> io::Result<(SendStream<Bytes>, RecvStream, Place)> {
        let (send, place) = self.connection().await?;
        let request = http::Request::builder()
            .method(Method::CONNECT)
            .uri(&self.app)
            .header("forwarded", format!("for=\"{client}\""))
            .header("baggage", BAGGAGE)
            .header(
                "traceparent",
                format!(
                    "00-{:032x}-{:016x}-01",
                    fastrand::u128(1..),
                    fastrand::u64(1..)
                ),
            )
            .body(())
            .map_err(io::Error::other)?;
        let mut send = send.ready().await.map_err(io::Error::other)?;
        let (response, send) = send
            .send_request(request, false)
            .map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        match response.status() {
            StatusCode::OK => Ok((send, response.into_body(), place)),
            status => Err(io::Error::other(status.to_string())),
        }
    }

    /// The first connection with room, or a new one.
    async fn connection(&self) -> io::Result<(SendRequest<Bytes>, Place)> {
        let mut connections = self.connections.lock().await;
        for connection in &*connections {
            if connection.streams.load(Ordering::Relaxed) < STREAMS {
                return Ok((connection.send.clone(), Place::of(connection)));
            }
        }
        let connection = Connection {
            send: self.dial().await?,
            streams: Arc::default(),
        };
        connections.push(connection.clone());
        Ok((connection.send.clone(), Place::of(&connection)))
    }

    async fn dial(&self) -> io::Result<SendRequest<Bytes>> {
        let tcp = TcpStream::connect(self.far).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let tls = self.tls.connect(name, tcp).await?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .enable_push(false)
            .handshake(tls)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(send)
    }
}

// === impl Place ===

impl Place {
    fn of(connection: &Connection) -> Self {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Self(connection.streams.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === both ends ===

async fn relay(tcp: TcpStream, send: SendStream<Bytes>, recv: RecvStream) -> io::Result<()> {
    let (read, write) = tcp.into_split();
    tokio::try_join!(up(read, send), down(recv, write))?;
    Ok(())
}

async fn up(mut read: OwnedReadHalf, mut send: SendStream<Bytes>) -> io::Result<()> {
    let mut size = FIRST_READ;
    loop {
        // No buffer is held while there is nothing to read.
        read.readable().await?;
        let mut buffer = BytesMut::with_capacity(size);
        let n = read.read_buf(&mut buffer).await?;
        if n == 0 {
            return send.send_data(Bytes::new(), true).map_err(io::Error::other);
        }
        if n == size {
            size = (size * 2).min(LARGEST_READ);
        }
        let mut bytes = buffer.freeze();
        while !bytes.is_empty() {
            send.reserve_capacity(bytes.len());
            if send.capacity() == 0 {
                match poll_fn(|cx| send.poll_capacity(cx)).await {
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Err(io::Error::other(error)),
                    None => return Err(io::ErrorKind::ConnectionReset.into()),
                }
            }
            let piece = bytes.split_to(send.capacity().min(bytes.len()));
            send.send_data(piece, false).map_err(io::Error::other)?;
        }
    }
}

async fn down(mut recv: RecvStream, mut write: OwnedWriteHalf) -> io::Result<()> {
    while let Some(bytes) = recv.data().await {
        let bytes = bytes.map_err(io::Error::other)?;
        write.write_all(&bytes).await?;
        let window = recv.flow_control();
        window
            .release_capacity(bytes.len())
            .map_err(io::Error::other)?;
    }
    write.shutdown().await
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
}
