//! Which cluster and which network something is of, wherever a name or an address alone could be two things.
//!
//! The index knows one cluster, whose pods have addresses of one network; its tables are of that cluster. Another cluster
//! would be tables of its own, under another [`ClusterId`]; whether it shares our network is what [`NetworkNumber`] says.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::names::Uid;

use super::names::{Key, NamespacedName};

/// A cluster's name in the identities of workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(Arc<str>);

/// A network that the index knows: within one an address is one thing. A number, because every address has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NetworkNumber(pub(super) u16);

/// An address, where it means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct At {
    network: NetworkNumber,
    ip: IpAddr,
}

// === impl ClusterId ===

impl ClusterId {
    /// As on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The workload that is this pod.
    pub(super) fn pod(&self, pod: &Key) -> Uid {
        Uid::pod(&self.0, &pod.namespace, &pod.name)
    }

    /// The workload that an EndpointSlice of this cluster names by its address.
    pub(super) fn endpoint(&self, slice: &Key, address: IpAddr) -> Uid {
        let NamespacedName { namespace, name } = &**slice;
        let uid = format!("{self}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}");
        Uid::from(uid.as_str())
    }
}

impl From<&str> for ClusterId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl NetworkNumber ===

impl NetworkNumber {
    /// That of the cluster itself, whose name is in the settings.
    pub(super) const OWN: Self = Self(0);
}

// === impl At ===

impl At {
    pub(super) fn new(network: NetworkNumber, ip: IpAddr) -> Self {
        Self { network, ip }
    }

    /// The address itself.
    pub(super) fn ip(self) -> IpAddr {
        self.ip
    }
}

/// What objects of the cluster itself name.
impl From<IpAddr> for At {
    fn from(ip: IpAddr) -> Self {
        Self::new(NetworkNumber::OWN, ip)
    }
}
