//! One line per connection when it is over, in the words of the metrics; of those that were refused, as many as people read.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use hbone::{Target, TraceParent};
use mesh::process::line_limit::{LineLimit, Pass};

use crate::{
    connection::ConnectionInfo,
    failure::Failure,
    metrics::{Bytes, Reporter},
};

/// What a line says.
pub(crate) struct Line<'a> {
    pub(crate) reporter: Reporter,
    pub(crate) src: SocketAddr,
    pub(crate) info: &'a ConnectionInfo,
    pub(crate) bytes: Bytes,
    pub(crate) duration: Duration,
    pub(crate) outcome: &'a Result<(), Failure>,
    /// Of lines about connections of its pod that never reached their other end.
    pub(crate) limit: &'a RefCell<LineLimit>,
    pub(crate) was_open: bool,
}

thread_local! {
    /// Anybody who reaches a pod can be refused before he has shown who he is.
    static HANDSHAKES: RefCell<LineLimit> = const { RefCell::new(LineLimit::new()) };
}

/// Whether there is room for a line about a peer that was not proven.
pub(crate) fn handshake_line() -> Option<Pass> {
    HANDSHAKES.with_borrow_mut(|limit| limit.pass(Instant::now()))
}

impl Line<'_> {
    /// Writes the line: INFO where the connection ended well, WARN where not.
    pub(crate) fn write(&self) {
        let Some(Pass { unlogged }) = self.pass() else {
            return;
        };
        let info = self.info;
        let (source, destination) = (&info.source, &info.destination);
        let error = self.outcome.as_ref().err().map(ToString::to_string);
        let reason = self.outcome.as_ref().err().map(|f| f.code().into_owned());
        let duration = format!("{}ms", self.duration.as_millis());
        let direction = match self.reporter {
            Reporter::source => "outbound",
            Reporter::destination => "inbound",
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    {
                    src.addr = %self.src,
                    src.workload = source.name.as_deref(),
                    src.namespace = source.namespace.as_deref(),
                    src.identity = source.identity.as_ref().map(tracing::field::display),
                    dst.addr = info.dst.map(tracing::field::display),
                    dst.hbone_addr = info.tunnelled.as_ref().map(Target::to_string),
                    dst.service = info.service.as_ref().map(|s| &*s.id.hostname),
                    dst.workload = destination.name.as_deref(),
                    dst.namespace = destination.namespace.as_deref(),
                    dst.identity = destination.identity.as_ref().map(tracing::field::display),
                    direction,
                    bytes_sent = self.bytes.sent,
                    bytes_recv = self.bytes.received,
                    duration,
                    trace_id = info.trace.as_ref().map(TraceParent::trace_id),
                    reason,
                    error,
                    unlogged,
                    },
                    "{}", if self.outcome.is_ok() { "connection complete" } else { "connection failed" }
                )
            };
        }
        if self.outcome.is_ok() {
            line!(info);
        } else {
            line!(warn);
        }
    }
    fn pass(&self) -> Option<Pass> {
        if self.was_open || self.outcome.is_ok() {
            return Some(Pass { unlogged: None });
        }
        self.limit.borrow_mut().pass(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::Ipv4Addr};

    use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt};

    use super::*;

    thread_local! {
        static WRITTEN: Cell<u32> = const { Cell::new(0) };
    }

    /// Counts this thread's events.
    struct Counting;

    impl<S: tracing::Subscriber> Layer<S> for Counting {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            WRITTEN.set(WRITTEN.get() + 1);
        }
    }

    #[test]
    fn one_pods_flood_of_refusals_hides_no_other_line() {
        let counting = tracing_subscriber::registry().with(Counting);
        let _guard = tracing::subscriber::set_default(counting);
        let info = ConnectionInfo::default();
        let (flooded, other) = (RefCell::default(), RefCell::default());
        let refused = Err(Failure::TooMany(1));
        let write = |outcome: &Result<(), Failure>, was_open, limit: &RefCell<LineLimit>| {
            let before = WRITTEN.get();
            Line {
                reporter: Reporter::source,
                src: (Ipv4Addr::LOCALHOST, 1).into(),
                info: &info,
                bytes: Bytes::default(),
                duration: Duration::ZERO,
                outcome,
                limit,
                was_open,
            }
            .write();
            WRITTEN.get() - before
        };
        let flood: u32 = (0..20_000).map(|_| write(&refused, false, &flooded)).sum();
        assert!((100..1_000).contains(&flood), "{flood}");
        assert_eq!(write(&refused, false, &other), 1, "another pod's");
        for _ in 0..1_000 {
            assert_eq!(write(&refused, true, &flooded), 1, "it had been served");
            assert_eq!(write(&Ok(()), true, &flooded), 1);
        }
    }
}
