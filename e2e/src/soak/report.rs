//! How a storm went, and what of it must not be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::RATE;
use super::changes::{self, Changes};
use super::harm::Harm;
use crate::echo::LoadSummary;

/// A storm that did less than this part of what it is for shows nothing.
const ENOUGH: f64 = 0.8;

/// How a storm went.
#[derive(Debug)]
pub struct Report {
    /// How long it lasted.
    pub took: Duration,
    /// The requests: straight, and through the waypoint.
    pub loads: [LoadSummary; 2],
    /// Pods that left the mesh.
    pub left: Vec<String>,
    /// Pods that were not in the mesh when all had settled, if there were such.
    pub never_in: Option<String>,
    /// Packets between the nodes in which a request could be read: to whom, and when.
    pub readable: Vec<String>,
    /// How often another controller became the one that writes.
    pub leader_changes: i32,
    /// What was changed meanwhile.
    pub changes: Changes,
    /// What was done to the controllers.
    pub harm: Harm,
}

impl Report {
    /// What went wrong; nothing, if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |good: bool, fault: String| {
            if !good {
                faults.push(fault);
            }
        };
        for (way, load) in ["straight", "through the waypoint"].iter().zip(&self.loads) {
            let lost = load.sent - load.ok;
            must(
                lost == 0,
                format!("{lost} requests lost {way}: {:?}", load.errors),
            );
            let wanted = f64::from(RATE) * self.took.as_secs_f64() * ENOUGH;
            must(
                as_f64(load.sent) >= wanted,
                format!("only {} requests {way}", load.sent),
            );
        }
        must(
            self.left.is_empty(),
            format!("left the mesh: {}", self.left.join(", ")),
        );
        if let Some(why) = &self.never_in {
            must(false, format!("not in the mesh at the end: {why}"));
        }
        let mut to = BTreeMap::<&str, usize>::new();
        for packet in &self.readable {
            *to.entry(packet).or_default() += 1;
        }
        let count = self.readable.len();
        must(count == 0, format!("{count} packets in plaintext: {to:?}"));
        must(
            self.leader_changes > 0,
            "the leader never changed".to_owned(),
        );
        let Harm {
            killed,
            deleted,
            forced,
            rolled,
        } = self.harm;
        must(
            [killed, deleted, forced, rolled]
                .iter()
                .all(|times| *times > 0),
            format!("not every harm was done: {:?}", self.harm),
        );
        let wanted = f64::from(changes::RATE) * self.took.as_secs_f64() * ENOUGH;
        let made = self.changes.made;
        must(
            as_f64(made as u64) >= wanted,
            format!("only {made} changes: {:?}", self.changes.errors),
        );
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [straight, routed] = &self.loads;
        let sent = straight.sent + routed.sent;
        let lost = sent - straight.ok - routed.ok;
        let Harm {
            killed,
            deleted,
            forced,
            rolled,
        } = &self.harm;
        let Changes {
            made, pods, failed, ..
        } = &self.changes;
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "the storm lasted {seconds:.0} s: controllers killed {killed}, deleted {deleted}, deleted by force {forced}, \
             rolled {rolled} times"
        )?;
        writeln!(
            f,
            "changes: {made} ({:.1}/s), {pods} of them pods replaced; {failed} could not be made",
            as_f64(*made as u64) / seconds
        )?;
        writeln!(
            f,
            "requests: {sent}, lost: {lost}; straight p99 {:.0} ms, slowest {:.0} ms; through the waypoint p99 {:.0} ms, \
             slowest {:.0} ms",
            straight.latency_p99_ms,
            straight.latency_max_ms,
            routed.latency_p99_ms,
            routed.latency_max_ms
        )?;
        writeln!(f, "pods that left the mesh: {}", self.left.len())?;
        writeln!(
            f,
            "plaintext packets between the nodes: {}",
            self.readable.len()
        )?;
        write!(f, "leader changes: {}", self.leader_changes)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of minutes")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes one thing of a report bad.
    type Spoil = fn(&mut Report);

    fn load(sent: u64, ok: u64) -> LoadSummary {
        LoadSummary {
            sent,
            ok,
            failed: sent - ok,
            ..LoadSummary::default()
        }
    }

    fn good() -> Report {
        Report {
            took: Duration::from_secs(10),
            loads: [load(250, 250), load(250, 250)],
            left: vec![],
            never_in: None,
            readable: vec![],
            leader_changes: 1,
            changes: Changes {
                made: 50,
                pods: 10,
                ..Changes::default()
            },
            harm: Harm {
                killed: 2,
                deleted: 1,
                forced: 1,
                rolled: 1,
            },
        }
    }

    #[test]
    fn each_fault_is_told_and_nothing_else() {
        assert!(good().faults().is_empty(), "{:?}", good().faults());
        let faults: [(&str, Spoil); 8] = [
            ("1 requests lost straight", |r| {
                r.loads[0] = load(250, 249);
            }),
            ("only 100 requests through", |r| {
                r.loads[1] = load(100, 100);
            }),
            ("left the mesh: web", |r| r.left.push("web".to_owned())),
            ("not in the mesh", |r| {
                r.never_in = Some("web".to_owned());
            }),
            ("1 packets", |r| {
                r.readable.push("to web".to_owned());
            }),
            ("never changed", |r| {
                r.leader_changes = 0;
            }),
            ("not every harm", |r| {
                r.harm.rolled = 0;
            }),
            ("only 39 changes", |r| {
                r.changes.made = 39;
            }),
        ];
        for (fault, make) in faults {
            let mut report = good();
            make(&mut report);
            let told = report.faults();
            assert!(
                told.len() == 1 && told[0].contains(fault),
                "{fault}: {told:?}"
            );
        }
    }
}
