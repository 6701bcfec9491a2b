//! Hostile callers against the real server in one process: silent sockets, bad tokens at speed, messages without end. What is
//! asserted is that a real proxy is served meanwhile, and how much the callers can make the server take. How long it waits is
//! measured on the cluster (`e2e/tests/probes/floods.rs`), not on a machine that builds.

#[path = "support/server.rs"]
mod server;
mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use controller::discovery::authenticate::checked::{Checked, PER_PEER};
use controller::discovery::authenticate::{Authenticate, AuthenticateError, Caller};
use controller::discovery::snapshot::Snapshot;
use controller::index::Input;
use controller::index::names::Key;
use controller::metrics::Metrics;
use futures_util::future::join_all;
use hbone::SpiffeId;
use mesh::ca::{Caller as Asks, CertificateClient, obtain};
use mesh::control::Control;
use mesh::proto::certificate::IstioCertificateRequest;
use mesh::proto::certificate::istio_certificate_service_client::IstioCertificateServiceClient;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, Service, http};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use server::{Parts, Served};
use support::{World, namespace, pod};

/// For what must happen, however busy the machine is.
const LONG: Duration = Duration::from_secs(30);
const ID: &str = "spiffe://cluster.local/ns/shop/sa/default";

/// Counts what it is asked. It knows one token.
#[derive(Clone, Default)]
struct Reviews(Arc<AtomicUsize>);

#[tonic::async_trait]
impl Authenticate for Reviews {
    async fn whose(&self, token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if token != "ztunnel" {
            return Err(AuthenticateError::Refused("unknown token".to_owned()));
        }
        Ok(Caller {
            account: Key::new("ambit-system", "ztunnel"),
            pod: Some("zt".into()),
            node: None,
        })
    }
}

/// The server, and a mesh with one ztunnel and one pod of its node.
struct Controller {
    served: Served,
    reviews: Reviews,
    /// What the server lives on.
    _kept: (watch::Sender<Arc<Snapshot>>, mpsc::Receiver<Input>),
}

impl Controller {
    async fn start() -> Self {
        let reviews = Reviews::default();
        let metrics = Metrics::default();
        let authenticate: Arc<dyn Authenticate> =
            Arc::new(Checked::new(reviews.clone(), metrics.clone()));
        let (snapshots, seen) = watch::channel(Arc::new(mesh_of_one_pod()));
        let (index, told) = mpsc::channel(64);
        let parts = Parts {
            authenticate,
            snapshots: seen,
            index,
            metrics,
        };
        let served = parts.serve().await.expect("served");
        Self {
            served,
            reviews,
            _kept: (snapshots, told),
        }
    }

    fn control(&self, token: &str) -> Control {
        self.served.control(token).expect("a file")
    }

    /// A connection from an address that is not the proxies'.
    async fn stranger(&self) -> Channel {
        let roots = std::fs::read(self.control("ztunnel").roots).expect("roots");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .domain_name(server::NAME);
        Endpoint::from_shared(format!("https://{}", self.served.address))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .expect("an endpoint")
            .local_address(Some(Ipv4Addr::new(127, 0, 66, 1).into()))
            .connect()
            .await
            .expect("connected")
    }

    /// A certificate for a ztunnel that starts just now: connection, token and all.
    async fn serve_a_ztunnel(&self) {
        let id: SpiffeId = ID.parse().expect("an identity");
        let client = CertificateClient::new(self.control("ztunnel"), "Kubernetes", Asks::Node);
        let signed = timeout(LONG, obtain(&client, &id)).await.expect("in time");
        assert_eq!(*signed.expect("signed").id(), id);
    }

    fn reviews(&self) -> usize {
        self.reviews.0.load(Ordering::Relaxed)
    }
}

fn mesh_of_one_pod() -> Snapshot {
    let mut ztunnel = pod("ambit-system", "zt", "10.0.9.1", json!({}));
    ztunnel["spec"]["serviceAccountName"] = json!("ztunnel");
    ztunnel["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "d", "controller": true}
    ]);
    let changes = World::new().apply([
        namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})),
        pod("shop", "a", "10.0.0.1", json!({})),
        ztunnel,
    ]);
    let mut snapshot = Snapshot::default();
    snapshot.apply(&changes);
    snapshot
}

/// Sockets that say nothing, from some addresses of this machine; those that the server closes are opened again.
struct Silent {
    to: SocketAddr,
    sources: u8,
    held: Vec<TcpStream>,
    renewed: usize,
}

impl Silent {
    async fn hold(to: SocketAddr, sources: u8, count: usize) -> Self {
        let mut silent = Self {
            to,
            sources,
            held: Vec::new(),
            renewed: 0,
        };
        for n in 0..count {
            let socket = silent.open(n).await;
            silent.held.push(socket);
        }
        silent
    }

    async fn open(&self, n: usize) -> TcpStream {
        let source = u8::try_from(n % usize::from(self.sources)).expect("small");
        let socket = TcpSocket::new_v4().expect("a socket");
        let from = Ipv4Addr::new(127, 0, 66, source + 1);
        socket.bind((from, 0).into()).expect("a source");
        socket
            .connect(self.to)
            .await
            .expect("accepted by the kernel")
    }

    /// Opens again what was closed.
    async fn renew(&mut self) {
        for n in 0..self.held.len() {
            let closed = !matches!(
                self.held[n].try_read(&mut [0]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock
            );
            if closed {
                self.held[n] = self.open(n).await;
                self.renewed += 1;
            }
        }
    }
}

/// However busy the machine is: the strangers go on until each ztunnel has been served.
async fn served_beside(controller: &Controller, silent: &mut Silent) {
    for _ in 0..5 {
        let strangers = async {
            loop {
                silent.renew().await;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = controller.serve_a_ztunnel() => {}
            () = strangers => {}
        }
    }
    assert!(silent.renewed > 0, "nobody had to go");
}

/// Two ends of each connection are in this process.
fn take_all_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("Linux");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ztunnel_is_served_while_one_stranger_holds_256_silent_sockets_and_renews_them() {
    let controller = Controller::start().await;
    let mut silent = Silent::hold(controller.served.address, 1, 256).await;
    served_beside(&controller, &mut silent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ztunnel_is_served_while_a_hundred_strangers_hold_5000() {
    take_all_descriptors();
    let controller = Controller::start().await;
    let before = resident();
    let mut silent = Silent::hold(controller.served.address, 100, 5000).await;
    served_beside(&controller, &mut silent).await;
    // Both sides of it, in one process.
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_bad_tokens_cost_few_reviews_and_keep_nobody() {
    let controller = Controller::start().await;
    let channel = controller.stranger().await;
    let begun = Instant::now();
    let answered = &AtomicUsize::new(0);
    let callers = join_all((0..50).map(|caller| {
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        async move {
            for n in 0..100 {
                let mut request = tonic::Request::new(IstioCertificateRequest::default());
                let token = format!("Bearer bad-{caller}-{n}")
                    .parse()
                    .expect("a header");
                request.metadata_mut().insert("authorization", token);
                client.create_certificate(request).await.expect_err("bad");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }));
    let served = async {
        controller.serve_a_ztunnel().await;
        answered.load(Ordering::Relaxed)
    };
    let (_, before) = tokio::join!(callers, served);
    let seconds = usize::try_from(begun.elapsed().as_secs() + 1).expect("small");
    let [burst, rate] =
        [PER_PEER.burst, PER_PEER.per_second].map(|n| usize::try_from(n).expect("small"));
    let reviews = controller.reviews();
    assert!(
        reviews <= burst + rate * seconds + 1,
        "{reviews} reviews in {seconds} s"
    );
    assert!(before < 5000, "it had to wait for all of them");
}

/// A gRPC message of this length that is made while it is sent.
struct Endless {
    begun: bool,
    left: usize,
    sent: Arc<AtomicUsize>,
}

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        static ZEROS: [u8; 16 << 10] = [0; 16 << 10];
        if !self.begun {
            self.begun = true;
            let length = u32::try_from(self.left).expect("short").to_be_bytes();
            let prefix: Vec<u8> = std::iter::once(0).chain(length).collect();
            return Poll::Ready(Some(Ok(http_body::Frame::data(prefix.into()))));
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let chunk = Bytes::from_static(&ZEROS).slice(..self.left.min(ZEROS.len()));
        self.left -= chunk.len();
        self.sent.fetch_add(chunk.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(http_body::Frame::data(chunk))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_200_mib_first_message_next_to_nothing_is_taken() {
    let controller = Controller::start().await;
    for (token, message) in [
        ("nonsense", "not accepted"),
        ("ztunnel", "a message of 209715200 bytes"),
    ] {
        let control = controller.control(token);
        let mut channel = control.connect().await.expect("connected");
        let sent = Arc::new(AtomicUsize::new(0));
        let body = Endless {
            begun: false,
            left: 200 << 20,
            sent: sent.clone(),
        };
        let uri = format!(
            "https://{}/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            controller.served.address
        );
        let header = control.authorization().expect("a token").expect("a token");
        let request = http::Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", header.to_str().expect("text"))
            .body(Body::new(body))
            .expect("a request");
        std::future::poll_fn(|cx| channel.poll_ready(cx))
            .await
            .expect("connected");
        let response = timeout(LONG, channel.call(request))
            .await
            .expect("in time")
            .expect("an answer");
        let status = end_of(response).await;
        assert!(status.contains(message), "{token}: {status}");
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent <= 2 << 20, "{token}: {sent} bytes were taken");
        controller.serve_a_ztunnel().await;
    }
}

/// The message of the status with which an answer ends.
async fn end_of(response: http::Response<Body>) -> String {
    let text = |headers: &http::HeaderMap| {
        let value = headers.get("grpc-message")?;
        Some(percent(value.to_str().ok()?))
    };
    if let Some(text) = text(response.headers()) {
        return text;
    }
    let mut body = response.into_body();
    loop {
        let frame = timeout(
            LONG,
            std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)),
        );
        match frame.await.expect("in time") {
            Some(Ok(frame)) => {
                if let Some(text) = frame.trailers_ref().and_then(text) {
                    return text;
                }
            }
            other => panic!("no status: {other:?}"),
        }
    }
}

fn percent(text: &str) -> String {
    text.replace("%20", " ")
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4096
}
