//! The process's own pages, over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use mesh::process::admin::{Admin, serve};
use mesh::process::metrics;
use mesh::process::readiness::Readiness;
use mesh::process::telemetry::{FilterHandle, LogFormat, TelemetryError, subscriber};
use tokio::net::TcpListener;

/// Where log lines go.
#[derive(Clone)]
struct Lines(mpsc::Sender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // A test that ended reads no more lines.
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn filter() -> (
    impl tracing::Subscriber + Send + Sync,
    FilterHandle,
    mpsc::Receiver<Vec<u8>>,
) {
    let (sender, lines) = mpsc::channel();
    let writer = Lines(sender);
    let (subscriber, filter) =
        subscriber(LogFormat::Json, "info", move || writer.clone()).expect("a valid filter");
    (subscriber, filter, lines)
}

async fn admin(ready: Readiness, filter: FilterHandle) -> SocketAddr {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let state = || serde_json::json!({ "pods": ["one"] });
    let admin = Admin::new(metrics::registry("ztunnel"), ready, filter, state);
    tokio::spawn(serve(listener, admin));
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Status and body.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let ask = move || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let answer = tokio::task::spawn_blocking(ask).await.expect("it ran");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

#[tokio::test]
async fn metrics_say_what_runs() {
    let admin = admin(Readiness::new(), filter().1).await;
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, body) = ask(admin, "GET", path).await;
        assert_eq!(status, 200);
        assert!(
            body.contains(r#"istio_build{component="ztunnel",tag=""#),
            "{body}"
        );
        assert!(body.ends_with("# EOF\n"));
    }
    assert_eq!(ask(admin, "GET", "/other").await.0, 404);
}

#[tokio::test]
async fn ready_when_nothing_is_waited_for() {
    let ready = Readiness::new();
    let (xds, listeners) = (ready.wait_for("xds"), ready.wait_for("listeners"));
    let admin = admin(ready, filter().1).await;
    let waits = "waiting for xds, listeners\n".to_owned();
    assert_eq!(ask(admin, "GET", "/healthz/ready").await, (503, waits));
    drop(xds);
    assert_eq!(ask(admin, "GET", "/healthz/ready").await.0, 503);
    drop(listeners);
    assert_eq!(
        ask(admin, "GET", "/healthz/ready").await,
        (200, "ready\n".to_owned())
    );
}

#[tokio::test]
async fn state_is_shown_and_levels_change_live() {
    let (subscriber, filter, lines) = filter();
    let _guard = tracing::subscriber::set_default(subscriber);
    let admin = admin(Readiness::new(), filter).await;
    let (status, body) = ask(admin, "GET", "/debug/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &dump["pods"][0]), (200, &"one".into()));

    let speak = |word: &str| tracing::debug!(target: "clients", word, "spoken");
    speak("before");
    assert_eq!(
        ask(admin, "POST", "/logging?level=info,clients=debug")
            .await
            .0,
        200
    );
    speak("during");
    let (status, body) = ask(admin, "POST", "/logging?level=clients=loud").await;
    assert_eq!(status, 400, "{body}");
    assert!(
        ask(admin, "GET", "/logging")
            .await
            .1
            .contains("clients=debug")
    );
    assert_eq!(
        ask(admin, "POST", "/logging").await,
        (200, "info\n".to_owned())
    );
    speak("after");
    let text: Vec<u8> = lines.try_iter().flatten().collect();
    let text = String::from_utf8(text).expect("text");
    let spoken: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("spoken"))
        .collect();
    assert_eq!(spoken.len(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(spoken[0]).expect("JSON");
    assert_eq!(
        (&line["message"], &line["word"]),
        (&"spoken".into(), &"during".into())
    );
}

#[tokio::test]
async fn only_loopback_sees_state_and_sets_levels() {
    let admin = admin(Readiness::new(), filter().1).await;
    let Some(own) = own_address() else {
        return; // This machine has loopback only.
    };
    let outside = SocketAddr::new(own, admin.port());
    assert_eq!(ask(outside, "GET", "/metrics").await.0, 200);
    for (method, path) in [
        ("GET", "/debug/config_dump"),
        ("POST", "/logging?level=debug"),
    ] {
        assert_eq!(ask(outside, method, path).await.0, 403, "{path}");
    }
}

/// An address of this machine that is not loopback's: the kernel names it without a packet being sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback())
}

#[test]
fn formats_and_filters_are_checked() {
    assert_eq!("json".parse::<LogFormat>().expect("known"), LogFormat::Json);
    assert_eq!(
        "".parse::<LogFormat>().expect("the default"),
        LogFormat::Text
    );
    assert!(matches!(
        "yaml".parse::<LogFormat>(),
        Err(TelemetryError::Format(_))
    ));
    let bad = subscriber(LogFormat::Text, "mesh=loud", std::io::sink);
    assert!(matches!(bad.err(), Some(TelemetryError::Filter { .. })));
}
