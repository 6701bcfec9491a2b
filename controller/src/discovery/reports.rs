//! What a node says of its pods: the latest word on each, cut to size, and no faster than others can bear.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::proto::node::EnrolmentReport;
use mesh::xds::ENROLMENT_REPORT_TYPE;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc::{OwnedPermit, Sender};
use tokio::time::{Instant, sleep_until};

use crate::index::Input;
use crate::rate::{Bucket, Rate};
use crate::text::one_line;

/// Of one node. One that comes back speaks of all its pods: more than that run on none. Each may become a status write and
/// an Event.
const REPORTS_OF_NODE: Rate = Rate {
    burst: 1024,
    per_second: 50,
};
/// Pods spoken of whose report waits.
const MAX_WAITING: usize = 4096;
/// Bytes of a pod's UID.
const MAX_UID: usize = 128;
/// Bytes of a text for people: it goes into a condition, an Event and the log.
pub(super) const MAX_TEXT: usize = 1024;

/// Reports of one stream that the index has not been told yet.
#[derive(Debug)]
pub(super) struct Reports {
    /// By pod: an older report is of no use when a newer one is there.
    waiting: BTreeMap<String, EnrolmentReport>,
    node: Arc<str>,
    pace: Pace,
}

/// How fast nodes' reports are told, each node's on whichever streams they come. A node that has been silent for as long as
/// its bucket needs to be full is forgotten. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace(Arc<Mutex<HashMap<Arc<str>, Bucket>>>);

/// Why a report counts for nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    /// It is long.
    #[error("its pod's UID has {0} bytes")]
    Uid(usize),
    /// It is none.
    #[error("it cannot be read: {0}")]
    Bytes(#[source] prost::DecodeError),
}

/// More pods than a node can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("reports of more than {MAX_WAITING} pods wait to be taken")]
pub(super) struct TooMany;

// === impl Reports ===

impl Reports {
    /// Nothing said yet.
    pub(super) fn new(node: Arc<str>, pace: Pace) -> Self {
        Self {
            waiting: BTreeMap::new(),
            node,
            pace,
        }
    }

    /// Takes in what a request says, and gives the last of what cannot be taken.
    pub(super) fn take(
        &mut self,
        request: &DeltaDiscoveryRequest,
    ) -> Result<Option<Unread>, TooMany> {
        let mut unread = None;
        let reports = request.reports.iter();
        for any in reports.filter(|any| any.type_url == ENROLMENT_REPORT_TYPE) {
            let mut report = match EnrolmentReport::decode(&*any.value) {
                Ok(report) if report.uid.len() <= MAX_UID => report,
                Ok(report) => {
                    unread = Some(Unread::Uid(report.uid.len()));
                    continue;
                }
                Err(error) => {
                    unread = Some(Unread::Bytes(error));
                    continue;
                }
            };
            report.reason = one_line(&report.reason, MAX_TEXT);
            report.message = one_line(&report.message, MAX_TEXT);
            if self.waiting.len() >= MAX_WAITING && !self.waiting.contains_key(&report.uid) {
                return Err(TooMany);
            }
            self.waiting.insert(report.uid.clone(), report);
        }
        Ok(unread)
    }

    /// Waits until there is a report and it may be told. Nothing is lost if this is not waited for.
    pub(super) async fn ready(&mut self, index: &Sender<Input>) -> Option<OwnedPermit<Input>> {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        sleep_until(self.pace.ready(&self.node, Instant::now())).await;
        index.clone().reserve_owned().await.ok()
    }

    /// The next one, if the rate allows one.
    pub(super) fn next(&mut self, now: Instant) -> Option<EnrolmentReport> {
        if !self.pace.take(&self.node, now) {
            return None;
        }
        self.waiting.pop_first().map(|(_, report)| report)
    }
}

// === impl Pace ===

impl Pace {
    /// When one of the node's may be told, as far as nobody else tells one before.
    fn ready(&self, node: &Arc<str>, now: Instant) -> Instant {
        let mut buckets = self.0.lock();
        let bucket = buckets.get_mut(node);
        bucket.map_or(now, |bucket| bucket.ready(now))
    }

    /// Takes one of the node's, if there is one.
    fn take(&self, node: &Arc<str>, now: Instant) -> bool {
        let mut buckets = self.0.lock();
        if !buckets.contains_key(node) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = buckets.entry(node.clone());
        bucket
            .or_insert_with(|| Bucket::new(REPORTS_OF_NODE, now))
            .take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uids: impl Iterator<Item = String>, message: &str) -> DeltaDiscoveryRequest {
        let report = |uid| EnrolmentReport {
            uid,
            message: message.to_owned(),
            reason: message.to_owned(),
            ..EnrolmentReport::default()
        };
        let any = |report: EnrolmentReport| prost_types::Any {
            type_url: ENROLMENT_REPORT_TYPE.to_owned(),
            value: report.encode_to_vec(),
        };
        DeltaDiscoveryRequest {
            reports: uids.map(report).map(any).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Of a node that nobody has heard of.
    fn reports() -> Reports {
        Reports::new("n".into(), Pace::default())
    }

    #[test]
    fn texts_are_cut_and_cannot_write_lines_of_their_own() {
        let mut reports = reports();
        let long = "y\r\n".repeat(5000);
        reports
            .take(&request(["a".to_owned()].into_iter(), &long))
            .expect("taken");
        let report = reports.next(Instant::now()).expect("a report");
        assert!(report.message.len() <= MAX_TEXT && report.reason.len() <= MAX_TEXT);
        assert!(!report.message.contains('\n'));
    }

    #[test]
    fn a_flood_is_told_at_its_rate_and_each_pod_once() {
        let start = Instant::now();
        let mut reports = reports();
        let uids = || (0..2000).map(|at: u32| at.to_string());
        for word in ["first", "second", "last"] {
            reports.take(&request(uids(), word)).expect("taken");
        }
        let told: Vec<_> = std::iter::from_fn(|| reports.next(start)).collect();
        assert_eq!(told.len(), 1024);
        assert!(told.iter().all(|report| report.message == "last"));
        let later = start + std::time::Duration::from_secs(1);
        let told = std::iter::from_fn(|| reports.next(later)).count();
        assert_eq!(told, 50);
    }

    #[test]
    fn a_node_is_told_at_its_rate_on_whichever_streams_it_speaks() {
        let (start, pace) = (Instant::now(), Pace::default());
        let opened = |node: &str| {
            let mut reports = Reports::new(node.into(), pace.clone());
            let uids = (0..2000).map(|at: u32| at.to_string());
            reports.take(&request(uids, "")).expect("taken");
            reports
        };
        let told = |reports: &mut Reports, at| std::iter::from_fn(|| reports.next(at)).count();
        let mut first = opened("n1");
        assert_eq!(told(&mut first, start), 1024);
        for _ in 0..3 {
            assert_eq!(told(&mut opened("n1"), start), 0, "it was full again");
        }
        assert_eq!(told(&mut opened("n2"), start), 1024, "others have theirs");
        let later = start + std::time::Duration::from_secs(1);
        let mut again = opened("n1");
        assert_eq!(told(&mut again, later) + told(&mut first, later), 50);
        assert!(pace.ready(&first.node, later) > later);
        // Who has been silent for long is like one who was never there.
        let much_later = start + std::time::Duration::from_secs(3600);
        assert_eq!(told(&mut opened("n3"), much_later), 1024);
        assert_eq!(pace.0.lock().len(), 1);
    }

    #[test]
    fn a_node_that_speaks_of_pods_without_end_is_stopped() {
        let mut flooded = reports();
        let flood = request((0..5000).map(|at: u32| at.to_string()), "");
        assert_eq!(flooded.take(&flood), Err(TooMany));
        assert_eq!(flooded.waiting.len(), MAX_WAITING);
        let long = request(["u".repeat(1000)].into_iter(), "");
        let mut reports = reports();
        assert_eq!(reports.take(&long), Ok(Some(Unread::Uid(1000))));
        assert!(reports.waiting.is_empty());
    }
}
