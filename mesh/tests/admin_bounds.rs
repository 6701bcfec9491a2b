//! What strangers can do to a process through its own pages: everybody who reaches the pod reaches these.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh::process::admin::{Admin, serve};
use mesh::process::metrics;
use mesh::process::readiness::Readiness;
use mesh::process::telemetry::{LogFormat, subscriber};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// On paused time this takes none.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Something that takes until it is told to go on.
#[derive(Clone, Debug)]
struct Slow {
    begun: mpsc::UnboundedSender<()>,
    go_on: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
    count: Arc<AtomicUsize>,
}

impl Slow {
    fn new() -> (
        Self,
        mpsc::UnboundedReceiver<()>,
        std::sync::mpsc::Sender<()>,
    ) {
        let ((begun, begins), (go, go_on)) =
            (mpsc::unbounded_channel(), std::sync::mpsc::channel());
        let slow = Self {
            begun,
            go_on: Arc::new(Mutex::new(go_on)),
            count: Arc::default(),
        };
        (slow, begins, go)
    }

    fn work(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.begun.send(()).expect("the test waits");
        // Of a test that waits for what comes after this.
        let told = self.go_on.lock().recv_timeout(Duration::from_secs(20));
        told.expect("the test goes on");
    }
}

impl Collector for Slow {
    fn encode(&self, _: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.work();
        Ok(())
    }
}

async fn start(registry: Registry, state: impl Fn() + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let (_, filter) = subscriber(LogFormat::Text, "info", std::io::sink).expect("a filter");
    let shown = move || {
        state();
        serde_json::json!({ "pods": ["one"] })
    };
    let admin = Admin::new(registry, Readiness::new(), filter, shown);
    tokio::spawn(serve(listener, admin));
    address
}

/// The whole answer of a connection of its own.
async fn ask(address: SocketAddr, path: &str, host: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("in time").expect("an answer");
    answer
}

async fn is_ready(address: SocketAddr) -> bool {
    let answer = ask(address, "/healthz/ready", "10.0.0.1:15021").await;
    answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n")
}

#[tokio::test(start_paused = true)]
async fn two_thousand_silent_connections_keep_nobody_from_an_answer_and_are_closed() {
    let address = start(Registry::default(), || {}).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for n in 0..2_000 {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // Some say nothing, some begin a head, some come with one request before.
        let said: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nhost: ",
            _ => b"GET /healthz/ready HTTP/1.1\r\nhost: a\r\n\r\n",
        };
        // Closed already, maybe: its source has too many.
        let _ = stream.write_all(said).await;
        silent.push(stream);
    }
    assert!(is_ready(address).await);
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody was waited for");
    let mut closing = JoinSet::new();
    for mut stream in silent {
        closing.spawn(async move { timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await });
    }
    while let Some(closed) = closing.join_next().await {
        // At its end, or reset.
        let _ = closed.expect("it ran").expect("it was closed");
    }
    let took = began.elapsed();
    assert!((5..=6).contains(&took.as_secs()), "{took:?}");
    assert!(is_ready(address).await);
}

#[tokio::test(start_paused = true)]
async fn who_asks_without_end_is_asked_to_come_again() {
    let address = start(Registry::default(), || {}).await;
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let began = Instant::now();
    let mut answer = [0; 4096];
    let request = b"GET /healthz/ready HTTP/1.1\r\nhost: a\r\n\r\n";
    loop {
        // An error: it was closed meanwhile.
        let sent = stream.write_all(request).await;
        if sent.is_err() || !matches!(stream.read(&mut answer).await, Ok(1..)) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it is still served");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!((60..=62).contains(&began.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn two_scrapes_cost_one_encoding_and_readiness_waits_for_none() {
    let (slow, mut begun, go_on) = Slow::new();
    let mut registry = metrics::registry("ztunnel");
    registry.register_collector(Box::new(slow.clone()));
    let address = start(registry, || {}).await;

    let mut scrapes = JoinSet::new();
    scrapes.spawn(ask(address, "/metrics", "a"));
    begun.recv().await.expect("it is being encoded");
    scrapes.spawn(ask(address, "/stats/prometheus", "a"));
    assert!(is_ready(address).await, "while metrics are being encoded");
    go_on.send(()).expect("it waits");
    drop(go_on);
    while let Some(scraped) = scrapes.join_next().await {
        let text = scraped.expect("it ran");
        assert!(text.contains("istio_build{"), "{text}");
    }
    assert_eq!(slow.count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn state_is_built_while_others_are_answered() {
    let (slow, mut begun, go_on) = Slow::new();
    let address = start(Registry::default(), move || slow.work()).await;
    let asked = tokio::spawn(ask(address, "/debug/config_dump", "localhost:15000"));
    begun.recv().await.expect("it is being built");
    assert!(is_ready(address).await);
    go_on.send(()).expect("it waits");
    let state = asked.await.expect("it ran");
    assert!(state.contains("\"pods\""), "{state}");
}

#[tokio::test]
async fn a_web_page_under_a_name_of_its_own_sees_no_state() {
    let address = start(Registry::default(), || panic!("state was gathered")).await;
    for path in ["/debug/config_dump", "/logging"] {
        let answer = ask(address, path, "rebound.example:15000").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("ask for localhost"), "{answer}");
    }
    let answer = ask(address, "/logging", "[::1]:15000").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
