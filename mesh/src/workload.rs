//! A workload: who it is, where it is, how it is reached, and which services it stands behind.

mod decode;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{SpiffeId, TrustDomain};

pub use self::decode::InvalidWorkload;
pub(crate) use self::decode::{address, addresses, port, waypoint};
use crate::names::{ServiceName, Uid};

/// One workload, nearly always a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name on the wire.
    pub uid: Uid,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's service account.
    pub service_account: Arc<str>,
    /// What its identity begins with.
    pub trust_domain: TrustDomain,
    /// Of both families, the preferred one first.
    pub addresses: Vec<IpAddr>,
    /// How it is reached.
    pub protocol: Tunnel,
    /// It speaks the tunnel itself: a waypoint, a sidecar, a gateway.
    pub native_tunnel: bool,
    /// The Kubernetes node.
    pub node: Arc<str>,
    /// It shares its node's addresses, so an address does not name it.
    pub host_network: bool,
    /// Who must be asked instead of it.
    pub waypoint: Option<WaypointRef>,
    /// The canonical service name.
    pub canonical_name: Arc<str>,
    /// The canonical revision.
    pub canonical_revision: Arc<str>,
    /// What owns the pod: a Deployment's name, say.
    pub workload_name: Arc<str>,
    /// The kind of that owner.
    pub workload_type: WorkloadType,
    /// The services it stands behind, each with the ports it serves.
    pub services: Vec<(ServiceName, Vec<PortMap>)>,
    /// It may receive traffic.
    pub healthy: bool,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The node's region.
    pub region: Arc<str>,
    /// The node's zone.
    pub zone: Arc<str>,
    identity: SpiffeId,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// As it is: outside the mesh.
    None,
    /// Through a tunnel to port 15008 of its address.
    Hbone,
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
    /// By an address: of a service or of a workload.
    Address(SocketAddr),
}

/// A port of a service, and where one workload serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMap {
    /// Of the service.
    pub service: u16,
    /// Of the workload.
    pub target: u16,
}

// === impl Workload ===

impl Workload {
    /// Who it proves to be.
    pub fn identity(&self) -> SpiffeId {
        self.identity.clone()
    }

    /// Where it serves a port of a service.
    pub fn target(&self, service: &ServiceName, port: u16) -> Option<u16> {
        let (_, ports) = self.services.iter().find(|(name, _)| name == service)?;
        ports.iter().find(|p| p.service == port).map(|p| p.target)
    }
}
