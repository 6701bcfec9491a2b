//! The echo app on loopback: every protocol, the printed format, and the long runs' summaries.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use e2e::echo::{Answer, BenchSummary, HoldSummary, LoadSummary};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ambit-echo");
/// As PID 1 in a pod nobody waits longer for it.
const PROMPT: Duration = Duration::from_millis(100);

/// A running mode, ended when the test ends.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    fn say(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{order}").expect("listens");
    }

    /// SIGTERM, and everything still printed.
    fn terminate(mut self) -> (String, Duration) {
        let start = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("lives");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("text");
        self.child.wait().expect("ends");
        (rest, start.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on free ports of loopback: HTTP, gRPC, TCP, server-first TCP; or HTTP in TLS.
struct Server {
    running: Running,
    ports: Vec<u16>,
}

impl Server {
    fn plain() -> Self {
        let kinds = ["--port=0", "--grpc=0", "--tcp=0", "--server-first=0"];
        Self::start(
            &[&["server", "--bind=127.0.0.1", "--version=v7"], &kinds[..]].concat(),
            4,
        )
    }

    fn tls() -> Self {
        let files = ["--crt=/no/cert.crt", "--key=/no/cert.key"];
        Self::start(
            &[
                &["server", "--bind=127.0.0.1", "--port=0", "--tls=0"],
                &files[..],
            ]
            .concat(),
            1,
        )
    }

    fn start(args: &[&str], ports: usize) -> Self {
        let mut running = Running::start(args);
        let mut port = || {
            let line = running.line();
            line.rsplit(':')
                .next()
                .and_then(|port| port.parse().ok())
                .unwrap_or_else(|| panic!("{line:?}"))
        };
        let ports = (0..ports).map(|_| port()).collect();
        Self { running, ports }
    }

    fn url(&self, scheme: &str, kind: usize, path: &str) -> String {
        format!("{scheme}://127.0.0.1:{}{path}", self.ports[kind])
    }

    fn http(&self, path: &str) -> String {
        self.url("http", 0, path)
    }
}

fn client(args: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("client")
        .args(args)
        .output()
        .expect("starts")
}

fn answers(args: &[&str]) -> Vec<Answer> {
    let output = client(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    Answer::parse_all(std::str::from_utf8(&output.stdout).expect("text"))
}

fn answer(args: &[&str]) -> Answer {
    let mut answers = answers(args);
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .expect("a name")
        .into_string()
        .expect("text")
}

#[test]
fn http_answer_has_the_lines_of_the_contract() {
    let server = Server::plain();
    let url = server.http("/a%20b/c?d=e");
    let output = client(&[
        &url,
        "--method=GET",
        "-H",
        "X-User: a, b",
        "-H",
        "Host:shop:80",
    ]);
    let printed = String::from_utf8(output.stdout).expect("text");
    let port = server.ports[0];
    let expected = format!(
        "[0] Url={url}\n[0] Header=x-user:a, b\n[0] Header=host:shop:80\n[0] StatusCode=200\n\
         [0] ResponseHeader=content-type:text/plain; charset=utf-8\n"
    );
    assert!(printed.starts_with(&expected), "{printed}");
    let body: Vec<_> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("[0 body] "))
        .collect();
    let expected = [
        "ServiceVersion=v7".to_owned(),
        format!("ServicePort={port}"),
        "Host=shop:80".into(),
        "URL=/a%20b/c?d=e".into(),
        "Method=GET".into(),
        "Proto=HTTP/1.1".into(),
        "IP=127.0.0.1".into(),
        "RequestHeader=User-Agent:ambit-echo".into(),
        "RequestHeader=X-User:a, b".into(),
        "RequestHeader=Connection:close".into(),
        format!("Hostname={}", hostname()),
    ];
    assert_eq!(body, expected);
    assert!(printed.ends_with("\n\n"), "a blank line ends each answer");
}

#[test]
fn http_answers_as_wished() {
    let server = Server::plain();
    assert_eq!(answer(&[&server.http("/?status=503")]).status, 503);
    assert_eq!(answer(&[&server.http("/?status=204")]).body, [""; 0]);
    assert_eq!(answer(&[&server.http("/?status=103")]).status, 400);
    assert_eq!(
        answer(&[&server.http("/"), "-H", "x-echo-status:404"]).status,
        404
    );
    let padding = answer(&[&server.http("/?size=1000")])
        .field("Padding")
        .map(str::len);
    assert_eq!(padding, Some(1000));
    let start = Instant::now();
    answer(&[&server.http("/?delay=100ms")]);
    assert!(start.elapsed() >= Duration::from_millis(100));
    let streamed = answer(&[
        &server.http("/?stream=1"),
        "--method=POST",
        "--msg=one\ntwo",
    ]);
    assert_eq!(streamed.body, ["one", "two"]);
    for more in [&["-H", "TE: trailers"][..], &["--http2"]] {
        let url = server.http("/?trailers=1");
        let with = answer(&[&[url.as_str()], more].concat());
        let length: usize = with.body.iter().map(|line| line.len() + 1).sum();
        assert_eq!(
            with.trailers,
            [("x-body-length".to_owned(), length.to_string())],
            "{more:?}"
        );
    }
}

#[test]
fn http2_and_many_at_once() {
    let server = Server::plain();
    let url = server.http("/");
    let two = answer(&[&url, "--http2", "-H", "Host: shop"]);
    assert_eq!(
        (two.field("Proto"), two.field("Host")),
        (Some("HTTP/2.0"), Some("shop"))
    );
    let many = answers(&[&url, "--count=500"]);
    assert_eq!(many.len(), 500);
    assert!(
        many.iter()
            .all(|answer| answer.hostname() == Some(&hostname()))
    );
    let output = String::from_utf8(client(&[&url, "--count=3"]).stdout).expect("text");
    assert_eq!(
        output
            .split("\n\n")
            .filter(|section| section.contains("Hostname="))
            .count(),
        3
    );
    let kept = answers(&[
        &url,
        "--count=50",
        "--new-connection-per-request=false",
        "--concurrency=1",
    ]);
    assert_eq!(
        kept.iter()
            .filter(|answer| answer.request_header("connection").is_none())
            .count(),
        50
    );
}

#[test]
fn tls_takes_both_kinds_of_http() {
    let server = Server::tls();
    let url = server.url("https", 0, "/");
    assert_eq!(answer(&[&url]).field("Proto"), Some("HTTP/1.1"));
    assert_eq!(answer(&[&url, "--http2"]).field("Proto"), Some("HTTP/2.0"));
    let plain = client(&[&server.http("/")]);
    assert!(!plain.status.success());
}

#[test]
fn grpc_puts_the_lines_in_the_message() {
    let server = Server::plain();
    let url = server.url("grpc", 1, "");
    let many = answers(&[&url, "--count=500", "-H", "X-User: beta", "--msg=hi"]);
    assert_eq!(many.len(), 500);
    let one = &many[0];
    let authority = format!("127.0.0.1:{}", server.ports[1]);
    assert_eq!(one.request_header(":authority"), Some(authority));
    assert!(
        one.body
            .iter()
            .any(|line| line == "RequestHeader=x-user:beta"),
        "{one}"
    );
    assert_eq!(
        (one.field("StatusCode"), one.field("Echo")),
        (Some("200"), Some("hi"))
    );
    assert_eq!(one.hostname(), Some(hostname().as_str()));
    let refused = client(&[&url, "-H", "x-echo-status: 8"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ResourceExhausted"));
}

#[tokio::test]
async fn grpc_streams_both_ways() {
    use e2e::echo::proto::{EchoRequest, echo_test_service_client::EchoTestServiceClient};
    let server = Server::plain();
    let mut client = EchoTestServiceClient::connect(server.url("http", 1, ""))
        .await
        .expect("connects");
    let (say, said) = tokio::sync::mpsc::channel::<EchoRequest>(1);
    let said = futures_util::stream::unfold(said, |mut said| async {
        said.recv().await.map(|one| (one, said))
    });
    let mut heard = client.chat(said).await.expect("a stream").into_inner();
    let first = heard.message().await.expect("open").expect("the lines");
    assert!(first.message.contains("Hostname="), "{}", first.message);
    for text in ["one", "two"] {
        say.send(EchoRequest {
            message: text.into(),
        })
        .await
        .expect("open");
        assert_eq!(
            heard
                .message()
                .await
                .expect("open")
                .expect("an echo")
                .message,
            text
        );
    }
    drop(say);
    assert!(heard.message().await.expect("a clean end").is_none());
}

#[test]
fn tcp_introduces_itself_and_echoes() {
    let server = Server::plain();
    for (kind, more) in [(2, None), (3, Some("--server-first"))] {
        let url = server.url("tcp", kind, "");
        let args: Vec<&str> = [url.as_str(), "--msg=ping"]
            .into_iter()
            .chain(more)
            .collect();
        let one = answer(&args);
        assert_eq!(
            (one.hostname(), one.field("IP")),
            (Some(hostname().as_str()), Some("127.0.0.1"))
        );
        assert_eq!((one.field("Echo"), one.status), (Some("ping"), 200));
    }
}

#[test]
fn a_failed_request_is_named() {
    let server = Server::plain();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound");
    for url in [
        format!("http://{closed}/"),
        format!("grpc://{closed}"),
        format!("tcp://{closed}"),
    ] {
        let output = client(&[&url]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr.starts_with(&format!("[0] {url}: ")) && stderr.contains("refused"),
            "{stderr}"
        );
    }
    let slow = client(&[&server.http("/?delay=5s"), "--timeout=50ms"]);
    assert!(String::from_utf8_lossy(&slow.stderr).contains("no answer within 50ms"));
    assert_eq!(client(&["nonsense://x"]).status.code(), Some(64));
}

#[test]
fn load_sums_up() {
    let server = Server::plain();
    let url = format!("--url={}", server.http("/"));
    let mut load = Running::start(&["client", "load", &url, "--rate=100", "--duration=500ms"]);
    assert_eq!(load.line(), "ready");
    let sum: LoadSummary = serde_json::from_str(&load.line()).expect("a summary");
    assert_eq!((sum.failed, sum.unfinished, sum.ok), (0, 0, sum.sent));
    assert!(
        (40..=60).contains(&sum.sent) && sum.latency_p50_ms > 0.0,
        "{sum:?}"
    );
    assert_eq!(sum.hosts.get(&hostname()), Some(&sum.ok));
}

#[test]
fn load_is_asked_and_stopped_and_counts_failures() {
    let server = Server::plain();
    let url = format!("--url={}", server.url("tcp", 2, ""));
    let mut load = Running::start(&["client", "load", &url, "--rate=50", "--stdin"]);
    assert_eq!(load.line(), "ready");
    load.say("now");
    let sum: LoadSummary = serde_json::from_str(&load.line()).expect("a summary");
    assert!(sum.ok >= 1 && sum.failed == 0, "{sum:?}");
    drop(server);
    let sum = loop {
        load.say("now");
        let sum: LoadSummary = serde_json::from_str(&load.line()).expect("a summary");
        if sum.failed > 0 {
            break sum;
        }
    };
    assert!(
        sum.errors[0].error.contains("refused") || sum.errors[0].error.contains("clos"),
        "{sum:?}"
    );
    load.say("stop");
    let last: LoadSummary = serde_json::from_str(&load.line()).expect("a summary");
    assert_eq!((load.line().as_str(), last.unfinished), ("", 0));
}

#[test]
fn bench_measures_a_slice_at_each_order() {
    let server = Server::plain();
    let few = &["--new-connection-per-request", "--most=10"];
    let loads: [(&str, &[&str]); 3] = [
        ("/", &["--slice=50ms", "--connections=3"]),
        ("/", few),
        ("/?size=1000000", &["--slice=50ms"]),
    ];
    let slice = |bench: &mut Running| -> BenchSummary {
        bench.say("now");
        serde_json::from_str(&bench.line()).expect("a summary")
    };
    for (path, more) in loads {
        let url = format!("--url={}", server.http(path));
        let mut bench = Running::start(&[&["client", "bench", &url], more].concat());
        assert_eq!(bench.line(), "ready", "{more:?}");
        slice(&mut bench);
        let sum = slice(&mut bench);
        let good = sum.failed == 0 && sum.requests > 0 && sum.wall_us > 0 && sum.cpu_us > 0;
        assert!(good && sum.latencies.count() == sum.requests, "{sum:?}");
        assert!(more != few || sum.requests == 10, "{sum:?}");
        let large = path.contains("size");
        assert!(!large || sum.bytes >= 1_000_000 * sum.requests, "{sum:?}");
    }
}

#[test]
fn hold_keeps_one_connection() {
    let server = Server::plain();
    for (kind, more) in [(2, None), (3, Some("--server-first"))] {
        let url = format!("--url={}", server.url("tcp", kind, ""));
        let args = ["client", "hold", &url, "--every=5ms"]
            .into_iter()
            .chain(more);
        let mut hold = Running::start(&args.collect::<Vec<_>>());
        assert_eq!(hold.line(), "ready");
        let (rest, took) = hold.terminate();
        let sum: HoldSummary = serde_json::from_str(&rest).expect("a summary");
        assert!(
            sum.rounds >= 1 && sum.broken.is_none() && took < PROMPT,
            "{sum:?} {took:?}"
        );
        assert_eq!(sum.hostname, hostname());
    }
}

#[test]
fn hold_says_what_broke() {
    let server = Server::plain();
    let url = format!("--url={}", server.url("tcp", 2, ""));
    let mut hold = Running::start(&["client", "hold", &url, "--every=20ms"]);
    assert_eq!(hold.line(), "ready");
    drop(server);
    let sum: HoldSummary = serde_json::from_str(&hold.line()).expect("a summary");
    assert!(
        sum.broken.is_some() && sum.broken_at_ms.is_some(),
        "{sum:?}"
    );
}

#[test]
fn every_mode_ends_promptly() {
    let server = Server::plain();
    let load = Running::start(&[
        "client",
        "load",
        &format!("--url={}", server.http("/?delay=3s")),
    ]);
    let mut probe = Running::start(&[
        "client",
        "hold",
        &format!("--url={}", server.url("tcp", 2, "")),
    ]);
    assert_eq!(probe.line(), "ready");
    let sleep = Running::start(&["sleep"]);
    let (rest, took) = load.terminate();
    let sum: LoadSummary = serde_json::from_str(&rest).expect("a summary");
    assert!(sum.unfinished > 0 && took < PROMPT, "{sum:?} {took:?}");
    for running in [sleep, probe, server.running] {
        let (_, took) = running.terminate();
        assert!(took < PROMPT, "{took:?}");
    }
}

#[test]
fn is_named_by_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let client = dir.path().join("client");
    std::os::unix::fs::symlink(PROGRAM, &client).expect("a link");
    let server = Server::plain();
    let output = Command::new(client)
        .arg(server.http("/"))
        .output()
        .expect("starts");
    assert!(output.status.success());
}
