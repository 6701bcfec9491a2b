//! A workload: who it is, where it is, how it is reached, and which services it stands behind.

mod decode;
mod extensions;
pub(crate) mod interner;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{SpiffeId, TrustDomain};

pub use self::decode::InvalidWorkload;
pub(crate) use self::decode::{address, addresses, distinct, port, waypoint};
pub use self::extensions::{awaited, draining};
use crate::names::{Network, ServiceName, Uid, UidKind};

/// One workload, nearly always a pod.
///
/// There are a million of them in a large mesh: what pods of one Deployment, or of one node, have in common is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name on the wire.
    pub uid: Uid,
    /// Of both families, the preferred one first; none twice.
    pub addresses: Box<[IpAddr]>,
    /// How it is reached.
    pub protocol: Tunnel,
    /// It shares its node's addresses, so an address does not name it.
    pub host_network: bool,
    /// It may receive traffic.
    pub healthy: bool,
    /// It may where no other may: it is on its way out, and serves until then.
    pub draining: bool,
    /// What it has in common with the other pods of its template.
    pub template: Arc<Template>,
    /// Where it runs.
    pub location: Arc<Location>,
    /// Its own name, where the uid does not end with it.
    name: Option<Arc<str>>,
}

/// What the pods of one pod template have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// Their service account.
    pub service_account: Arc<str>,
    /// What their identity begins with.
    pub trust_domain: TrustDomain,
    /// Who they prove to be.
    pub identity: SpiffeId,
    /// They speak the tunnel themselves: a waypoint, a sidecar, a gateway.
    pub native_tunnel: bool,
    /// Who must be asked instead of them.
    pub waypoint: Option<WaypointRef>,
    /// The canonical service name.
    pub canonical_name: Arc<str>,
    /// The canonical revision.
    pub canonical_revision: Arc<str>,
    /// What owns them: a Deployment's name, say.
    pub workload_name: Arc<str>,
    /// The kind of that owner.
    pub workload_type: WorkloadType,
    /// The services they stand behind, each with the ports they serve.
    pub services: Box<[(ServiceName, Box<[PortMap]>)]>,
}

/// Where workloads run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The network that their addresses are of.
    pub network: Network,
    /// The Kubernetes node.
    pub node: Arc<str>,
    /// The node's region.
    pub region: Arc<str>,
    /// The node's zone.
    pub zone: Arc<str>,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// As it is: outside the mesh.
    None,
    /// Through a tunnel to port 15008 of its address.
    Hbone,
    /// Not at all: it is to be in the mesh, and its node has not got it there, or has not said so yet. Whoever is in the
    /// mesh does not speak plaintext to it.
    Awaited,
}

/// What owns a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A Job.
    Job,
    /// Nothing, or anything else.
    Pod,
}

/// How a waypoint is named: by its service, or by an address of it; always with its tunnel port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaypointRef {
    /// By its service.
    Service(ServiceName, u16),
    /// By an address of a network: of a service or of a workload.
    Address(Network, SocketAddr),
}

/// A port of a service, and where one workload serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMap {
    /// Of the service.
    pub service: u16,
    /// Of the workload.
    pub target: u16,
}

/// How much a claim on an address is worth, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// A pod has the address by its own network namespace.
    Pod,
    /// A pod in its node's network: the address is the node's, and names no workload.
    Host,
    /// Whatever somebody wrote into an object: an EndpointSlice, an entry.
    Said,
}

// === impl Workload ===

impl Workload {
    /// The pod's name.
    pub fn name(&self) -> &str {
        match &self.name {
            Some(name) => name,
            None => self.uid.last_segment(),
        }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.template.namespace
    }

    /// Who it proves to be.
    pub fn identity(&self) -> SpiffeId {
        self.template.identity.clone()
    }

    /// The services that it stands behind, each with the ports that it serves.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &[PortMap])> {
        let services = self.template.services.iter();
        services.map(|(name, ports)| (name, &**ports))
    }

    /// Where it serves a port of a service.
    pub fn target(&self, service: &ServiceName, port: u16) -> Option<u16> {
        let (_, ports) = self.services().find(|(name, _)| *name == service)?;
        ports.iter().find(|p| p.service == port).map(|p| p.target)
    }

    /// What its claims on addresses are worth.
    pub(crate) fn standing(&self) -> Standing {
        match self.uid.kind() {
            UidKind::Pod if self.host_network => Standing::Host,
            UidKind::Pod => Standing::Pod,
            UidKind::Other => Standing::Said,
        }
    }
}
