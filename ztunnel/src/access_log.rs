//! One line per connection when it is over, in the words of the metrics.

use std::{net::SocketAddr, time::Duration};

use hbone::{Target, TraceParent};

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
}

impl Line<'_> {
    /// Writes the line: INFO where the connection ended well, WARN where not.
    pub(crate) fn write(&self) {
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
}
