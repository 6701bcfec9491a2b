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
