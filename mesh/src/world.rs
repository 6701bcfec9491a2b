//! A proxy's copy of the mesh: one writer, and snapshots that any thread reads without a lock.

mod apply;
mod routes;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::routes::Routes;
pub use crate::balance::{Family, NoEndpoint};
use crate::enrolment::{Enrolment, PodUid};
use crate::names::{ServiceName, Uid};
use crate::route::RouteTable;
use crate::service::Service;
use crate::workload::Workload;
use crate::xds::{Rejected, Update};

/// The mesh as it is known now, for readers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct World {
    now: Arc<ArcSwap<Snapshot>>,
    generation: watch::Receiver<u64>,
}

/// The one who changes the mesh.
#[derive(Debug)]
pub struct WorldWriter {
    now: Arc<ArcSwap<Snapshot>>,
    generation: watch::Sender<u64>,
}

/// The mesh at one moment. A clone shares what it does not change.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    workloads: imbl::HashMap<Uid, Arc<Workload>>,
    /// Addresses are used again: for a moment two pods may claim one.
    by_address: imbl::HashMap<IpAddr, Vec<Arc<Workload>>>,
    services: imbl::HashMap<ServiceName, Arc<Service>>,
    by_vip: imbl::HashMap<IpAddr, Vec<Arc<Service>>>,
    behind: imbl::HashMap<ServiceName, imbl::OrdMap<Uid, Arc<Workload>>>,
    routes: Routes,
    enrolments: imbl::OrdMap<PodUid, Arc<Enrolment>>,
    namespaces: imbl::OrdSet<Arc<str>>,
    uninstalling: bool,
}

/// A workload as one port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Where it serves that port.
    pub target: u16,
}

/// An empty mesh.
pub fn world() -> (WorldWriter, World) {
    let now = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (say, generation) = watch::channel(0);
    let writer = WorldWriter {
        now: now.clone(),
        generation: say,
    };
    (writer, World { now, generation })
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
        next.apply(update)?;
        self.now.store(Arc::new(next));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// The workload with this address, never one in its node's network. Of two the one that may receive traffic.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let claim = self.by_address.get(&ip.to_canonical())?;
        claim.iter().rev().find(|w| w.healthy).or(claim.last())
    }

    /// By its uid.
    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The service with this address.
    pub fn service_at(&self, vip: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&vip.to_canonical())?.first()
    }

    /// By its name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// All workloads that serve a port of a service, in a stable order, healthy or not.
    pub fn endpoints(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> impl Iterator<Item = Endpoint> + use<'_> {
        let name = self.behind.get_key_value(service);
        name.into_iter().flat_map(move |(name, workloads)| {
            workloads.values().filter_map(move |workload| {
                Some(Endpoint {
                    target: workload.target(name, port)?,
                    workload: Arc::clone(workload),
                })
            })
        })
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
