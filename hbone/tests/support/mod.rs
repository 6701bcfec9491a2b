//! A throw-away CA, a served loopback port, and tunnels with an application at each end.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hbone::{
    Acceptor, Baggage, Connection, Credentials, CredentialsWriter, Destination, Ended, Error,
    Expect, Identity, Incoming, Meter, Opened, Pool, PoolLimits, Request, Response, ServerLimits,
    Target, TcpDial, TrustDomain, Tunnel, credentials,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

pub mod frames;
pub mod raw;
pub mod scene;
pub mod wire;

pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// Longer than any test takes on a machine that is busy with others; what hangs fails with this.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a test as the data plane runs: one thread, one `LocalSet`.
pub fn local<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(PATIENCE, test)
            .await
            .expect("the test hangs")
    };
    LocalSet::new().block_on(&runtime, limited)
}

/// A certificate authority for one test.
pub struct Ca {
    pub root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().pem();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// A leaf with these URI names, changed by `change` before it is signed; chain and key.
    pub fn leaf(
        &self,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    pub fn identity(&self, id: &str) -> Identity {
        let (chain, key) = self.leaf(&[id], |_| ());
        Identity::from_pem(&chain, &key, &self.root).unwrap()
    }

    /// A list that revokes these serial numbers.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + Duration::from_secs(3600),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub fn credentials(&self, id: &str) -> (CredentialsWriter, Credentials) {
        credentials(self.identity(id))
    }
}

/// A port that accepts tunnels.
pub struct Served {
    pub addr: SocketAddr,
    pub incoming: mpsc::UnboundedReceiver<Incoming>,
    pub errors: mpsc::UnboundedReceiver<Error>,
    /// One message per connection that ended in order.
    pub over: mpsc::UnboundedReceiver<()>,
    /// Connections so far.
    pub connections: Rc<Cell<usize>>,
    /// Tells the living connections to drain.
    pub drain: Rc<Notify>,
    tasks: Rc<RefCell<Vec<JoinHandle<()>>>>,
    listener: JoinHandle<()>,
}

impl Served {
    pub async fn start(acceptor: Acceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (tell_incoming, incoming) = mpsc::unbounded_channel();
        let (tell_error, errors) = mpsc::unbounded_channel();
        let (tell_over, over) = mpsc::unbounded_channel();
        let (connections, drain) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let tasks = Rc::new(RefCell::new(Vec::new()));
        let (count, held, kept) = (connections.clone(), tasks.clone(), drain.clone());
        let listener = spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, drain) = (acceptor.clone(), kept.clone());
                let (incoming, errors, over) =
                    (tell_incoming.clone(), tell_error.clone(), tell_over.clone());
                let count = count.clone();
                held.borrow_mut().push(spawn_local(async move {
                    match acceptor.accept(tcp).await {
                        Ok(connection) => {
                            count.set(count.get() + 1);
                            serve(connection, &drain, &incoming, &errors, &over).await;
                        }
                        Err(error) => drop(errors.send(error)),
                    }
                }));
            }
        });
        Self {
            addr,
            incoming,
            errors,
            over,
            connections,
            drain,
            tasks,
            listener,
        }
    }

    /// Connections that are being accepted or served.
    pub fn living(&self) -> usize {
        let is_living = |task: &&JoinHandle<()>| !task.is_finished();
        self.tasks.borrow().iter().filter(is_living).count()
    }

    /// Drops all connections and the listener, as a crash would.
    pub async fn crash(&mut self) {
        self.listener.abort();
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn serve(
    mut connection: Connection,
    drain: &Notify,
    incoming: &mpsc::UnboundedSender<Incoming>,
    errors: &mpsc::UnboundedSender<Error>,
    over: &mpsc::UnboundedSender<()>,
) {
    loop {
        let next = tokio::select! {
            next = connection.next() => next,
            () = drain.notified() => {
                connection.drain();
                continue;
            }
        };
        match next {
            Some(Ok(next)) => drop(incoming.send(next)),
            Some(Err(error)) => drop(errors.send(error)),
            None => {
                let _ = over.send(());
                return;
            }
        }
    }
}

/// Two workloads: a pool of one, a served port of the other.
pub struct Lab {
    pub ca: Ca,
    pub client: CredentialsWriter,
    pub server: CredentialsWriter,
    pub served: Served,
    pub pool: Pool<TcpDial>,
    pub to: Destination,
}

impl Lab {
    pub async fn new() -> Self {
        Self::with(PoolLimits::default(), ServerLimits::default()).await
    }

    pub async fn with(pool: PoolLimits, server: ServerLimits) -> Self {
        let ca = Ca::new();
        let (server_writer, server_credentials) = ca.credentials(SERVER);
        let (client_writer, client_credentials) = ca.credentials(CLIENT);
        let acceptor = Acceptor::new(server_credentials, [TrustDomain::default()], server);
        let served = Served::start(acceptor).await;
        let to = destination(served.addr, SERVER);
        let pool = Pool::new(client_credentials, TcpDial, pool);
        Self {
            ca,
            client: client_writer,
            server: server_writer,
            served,
            pool,
            to,
        }
    }

    /// Opens a tunnel and accepts it.
    pub async fn tunnels(&mut self) -> (Tunnel, Tunnel) {
        let request = request();
        let accept = async {
            let incoming = self.served.incoming.recv().await.unwrap();
            incoming.accept(Response::default()).unwrap()
        };
        let (opened, accepted) = tokio::join!(self.pool.open(&self.to, &request), accept);
        (opened.unwrap().tunnel, accepted)
    }

    /// A tunnel with an application at each end.
    pub async fn relayed(&mut self) -> Relayed {
        let (near, far) = self.tunnels().await;
        let ((near_app, near_socket), (far_app, far_socket)) = (pair().await, pair().await);
        let (meter, far_meter) = (Meter::new(), Meter::new());
        let (m, fm) = (meter.clone(), far_meter.clone());
        Relayed {
            near: near_app,
            far: far_app,
            near_ended: spawn_local(async move { near.relay(near_socket, &m).await }),
            far_ended: spawn_local(async move { far.relay(far_socket, &fm).await }),
            meter,
            far_meter,
        }
    }

    /// Opens a tunnel that somebody else accepts.
    pub async fn open(&self) -> Result<Opened, Error> {
        self.pool.open(&self.to, &request()).await
    }
}

/// What two applications see of a tunnel.
pub struct Relayed {
    pub near: TcpStream,
    pub far: TcpStream,
    pub near_ended: JoinHandle<Ended>,
    pub far_ended: JoinHandle<Ended>,
    pub meter: Meter,
    pub far_meter: Meter,
}

pub fn destination(addr: SocketAddr, expect: &str) -> Destination {
    Destination {
        addr,
        expect: Expect::one(expect.parse().unwrap()),
        workload: "uid-1".into(),
    }
}

pub fn request() -> Request {
    let target: Target = "10.1.2.3:80".parse().unwrap();
    let baggage = Baggage {
        namespace: Some("shop".into()),
        ..Baggage::default()
    };
    Request {
        baggage,
        ..Request::to(target)
    }
}

/// Two ends of one loopback connection.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Writes `text` at one end and reads exactly it at the other.
pub async fn passes(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).await.unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).await.unwrap();
    assert_eq!(got, text);
}

/// Expects the end of file.
pub async fn ends(from: &mut TcpStream) {
    assert_eq!(from.read(&mut [0; 16]).await.unwrap(), 0);
}

/// Expects a reset, not an end of file.
pub async fn is_reset(from: &mut TcpStream) {
    let error = from.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}
