//! The series of connections: found once for each connection, and gone some time after whom they are about.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::TcpLabels;

/// All series of connections. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Arc<RwLock<HashMap<Arc<TcpLabels>, Arc<Series>>>>);

/// What is counted under one set of labels. An open connection holds it.
#[derive(Debug, Default)]
pub(super) struct Series {
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    /// A connection has found it, or ended, since the last time that what is over was looked for.
    used: AtomicBool,
}

/// A counter of a series, and what it is called.
struct Column {
    name: &'static str,
    help: &'static str,
    value: fn(&Series) -> &AtomicU64,
    /// Of connections that never opened nothing else is told, and the reverse.
    tells_of: fn(&Series) -> &AtomicU64,
}

const COLUMNS: [Column; 5] = [
    Column {
        name: "connections_opened",
        help: "Connections opened",
        value: |series| &series.opened,
        tells_of: |series| &series.opened,
    },
    Column {
        name: "connections_closed",
        help: "Connections closed",
        value: |series| &series.closed,
        tells_of: |series| &series.opened,
    },
    Column {
        name: "connections_failed",
        help: "Connections that never opened",
        value: |series| &series.failed,
        tells_of: |series| &series.failed,
    },
    Column {
        name: "sent_bytes",
        help: "Bytes sent in responses",
        value: |series| &series.sent,
        tells_of: |series| &series.opened,
    },
    Column {
        name: "received_bytes",
        help: "Bytes received in requests",
        value: |series| &series.received,
        tells_of: |series| &series.opened,
    },
];

// === impl Table ===

impl Table {
    /// The series of these labels.
    pub(super) fn of(&self, labels: &TcpLabels) -> Arc<Series> {
        if let Some(series) = self.0.read().get(labels) {
            series.touch();
            return Arc::clone(series);
        }
        let mut all = self.0.write();
        let series = all.entry(Arc::new(labels.clone())).or_default();
        series.touch();
        Arc::clone(series)
    }

    /// Forgets the series that no connection has found since this was called before, that none holds open, and whose
    /// labels are not of the mesh as it is. Returns how many are left.
    pub(super) fn retire(&self, is_current: impl Fn(&TcpLabels) -> bool) -> usize {
        let mut all = self.0.write();
        all.retain(|labels, series| {
            let used = series.used.swap(false, Relaxed);
            used || Arc::strong_count(series) > 1 || is_current(labels)
        });
        all.len()
    }

    /// To be read without keeping connections waiting.
    fn all(&self) -> Vec<(Arc<TcpLabels>, Arc<Series>)> {
        let all = self.0.read();
        let shared = all.iter().map(|(l, s)| (Arc::clone(l), Arc::clone(s)));
        shared.collect()
    }
}

// === impl Series ===

impl Series {
    /// It has something new to tell.
    pub(super) fn touch(&self) {
        self.used.store(true, Relaxed);
    }
}

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.all();
        for column in COLUMNS {
            let Column { name, help, .. } = column;
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &all {
                if (column.tells_of)(series).load(Relaxed) == 0 {
                    continue;
                }
                let value = (column.value)(series).load(Relaxed);
                let mut one = family.encode_family(&**labels)?;
                one.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        Ok(())
    }
}
