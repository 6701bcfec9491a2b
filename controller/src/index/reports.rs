//! What nodes say about their pods.
//!
//! A node that moves to another replica is heard by both until the end of the old stream is noticed. The pod's condition
//! decides who is out of date: what a node said here and stood there has been replaced by who heard it later.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use mesh::proto::node::{EnrolmentReport, enrolment_report};

use super::State;
use super::condition::{Conditions, Status};
use super::enrolment::{NO_IDENTITY, PENDING, UNKNOWN_MODE};
use super::names::{IN_MESH, Key};
use super::pods::Pod;

/// Reports of one node that may wait for their pods to be seen: far more than start at once on a node.
const MAX_EARLY: usize = 512;

/// What the node last said about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    Enrolled,
    Removed,
    /// Boxed: nearly all are enrolled.
    Failed(Box<Failure>),
}

/// Why a node could not do with a pod what it was told to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) message: String,
}

/// What the nodes say, by node and pod UID.
#[derive(Debug, Default)]
pub(super) struct Reports {
    nodes: HashMap<Arc<str>, NodeReports>,
}

/// What one node says.
#[derive(Debug, Default)]
struct NodeReports {
    /// About pods that are seen to be there.
    known: HashMap<Arc<str>, Heard>,
    /// About pods that the watch has not shown yet, the oldest first. A pod that never shows was gone before it was seen:
    /// it is forgotten when as many others have been spoken of.
    early: Vec<(Arc<str>, Report)>,
}

/// What a node said about one pod.
#[derive(Debug)]
struct Heard {
    report: Report,
    /// The pod's condition has said the same since.
    stood: bool,
    /// What it replaced before that stood anywhere: its write may still arrive.
    late: Option<Report>,
}

// === impl Report ===

impl Report {
    /// `None`: a state this controller does not know says nothing.
    fn parse(report: &EnrolmentReport) -> Option<Self> {
        match report.state() {
            enrolment_report::State::Unspecified => None,
            enrolment_report::State::Enrolled => Some(Self::Enrolled),
            enrolment_report::State::Removed => Some(Self::Removed),
            enrolment_report::State::Failed => {
                Some(Self::failed(word(&report.reason), report.message.clone()))
            }
        }
    }
}

impl Report {
    /// What a node must have said, for the pod's condition to be what it is.
    fn told_by(conditions: &Conditions) -> Option<Self> {
        let seen = conditions.find(IN_MESH)?;
        match (seen.status(), seen.reason()) {
            (Status::True, _) => Some(Self::Enrolled),
            // These are the controller's own words.
            (Status::False, PENDING | UNKNOWN_MODE | NO_IDENTITY) => None,
            (Status::False, reason) => {
                Some(Self::failed(reason.to_owned(), seen.message().to_owned()))
            }
            (Status::Unknown, _) => None,
        }
    }
}

impl Report {
    fn failed(reason: String, message: String) -> Self {
        Self::Failed(Box::new(Failure { reason, message }))
    }

    /// Whether a condition that tells of `stands` tells of this.
    fn is_in(&self, stands: Option<&Self>) -> bool {
        match self {
            Self::Removed => stands.is_none(),
            said => stands == Some(said),
        }
    }
}

/// A condition's reason must be one word, and none of ours.
fn word(reason: &str) -> String {
    let fits = reason.starts_with(|c: char| c.is_ascii_alphabetic())
        && reason
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_');
    if fits && !matches!(reason, PENDING | UNKNOWN_MODE | NO_IDENTITY) {
        reason.to_owned()
    } else {
        "EnrolmentFailed".to_owned()
    }
}

// === impl Heard ===

impl Heard {
    fn of(report: Report, pod: &Pod) -> Self {
        let stands = Report::told_by(&pod.conditions);
        let stood = report.is_in(stands.as_ref());
        Self {
            report,
            stood,
            late: None,
        }
    }
}

// === impl Reports ===

impl Reports {
    /// What the pod's node last said about it.
    pub(super) fn of(&self, pod: &Pod) -> Option<&Report> {
        let heard = self.nodes.get(&pod.node)?.known.get(&pod.uid)?;
        Some(&heard.report)
    }

    /// Whether the pod's node speaks to this replica.
    pub(super) fn heard_of(&self, pod: &Pod) -> bool {
        self.of(pod).is_some()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.values().map(|node| node.known.len()).sum()
    }

    /// The pod is there now, on its node: what its node said before counts from now on.
    pub(super) fn appeared(&mut self, pod: &Pod) {
        let Some(node) = self.nodes.get_mut(&pod.node) else {
            return;
        };
        if let Some(at) = node.early.iter().position(|(uid, _)| *uid == pod.uid) {
            let (uid, report) = node.early.remove(at);
            node.known.insert(uid, Heard::of(report, pod));
        }
    }

    /// The pod's condition is seen. A node's word in it that replaced what the node said here was said later, elsewhere.
    pub(super) fn compare(&mut self, pod: &Pod) {
        let Some(node) = self.nodes.get_mut(&pod.node) else {
            return;
        };
        let Some(heard) = node.known.get_mut(&pod.uid) else {
            return;
        };
        let stands = Report::told_by(&pod.conditions);
        if heard.report.is_in(stands.as_ref()) {
            heard.stood = true;
        } else if stands.is_some() && heard.late == stands {
            heard.late = None;
        } else if heard.stood && stands.is_some() {
            node.known.remove(&pod.uid);
        }
    }

    /// The pod is there no more.
    pub(super) fn vanished(&mut self, pod: &Pod) {
        let Some(node) = self.nodes.get_mut(&pod.node) else {
            return;
        };
        node.known.remove(&pod.uid);
        self.nodes
            .retain(|_, node| !node.known.is_empty() || !node.early.is_empty());
    }

    /// Whether that is news.
    fn say(&mut self, pod: &Pod, report: Report) -> bool {
        let known = &mut self.nodes.entry(pod.node.clone()).or_default().known;
        if known
            .get(&pod.uid)
            .is_some_and(|before| before.report == report)
        {
            return false;
        }
        let mut heard = Heard::of(report, pod);
        let before = known.remove(&pod.uid);
        heard.late = before
            .filter(|before| !before.stood)
            .map(|before| before.report);
        known.insert(pod.uid.clone(), heard);
        true
    }

    fn say_early(&mut self, node: &Arc<str>, uid: Arc<str>, report: Report) {
        let early = &mut self.nodes.entry(node.clone()).or_default().early;
        early.retain(|(other, _)| *other != uid);
        if early.len() >= MAX_EARLY {
            early.remove(0);
        }
        early.push((uid, report));
    }

    /// Forgets what a node said; about which pods that was.
    fn forget(&mut self, node: &str) -> impl Iterator<Item = Arc<str>> + use<> {
        let gone = self.nodes.remove(node).unwrap_or_default();
        gone.known.into_keys()
    }
}

// === impl State ===

impl State {
    /// What the pod's node last said about it: to this replica or, as the pod's condition tells, to another.
    pub(super) fn said(&self, pod: &Pod) -> Option<Cow<'_, Report>> {
        match self.reports.of(pod) {
            Some(report) => Some(Cow::Borrowed(report)),
            None => Report::told_by(&pod.conditions).map(Cow::Owned),
        }
    }

    /// Only the node on which a pod runs may speak of it.
    pub(super) fn report(&mut self, node: &Arc<str>, report: &EnrolmentReport) {
        let Some(parsed) = Report::parse(report) else {
            return;
        };
        let uid: Arc<str> = report.uid.as_str().into();
        let key = self.tables.pods.lookup().with_uid(&uid);
        let pod = key.and_then(|key| Some((key.clone(), self.tables.pods.get(key)?)));
        match pod {
            Some((key, pod)) if pod.node == *node => {
                let pod = pod.clone();
                if self.reports.say(&pod, parsed) {
                    self.tables.pods.mark(key);
                }
            }
            Some((_, pod)) if !pod.node.is_empty() => {}
            // The node was faster than the watch.
            _ => self.reports.say_early(node, uid, parsed),
        }
    }

    /// Nobody speaks for the node's pods here any more: what their conditions say counts.
    pub(super) fn node_gone(&mut self, node: &str) {
        let uids = self.reports.forget(node);
        let pods = self.tables.pods.lookup();
        let keys: Vec<Key> = uids
            .filter_map(|uid| pods.with_uid(&uid).cloned())
            .collect();
        self.tables.pods.mark_each(keys);
    }
}
