//! How things in the mesh are called.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The domain that service host names end with.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// A service: its namespace and full host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The full host name, `name.namespace.svc.<cluster domain>`.
    pub hostname: Arc<str>,
}

/// A workload's uid in the mesh, such as `Kubernetes//Pod/namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(Arc<str>);

/// What a uid says of the object behind a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UidKind {
    /// A pod: `cluster//Pod/namespace/name`.
    Pod,
    /// What somebody wrote down: an EndpointSlice, a WorkloadEntry, a ServiceEntry.
    Other,
}

/// A network: an address is unique within one, and may be somebody else's in another. The empty name is a network too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(Arc<str>);

/// Text that is no `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not namespace/hostname")]
pub struct InvalidServiceName(String);

// === impl ServiceName ===

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, hostname))
                if !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.into(),
                    hostname: hostname.into(),
                })
            }
            _ => Err(InvalidServiceName(text.to_owned())),
        }
    }
}

// === impl Uid ===

impl Uid {
    /// A pod's.
    pub fn pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }

    /// As on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind of the object: of `cluster/group/kind/namespace/name`, where the core group is empty.
    pub fn kind(&self) -> UidKind {
        let mut segments = self.0.split('/').skip(1);
        match (segments.next(), segments.next()) {
            (Some(""), Some("Pod")) => UidKind::Pod,
            _ => UidKind::Other,
        }
    }

    /// What stands after the last slash: a pod's name.
    pub(crate) fn last_segment(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Network ===

impl Network {
    /// As on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Arc<str>> for Network {
    fn from(name: Arc<str>) -> Self {
        Self(name)
    }
}

impl From<&str> for Network {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_core_groups_pods_are_pods() {
        let kind = |uid: &str| Uid::from(uid).kind();
        assert_eq!(kind("Kubernetes//Pod/ns/name"), UidKind::Pod);
        assert_eq!(Uid::pod("c", "ns", "name").kind(), UidKind::Pod);
        for other in [
            "c/discovery.k8s.io/EndpointSlice/ns/shop/10.0.0.1",
            "c/networking.istio.io/WorkloadEntry/ns/vm",
            "c/networking.istio.io/ServiceEntry/ns/Pod/10.0.0.1",
            "c/evil.example/Pod/ns/name",
            "c/evil.example//Pod/ns/name",
            "c//Node/name",
            "//Pod",
            "",
        ] {
            let expected = match other {
                // A cluster without a name has pods as well.
                "//Pod" => UidKind::Pod,
                _ => UidKind::Other,
            };
            assert_eq!(kind(other), expected, "{other}");
        }
    }
}
