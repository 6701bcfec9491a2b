//! What strangers and proxies can make the discovery service write into its log: all of it is counted, and little is written.

#[path = "support/server.rs"]
mod server;
#[path = "support/streams.rs"]
mod streams;
mod support;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::proto::node::EnrolmentReport;
use mesh::xds::{ENROLMENT_REPORT_TYPE, ENROLMENT_TYPE};
use parking_lot::Mutex;
use prost::Message;
use tonic::Code;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use streams::{Controller, subscription};

/// The lines at INFO and above that were written on this thread, by their message.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<HashMap<String, usize>>>);

impl Log {
    fn lines(&self, message: &str) -> usize {
        self.0.lock().get(message).copied().unwrap_or(0)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("controller")
    }

    fn event(&self, event: &Event<'_>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        *self.0.lock().entry(message.0).or_default() += 1;
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

#[tokio::test]
async fn a_stranger_who_is_refused_at_speed_writes_a_few_lines() {
    let log = Log::default();
    let _on_this_thread = tracing::subscriber::set_default(log.clone());
    let controller = Controller::start().await;
    for _ in 0..400 {
        let refused = controller.open("nobody").await.err().expect("refused");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let lines = log.lines("refused");
    // A hundred at once, and ten a second as long as that took.
    assert!((1..300).contains(&lines), "{lines} lines");
    let counted = controller.metrics();
    let mut counted = counted
        .lines()
        .filter(|line| line.contains("Unauthenticated"));
    let all = counted.next().expect("a series");
    assert!(all.ends_with(" 400"), "all are counted: {all}");
}

#[tokio::test]
async fn a_proxy_that_comes_goes_and_refuses_without_end_writes_a_few_lines() {
    let log = Log::default();
    let _on_this_thread = tracing::subscriber::set_default(log.clone());
    let controller = Controller::start().await;
    for _ in 0..60 {
        let mut stream = controller.open("ztunnel").await.expect("opened");
        stream.say(subscription(ENROLMENT_TYPE)).await;
        stream.next().await;
        let report = EnrolmentReport {
            uid: "u".repeat(1000),
            ..EnrolmentReport::default()
        };
        let report = prost_types::Any {
            type_url: ENROLMENT_REPORT_TYPE.to_owned(),
            value: report.encode_to_vec(),
        };
        stream
            .say(DeltaDiscoveryRequest {
                reports: vec![report; 8],
                ..subscription(ENROLMENT_TYPE)
            })
            .await;
    }
    let words = ["discovery begins", "discovery ended", "a report is dropped"];
    let lines: usize = words.iter().map(|words| log.lines(words)).sum();
    assert!((1..90).contains(&lines), "{lines} lines");
}
