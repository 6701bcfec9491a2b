//! A proxy's copy of the mesh: one writer, and snapshots that any thread reads without a lock.

mod apply;
mod changes;
mod claims;
mod endpoints;
mod routes;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, watch};

pub use self::changes::{Changed, Changes};
use self::claims::Owners;
use self::endpoints::Behind;
pub use self::endpoints::Endpoint;
use self::routes::Routes;
use crate::balance::{StatsTable, Sticky};
use crate::enrolment::{Enrolment, PodUid};
use crate::names::{Network, ServiceName, Uid};
use crate::route::RouteTable;
use crate::service::Service;
use crate::workload::Workload;
use crate::workload::interner::Interner;
use crate::xds::{Rejected, Update};

/// The mesh as it is known now, for readers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct World {
    now: Arc<ArcSwap<Snapshot>>,
    generation: watch::Receiver<u64>,
    /// Only to subscribe to: held weakly, so that readers see the writer go.
    changes: broadcast::WeakSender<Arc<Changed>>,
}

/// The one who changes the mesh.
#[derive(Debug)]
pub struct WorldWriter {
    now: Arc<ArcSwap<Snapshot>>,
    generation: watch::Sender<u64>,
    changes: broadcast::Sender<Arc<Changed>>,
    interner: Interner,
}

/// The mesh at one moment. A clone shares what it does not change.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The network that this proxy is in: its addresses are of no other.
    local: Network,
    workloads: imbl::OrdSet<ByUid>,
    services: imbl::HashMap<ServiceName, Arc<Service>>,
    /// By network: who has which address.
    owners: imbl::OrdMap<Network, Owners>,
    behind: imbl::HashMap<ServiceName, Behind>,
    /// What this process sees of endpoints: one for all snapshots.
    stats: Arc<StatsTable>,
    /// Which clients stay with which endpoint: one for all snapshots.
    sticky: Arc<Sticky>,
    routes: Routes,
    enrolments: imbl::OrdMap<PodUid, Arc<Enrolment>>,
    namespaces: imbl::OrdSet<Arc<str>>,
    uninstalling: bool,
}

/// A workload that is found by its uid. Ordered sets of them are dense; a key of its own would be most of an entry.
#[derive(Clone, Debug)]
struct ByUid(Arc<Workload>);

/// An empty mesh, for a proxy in the network without a name.
pub fn world() -> (WorldWriter, World) {
    world_in(Network::default())
}

/// An empty mesh, for a proxy in network `local`.
pub fn world_in(local: Network) -> (WorldWriter, World) {
    let empty = Snapshot {
        local,
        ..Snapshot::default()
    };
    let now = Arc::new(ArcSwap::from_pointee(empty));
    let (generation_tx, generation) = watch::channel(0);
    let (changes_tx, _) = broadcast::channel(changes::BEHIND);
    let changes = changes_tx.downgrade();
    let writer = WorldWriter {
        now: now.clone(),
        generation: generation_tx,
        changes: changes_tx,
        interner: Interner::default(),
    };
    let world = World {
        now,
        generation,
        changes,
    };
    (writer, world)
}

// === impl World ===

impl World {
    /// Reads one moment; nothing of it can be held across an await.
    pub fn look<T>(&self, f: impl FnOnce(&Snapshot) -> T) -> T {
        f(&self.now.load())
    }

    /// One moment, to keep.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.now.load_full()
    }

    /// Returns once an address of our own network is known, or while none of any network is.
    ///
    /// A proxy that was told a wrong name of its network would take every destination for unknown, and let it pass.
    pub async fn located(&self) {
        let mut changed = self.changed();
        let mut said = false;
        while let Some((ours, other)) = self.look(Snapshot::only_elsewhere) {
            if !said {
                tracing::error!(%ours, %other, "every address that the controller tells of is of another network than NETWORK says that ours is: waiting for one of ours");
                said = true;
            }
            if changed.changed().await.is_err() {
                // Nobody writes this world any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What changes from now on; nothing where nobody writes any more.
    pub fn changes(&self) -> Option<Changes> {
        Some(Changes::of(self.changes.upgrade()?.subscribe()))
    }

    /// Counts the changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }
}

// === impl WorldWriter ===

impl WorldWriter {
    /// Takes an update whole, or refuses it whole and says what is wrong with which of its resources.
    pub fn apply(&mut self, update: &Update) -> Result<(), Rejected> {
        let mut next = Snapshot::clone(&self.now.load());
        let applied = next.apply(update, &mut self.interner);
        self.interner.tidy();
        let changed = applied?;
        self.now.store(Arc::new(next));
        // Nobody may be listening.
        let _ = self.changes.send(Arc::new(changed));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// The workload with this address of our network. It has one owner, whoever else claims it: a pod first, then
    /// nobody if a node has it, then the rest; of equals one in the mesh, then one that may receive traffic.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.owners.get(&self.local)?.workload(ip)
    }

    /// All workloads, of every network.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter().map(|ByUid(workload)| workload)
    }

    /// By its uid.
    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        let ByUid(workload) = self.workloads.get(uid)?;
        Some(workload)
    }

    /// The service with this address of our network and this port; where none of those with the address has the
    /// port, the one whose cluster IP it is. A pod's address is never a service's, nor are a node's other ports.
    pub fn service_at(&self, vip: SocketAddr) -> Option<&Arc<Service>> {
        self.owners.get(&self.local)?.service(vip)
    }

    /// By its name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Whether addresses of this network can be dialled from here.
    pub fn is_local(&self, network: &Network) -> bool {
        self.local == *network
    }

    /// Our network, and another, if addresses are known and none of them is of ours.
    pub fn only_elsewhere(&self) -> Option<(Network, Network)> {
        let other = self.owners.keys().next()?;
        let elsewhere = !self.owners.contains_key(&self.local);
        elsewhere.then(|| (self.local.clone(), other.clone()))
    }

    /// The routes attached to a port of a service; nothing where there is none.
    pub fn routes(&self, service: &ServiceName, port: u16) -> Option<&RouteTable> {
        self.routes.table(service, port)
    }

    /// What the controller wishes of each pod of this node.
    pub fn enrolments(&self) -> impl Iterator<Item = &Arc<Enrolment>> {
        self.enrolments.values()
    }

    /// Whether pods of this namespace are in the mesh unless they opt out.
    pub fn enrolled_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// All such namespaces.
    pub fn enrolled_namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(|name| &**name)
    }

    /// The controller says that the mesh is being uninstalled. A controller that never mentions it says no.
    pub fn uninstalling(&self) -> bool {
        self.uninstalling
    }
}

// === impl ByUid ===

impl Borrow<Uid> for ByUid {
    fn borrow(&self) -> &Uid {
        &self.0.uid
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid == other.0.uid
    }
}

impl Eq for ByUid {}

impl PartialOrd for ByUid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByUid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.uid.cmp(&other.0.uid)
    }
}
