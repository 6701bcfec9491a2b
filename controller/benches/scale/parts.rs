//! Where a controller's memory goes: the index and the snapshot, filled one after the other without anybody who reads.

use controller::discovery::snapshot::Snapshot;
use controller::index::desired::DesiredState;
use controller::index::event::{ObjectEvent, WatchEvent};
use controller::index::kinds::Kind;
use controller::index::{Index, Input};
use serde::{Deserialize, Serialize};

use crate::allocator;
use crate::cluster::Cluster;
use crate::controller::settings;

/// Bytes for each pod, by what they are for.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// What the index keeps of objects, what finds them, and what it remembers of what it has told.
    pub(crate) index: f64,
    /// Resources as they go over the wire, once.
    pub(crate) encoded: f64,
    /// What every stream reads, without the resources themselves.
    pub(crate) snapshot: f64,
}

// === impl Parts ===

impl Parts {
    pub(crate) fn measure(cluster: Cluster, pods: usize) -> anyhow::Result<Self> {
        allocator::count();
        let mut index = Index::new(settings());
        for kind in Kind::ALL {
            fill(&mut index, *kind, cluster)?;
        }
        let (snapshot, desired, encoded) = told(&mut index);
        let all = allocator::held();
        drop((index, desired));
        let alone = allocator::held();
        drop(snapshot);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = |bytes: u64| bytes as f64 / pods as f64;
        Ok(Self {
            index: each(all.saturating_sub(alone)),
            encoded: each(encoded),
            snapshot: each(alone.saturating_sub(encoded)),
        })
    }

    /// Why a controller needs so many bytes for each pod.
    pub(crate) fn sentence(&self, all: f64) -> String {
        let Self {
            index,
            encoded,
            snapshot,
        } = self;
        let rest = all - index - encoded - snapshot;
        format!(
            "what the index keeps of objects and of what it told {index:.0}, resources as on the wire {encoded:.0}, \
             what streams read {snapshot:.0}; the allocator's pages and what was needed for a moment {rest:.0}"
        )
    }
}

fn fill(index: &mut Index, kind: Kind, cluster: Cluster) -> anyhow::Result<()> {
    let mut say = |event| {
        index.apply(Input::Object(ObjectEvent::from_json(kind, event)?));
        anyhow::Ok(())
    };
    say(WatchEvent::Begin)?;
    for object in cluster.objects(kind) {
        say(WatchEvent::Item(object))?;
    }
    say(WatchEvent::End {
        version: "1".to_owned(),
    })
}

/// What comes out of the index, as the hub keeps it, and how many bytes its resources are on the wire.
fn told(index: &mut Index) -> (Snapshot, DesiredState, u64) {
    let changes = index.settle();
    let resources = changes.resources.iter();
    let sizes = resources.filter_map(|change| Some(change.resource.as_ref()?.any_len() as u64));
    let encoded = sizes.sum::<u64>();
    let mut snapshot = Snapshot::default();
    snapshot.apply(&changes);
    let mut desired = DesiredState::default();
    for (item, entry) in changes.desired {
        if let Some(entry) = entry {
            desired.insert(item, entry);
        }
    }
    (snapshot, desired, encoded)
}
