//! What a node says of its pods: the latest word on each, cut to size, and no faster than others can bear.

use std::collections::BTreeMap;

use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::proto::node::EnrolmentReport;
use mesh::xds::ENROLMENT_REPORT_TYPE;
use prost::Message;
use tokio::sync::mpsc::{OwnedPermit, Sender};
use tokio::time::{Instant, sleep_until};

use crate::index::Input;
use crate::rate::{Bucket, Rate};
use crate::text::one_line;

/// A node that comes back speaks of all its pods: more than that run on none. Each may become a status write and an Event.
const REPORTS: Rate = Rate {
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
    bucket: Bucket,
}

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
    pub(super) fn new(now: Instant) -> Self {
        Self {
            waiting: BTreeMap::new(),
            bucket: Bucket::new(REPORTS, now),
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
        sleep_until(self.bucket.ready(Instant::now())).await;
        index.clone().reserve_owned().await.ok()
    }

    /// The next one, if the rate allows one.
    pub(super) fn next(&mut self, now: Instant) -> Option<EnrolmentReport> {
        if !self.bucket.take(now) {
            return None;
        }
        self.waiting.pop_first().map(|(_, report)| report)
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

    #[test]
    fn texts_are_cut_and_cannot_write_lines_of_their_own() {
        let mut reports = Reports::new(Instant::now());
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
        let mut reports = Reports::new(start);
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
    fn a_node_that_speaks_of_pods_without_end_is_stopped() {
        let mut reports = Reports::new(Instant::now());
        let flood = request((0..5000).map(|at: u32| at.to_string()), "");
        assert_eq!(reports.take(&flood), Err(TooMany));
        assert_eq!(reports.waiting.len(), MAX_WAITING);
        let long = request(["u".repeat(1000)].into_iter(), "");
        let mut reports = Reports::new(Instant::now());
        assert_eq!(reports.take(&long), Ok(Some(Unread::Uid(1000))));
        assert!(reports.waiting.is_empty());
    }
}
