//! The table of desired state: what the index wants Kubernetes to say, per object, for reconcilers to bring there.
//!
//! The table is persistent: a reader keeps a version, compares it with the next one, and works on what differs, so that
//! nobody who publishes ever waits for anybody who reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::index::changes::{Notice, Target, WaypointPlan, Write};
use crate::index::names::Key;

/// What one entry is about. The order puts kinds, and namespaces within a kind, in runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// The status of an object.
    Status(Target),
    /// The Events on an object that hold as long as the object is what it is.
    Events(Target),
    /// What runs for a Gateway.
    Waypoint(Key),
    /// The GatewayClass of this name.
    Class(Arc<str>),
    /// The certificate authority's roots, readable in this namespace.
    Roots(Arc<str>),
    /// The last accepted generations of this namespace's objects.
    Accepted(Arc<str>),
    /// Whether pods may be scheduled on the node of this name.
    Gate(Arc<str>),
}

/// How an item should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The object's status should say this.
    Status(Write),
    /// People should have been told this.
    Events(Vec<Notice>),
    /// This should run for the Gateway.
    Waypoint(WaypointPlan),
    /// Nothing that was made for this Gateway, which is still there, should be left.
    NoWaypoint {
        /// What was made for it names this owner.
        gateway_uid: Arc<str>,
    },
    /// The class should exist.
    Class,
    /// The roots should be readable there.
    Roots,
    /// The roots should not be there any more.
    NoRoots,
    /// These should be the accepted generations, by object.
    Accepted(BTreeMap<String, String>),
    /// The node with this UID should have these of our taints.
    Gate {
        /// Of the node.
        uid: Arc<str>,
        /// What becomes of its taints.
        gate: Gate,
    },
}

/// What becomes of a node's taints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Ours is there: no pod is scheduled on the node that does not tolerate it.
    Closed,
    /// The mesh is there: neither ours nor the ecosystem's is.
    Open,
    /// The mesh does not come there: ours is not.
    NotOurs,
}

/// Which replica brings an entry about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Whoever holds the lease.
    Leader,
    /// The replica whose table it stands in: only it knows.
    ThisReplica,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How the item should be.
    pub wanted: Wanted,
    /// Who sees to it.
    pub writer: Writer,
}

/// The table. An entry leaves it when the cluster is seen to be as wanted (a status, a class), or when nothing is wanted
/// there any more: what stands in it under [`Item::Status`] is what is outstanding.
pub type DesiredState = imbl::OrdMap<Item, Arc<Entry>>;

// === impl Entry ===

impl Entry {
    /// For whoever holds the lease.
    pub fn leader(wanted: Wanted) -> Self {
        Self {
            wanted,
            writer: Writer::Leader,
        }
    }

    /// Whether both ask for the same, whatever people would be told of it.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let same = match (&self.wanted, &other.wanted) {
            (Wanted::Status(one), Wanted::Status(other)) => {
                one.how == other.how && one.body == other.body && one.conditions == other.conditions
            }
            (one, other) => one == other,
        };
        same && self.writer == other.writer
    }
}
