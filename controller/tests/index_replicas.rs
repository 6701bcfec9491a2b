//! Two indexes over one object store: what each wants written comes to an end, and both come to the same.

mod support;

use controller::index::Input;
use controller::index::changes::Kind;
use controller::index::desired::{Item, Wanted, Writer};
use mesh::proto::node::enrolment_report::State;
use mesh::proto::workload::TunnelProtocol;
use serde_json::{Value, json};

use support::{DesiredChanges as _, World, namespace, pod};

const AMBIENT: &str = "istio.io/dataplane-mode";
/// Rounds of writes that a change may take until everybody is content.
const MOST_ROUNDS: usize = 6;

/// The leader, and the replica to which the node of the pod speaks.
struct Replicas {
    leader: World,
    other: World,
}

impl Replicas {
    fn new() -> Self {
        let mut replicas = Self {
            leader: World::new(),
            other: World::new(),
        };
        replicas.apply([
            namespace("shop", json!({AMBIENT: "ambient"})),
            pod("shop", "a", "10.0.0.1", json!({})),
        ]);
        replicas
    }

    /// Both see the objects; then whoever may write does, at the same time, until nobody wants to.
    fn apply(&mut self, objects: impl IntoIterator<Item = Value>) {
        let mut objects: Vec<Value> = objects.into_iter().collect();
        for _ in 0..MOST_ROUNDS {
            self.leader.apply(objects.clone());
            self.other.apply(objects.clone());
            objects = self.written();
            if objects.is_empty() {
                return;
            }
        }
        panic!("writes never end: {objects:?}");
    }

    /// What both write at once; what the second writes goes over what the first has written.
    fn written(&mut self) -> Vec<Value> {
        let mut objects: Vec<Value> = Vec::new();
        for (world, leads) in [(&self.leader, true), (&self.other, false)] {
            for (item, entry) in &world.desired {
                let (Item::Status(target), Wanted::Status(write)) = (item, &entry.wanted) else {
                    continue;
                };
                if !leads && entry.writer == Writer::Leader {
                    continue;
                }
                objects.push(world.after(target, write));
            }
        }
        objects
    }

    fn condition(&self) -> String {
        self.leader
            .condition(Kind::Pod, "shop", "a", "ambit.mesh/InMesh")
    }

    fn spoken(&self) -> [TunnelProtocol; 2] {
        [&self.leader, &self.other].map(|world| {
            let workload = world.workload("Pod/shop/a").expect("known");
            workload.tunnel_protocol()
        })
    }

    fn report(&mut self, state: State, reason: &str) {
        self.other.report("n1", "a", state, reason);
        self.apply([]);
    }
}

#[test]
fn what_a_node_said_to_one_replica_the_other_believes() {
    let mut replicas = Replicas::new();
    assert_eq!(replicas.condition(), "False Pending");
    replicas.report(State::Enrolled, "");
    assert_eq!(replicas.condition(), "True Enrolled");
    assert_eq!(replicas.spoken(), [TunnelProtocol::Hbone; 2]);

    replicas.report(State::Failed, "NoNetns");
    assert_eq!(replicas.condition(), "False NoNetns");
    assert_eq!(replicas.spoken(), [TunnelProtocol::None; 2]);
    assert!(
        replicas
            .leader
            .desired
            .values()
            .all(|entry| !matches!(entry.wanted, Wanted::Status(_)))
    );

    replicas.report(State::Enrolled, "");
    replicas.apply([namespace("shop", json!({}))]);
    assert_eq!(
        replicas.condition(),
        "True Enrolled",
        "until its node says so"
    );
    replicas.report(State::Removed, "");
    assert_eq!(replicas.condition(), "absent");
}

#[test]
fn of_two_replicas_that_heard_one_node_the_later_is_right() {
    let mut replicas = Replicas::new();
    replicas.report(State::Failed, "NoNetns");
    // The node has moved to the leader; the other has not noticed that its stream is dead.
    for (state, condition) in [
        (State::Enrolled, "True Enrolled"),
        (State::Failed, "False Other"),
        (State::Enrolled, "True Enrolled"),
    ] {
        replicas.leader.report("n1", "a", state, "Other");
        replicas.apply([]);
        assert_eq!(replicas.condition(), condition);
    }
    assert_eq!(replicas.spoken(), [TunnelProtocol::Hbone; 2]);
    // And back.
    replicas.report(State::Failed, "NoNetns");
    assert_eq!(replicas.condition(), "False NoNetns");
    assert_eq!(replicas.spoken(), [TunnelProtocol::None; 2]);
}

#[test]
fn what_this_replica_writes_late_does_not_silence_what_it_has_heard_since() {
    let mut replicas = Replicas::new();
    replicas.report(State::Enrolled, "");
    // The write of the first is under way when the second comes.
    let failed = replicas.other.report("n1", "a", State::Failed, "NoNetns");
    let (target, late) = failed.writes().remove(0);
    let late = replicas.other.after(&target, &late.expect("a write"));
    replicas.other.report("n1", "a", State::Enrolled, "");
    replicas.apply([late]);
    assert_eq!(replicas.condition(), "True Enrolled");
    assert_eq!(replicas.spoken(), [TunnelProtocol::Hbone; 2]);
}

#[test]
fn a_node_that_is_gone_leaves_what_the_conditions_say() {
    let mut replicas = Replicas::new();
    replicas.report(State::Failed, "NoNetns");
    replicas.other.input(Input::NodeGone { node: "n1".into() });
    replicas.apply([]);
    assert_eq!(replicas.condition(), "False NoNetns");

    // It comes back to the leader.
    replicas.leader.report("n1", "a", State::Enrolled, "");
    replicas.apply([]);
    assert_eq!(replicas.condition(), "True Enrolled");
    assert_eq!(replicas.spoken(), [TunnelProtocol::Hbone; 2]);
}
