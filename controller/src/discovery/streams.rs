//! Which streams there are: two of a pod at most, and a word to the index when a node's last one has ended.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mesh::xds::session::Deltas;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::lines::Lines;
use super::reports::Pace;
use crate::index::Input;
use crate::index::names::Key;
use crate::rate::{Bucket, Rate};

/// A proxy has one; that of a connection that is dead and not known to be so yet is the other.
const PER_POD: usize = 2;
/// Addresses that the waypoints of one Gateway may ask for: at once as many as one of them may keep, and then enough for
/// new clients, too few to list a mesh by guessing.
const LOOKUPS: Rate = Rate {
    burst: 4096,
    per_second: 50,
};

/// All streams of this replica, and what they share. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    table: Arc<Mutex<Table>>,
    /// Some node is among [`Table::gone`].
    left: Arc<Notify>,
    pub(super) deltas: Deltas,
    /// What they may write into the log.
    pub(super) lines: Lines,
    /// What nodes may report.
    pub(super) pace: Pace,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// Oldest first.
    pods: HashMap<Arc<str>, Vec<Open>>,
    nodes: HashMap<Arc<str>, usize>,
    /// Nodes whose last stream has ended, and of which the index has not heard that yet.
    gone: HashSet<Arc<str>>,
    lookups: HashMap<Key, Bucket>,
}

/// An open stream; it is dropped to be replaced.
#[derive(Debug)]
struct Open {
    id: u64,
    _keep: oneshot::Sender<()>,
}

/// One stream's place among them, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    streams: Streams,
    id: u64,
    pod: Arc<str>,
    /// The node it speaks for.
    node: Option<Arc<str>>,
    replaced: oneshot::Receiver<()>,
}

// === impl Streams ===

impl Streams {
    /// A place for a pod's new stream. The pod's oldest one ends if there are too many.
    pub(super) fn enter(&self, pod: Arc<str>, node: Option<Arc<str>>) -> Place {
        let (keep, replaced) = oneshot::channel();
        let mut table = self.lock();
        table.last += 1;
        let id = table.last;
        let open = table.pods.entry(pod.clone()).or_default();
        if open.len() >= PER_POD {
            // The newest is the one whose proxy still listens.
            open.remove(0);
        }
        open.push(Open { id, _keep: keep });
        if let Some(node) = &node {
            *table.nodes.entry(node.clone()).or_default() += 1;
            // As if this stream had come before the other one ended.
            table.gone.remove(node);
        }
        drop(table);
        Place {
            streams: self.clone(),
            id,
            pod,
            node,
            replaced,
        }
    }

    /// Tells the index of nodes whose last stream has ended, as long as there is an index. Streams themselves keep no place
    /// in its queue: there may be more of them than places.
    pub async fn tell(&self, index: mpsc::Sender<Input>) {
        loop {
            let left = self.left.notified();
            if self.lock().gone.is_empty() {
                left.await;
                continue;
            }
            let Ok(permit) = index.reserve().await else {
                return;
            };
            let mut table = self.lock();
            let Some(node) = table.gone.iter().next().cloned() else {
                continue;
            };
            table.gone.remove(&node);
            // Under the lock, so that the reports of a stream that is just opening come after it.
            permit.send(Input::NodeGone { node });
        }
    }

    /// Whether a waypoint of this Gateway may ask for one more address.
    pub(super) fn lookup(&self, gateway: &Key, now: Instant) -> bool {
        let mut table = self.lock();
        if !table.lookups.contains_key(gateway) {
            table.lookups.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = table.lookups.entry(gateway.clone());
        bucket
            .or_insert_with(|| Bucket::new(LOOKUPS, now))
            .take(now)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

// === impl Place ===

impl Place {
    /// Resolves when newer streams of the pod took this one's place.
    pub(super) async fn replaced(&mut self) {
        // An error is what it waits for: the sender is dropped.
        let _ = (&mut self.replaced).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.streams.lock();
        if let Some(open) = table.pods.get_mut(&self.pod) {
            open.retain(|open| open.id != self.id);
            if open.is_empty() {
                table.pods.remove(&self.pod);
            }
        }
        let Some(node) = self.node.take() else {
            return;
        };
        let left = table.nodes.get(&node).map_or(0, |count| count - 1);
        if left > 0 {
            table.nodes.insert(node, left);
            return;
        }
        table.nodes.remove(&node);
        table.gone.insert(node);
        self.streams.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_replaced(place: &mut Place) -> bool {
        place.replaced.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_third_stream_of_a_pod_replaces_the_oldest() {
        let streams = Streams::default();
        let mut places: Vec<Place> = (0..3).map(|_| streams.enter("a".into(), None)).collect();
        let mut other = streams.enter("b".into(), None);
        let replaced: Vec<bool> = places.iter_mut().map(is_replaced).collect();
        assert_eq!(replaced, [true, false, false]);
        assert!(!is_replaced(&mut other));
        // The replaced one does not take another's place with it when it goes.
        drop(places.remove(0));
        let mut fourth = streams.enter("a".into(), None);
        assert!(is_replaced(&mut places[0]) && !is_replaced(&mut places[1]));
        assert!(!is_replaced(&mut fourth));
        drop((places, other, fourth));
        assert!(streams.lock().pods.is_empty());
    }

    /// What the index is told as far as nothing else happens.
    async fn told(streams: &Streams, index: &mpsc::Sender<Input>) {
        let tell = streams.tell(index.clone());
        let quiet = tokio::time::timeout(std::time::Duration::from_secs(1), tell);
        assert!(quiet.await.is_err(), "it goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn the_index_hears_of_a_node_when_its_last_stream_has_ended() {
        let (index, mut inputs) = mpsc::channel(4);
        let streams = Streams::default();
        let enter = |pod: &str| streams.enter(pod.into(), Some("n".into()));
        let old = enter("old");
        let new = enter("new");
        drop(old);
        told(&streams, &index).await;
        assert!(inputs.try_recv().is_err(), "the new ztunnel reports");
        drop(new);
        told(&streams, &index).await;
        let Ok(Input::NodeGone { node }) = inputs.try_recv() else {
            panic!("nothing was said")
        };
        assert_eq!(&*node, "n");
        assert!(inputs.try_recv().is_err(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn streams_take_no_place_of_the_index_however_many_they_are() {
        let (index, mut inputs) = mpsc::channel(1);
        let streams = Streams::default();
        let name = |n: usize| Some(format!("n{n}").into());
        let all: Vec<Place> = (0..100)
            .map(|n| streams.enter("p".into(), name(n)))
            .collect();
        assert_eq!(index.capacity(), 1);
        drop(all);
        // One that comes back before the index had time for it is not gone.
        let _back = streams.enter("p".into(), name(7));
        let tell = tokio::spawn({
            let (streams, index) = (streams.clone(), index.clone());
            async move { streams.tell(index).await }
        });
        let mut gone = HashSet::new();
        while gone.len() < 99 {
            let Some(Input::NodeGone { node }) = inputs.recv().await else {
                panic!("nothing was said")
            };
            assert!(&*node != "n7" && gone.insert(node));
        }
        told(&streams, &index).await;
        assert!(inputs.try_recv().is_err());
        tell.abort();
    }

    #[test]
    fn a_gateway_asks_at_its_rate_however_often_it_reconnects() {
        let streams = Streams::default();
        let now = Instant::now();
        let (mine, other) = (Key::new("shop", "gate"), Key::new("shop", "other"));
        let asked = (0..10_000).filter(|_| streams.lookup(&mine, now)).count();
        assert_eq!(asked, LOOKUPS.burst as usize);
        assert!(streams.lookup(&other, now));
        assert!(!streams.lookup(&mine, now));
    }
}
