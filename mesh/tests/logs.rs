//! A process's log: nobody who logs waits for a reader, what is lost is counted, and one event is one line.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mesh::process::telemetry::{self, LogFormat, queue::Queue, subscriber};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

/// Of a test that would wait for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// Several times what a pipe and the queue hold.
const MANY: u64 = 50_000;

/// What a program does in a process of its own, with the tests' output: says so many lines, then how it went on the
/// other output, and ends in order.
#[test]
#[ignore = "is started by the tests"]
fn program() {
    let mut registry = Registry::default();
    let logs = telemetry::init(LogFormat::Text, "info").expect("logs");
    logs.register(&mut registry);
    let lines: u64 = std::env::var("LINES").map_or(0, |n| n.parse().expect("a number"));
    for line in 0..lines {
        tracing::info!(
            line,
            "a line as long as that of an access log: {}",
            "x".repeat(200)
        );
    }
    let said = tracing::enabled!(tracing::Level::INFO);
    let metrics = mesh::process::metrics::encode(&registry);
    let dropped = metrics
        .lines()
        .find(|line| line.starts_with("ambit_log_lines_dropped_total"));
    eprintln!("said: {said}, {}", dropped.unwrap_or("no count"));
    drop(logs);
    eprintln!("ended");
    std::process::exit(0);
}

fn start(lines: u64) -> (Child, mpsc::Receiver<String>) {
    let this = std::env::current_exe().expect("this test");
    let mut child = Command::new(this)
        .args(["--exact", "program", "--ignored", "--nocapture"])
        .env("LINES", lines.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let errors = BufReader::new(child.stderr.take().expect("its errors"));
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        errors
            .lines()
            .map_while(Result::ok)
            .try_for_each(|l| say.send(l))
    });
    (child, said)
}

#[test]
fn a_program_whose_output_nobody_reads_goes_on_counts_and_ends() {
    let (mut child, said) = start(MANY);
    let first = said.recv_timeout(PATIENCE);
    let last = said.recv_timeout(PATIENCE);
    child.kill().expect("it is ours");
    let status = child.wait().expect("it has ended");
    let count = first
        .ok()
        .and_then(|said| {
            Some(
                said.strip_prefix("said: true, ambit_log_lines_dropped_total ")?
                    .parse::<u64>(),
            )
        })
        .expect("it said all of its lines")
        .expect("a count");
    assert!((1..MANY).contains(&count), "{count}");
    assert_eq!(last.as_deref(), Ok("ended"), "{status}");
}

#[test]
fn what_waits_is_written_at_an_orderly_end() {
    let (mut child, said) = start(1_000);
    let mut text = String::new();
    let mut output = child.stdout.take().expect("its output");
    output.read_to_string(&mut text).expect("text");
    assert_eq!(child.wait().expect("it ended").code(), Some(0));
    assert_eq!(
        said.recv().as_deref(),
        Ok("said: true, ambit_log_lines_dropped_total 0")
    );
    assert_eq!(
        text.lines()
            .filter(|line| line.contains("a line as long"))
            .count(),
        1_000
    );
}

#[test]
fn each_line_is_written_whole_or_counted() {
    let (reader, output) = std::io::pipe().expect("a pipe");
    let queue = Queue::new(output);
    let (subscriber, _filter) =
        subscriber(LogFormat::Json, "info", queue.lines()).expect("a filter");
    tracing::subscriber::with_default(subscriber, || {
        for line in 0..MANY {
            tracing::info!(line, "said");
        }
    });
    let dropped = queue.dropped();
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    // Comes to an end only if nothing was lost that was not counted.
    for line in 0..MANY - dropped {
        let text = lines.next().expect("a line");
        let json = serde_json::from_str::<serde_json::Value>(&text);
        assert!(
            json.is_ok_and(|json| json["message"] == "said"),
            "{line}: {text}"
        );
    }
    assert!(dropped > 0);
    drop(queue);
    assert_eq!(lines.next(), None);
}

#[test]
fn what_a_peer_says_cannot_look_like_a_line_of_ours() {
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let forged = "no\n2026-01-01T00:00:00.000000Z  INFO access: connection complete";
    for format in [LogFormat::Text, LogFormat::Json] {
        let kept = Kept::default();
        let writer = kept.clone();
        let (subscriber, _filter) =
            subscriber(format, "info", move || writer.clone()).expect("a filter");
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("{forged}");
            tracing::warn!(error = %forged, "displayed");
            tracing::warn!(error = forged, "as text");
            tracing::warn!(error = ?forged, "for people who debug");
        });
        let text = String::from_utf8(kept.0.lock().clone()).expect("text");
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(
            text.lines()
                .all(|line| line.contains("connection complete"))
        );
    }
}
