//! What there is to do, and which of it takes turns with which.

use std::sync::Arc;

use super::queue;
use crate::index::changes::{Kind, Target};
use crate::index::desired::Item;

/// One thing to do, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// Bring this about.
    Item(Item),
    /// Tell what waits to be told about this object.
    Tell(Target),
}

/// What has turns of its own: a kind of work, in a namespace; where there is none its name is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    pub(super) kind: WorkKind,
    pub(super) namespace: Arc<str>,
}

/// The kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum WorkKind {
    Status(Kind),
    Events,
    Waypoint,
    Class,
    Roots,
    Accepted,
    Gate,
}

// === impl Work ===

impl queue::Work for Work {
    type Lane = Lane;
    type Namespace = Arc<str>;

    fn lane(&self) -> Lane {
        let cluster = Arc::from("");
        let (kind, namespace) = match self {
            Self::Item(Item::Status(target)) => {
                (WorkKind::Status(target.kind), &target.key.namespace)
            }
            Self::Item(Item::Events(target)) | Self::Tell(target) => {
                (WorkKind::Events, &target.key.namespace)
            }
            Self::Item(Item::Waypoint(key)) => (WorkKind::Waypoint, &key.namespace),
            Self::Item(Item::Class(_)) => (WorkKind::Class, &cluster),
            Self::Item(Item::Roots(namespace)) => (WorkKind::Roots, namespace),
            Self::Item(Item::Accepted(namespace)) => (WorkKind::Accepted, namespace),
            Self::Item(Item::Gate(_)) => (WorkKind::Gate, &cluster),
        };
        Lane {
            kind,
            namespace: namespace.clone(),
        }
    }

    fn namespace(&self) -> Arc<str> {
        self.lane().namespace
    }
}
