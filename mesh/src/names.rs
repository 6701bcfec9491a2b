//! How things in the mesh are called.

use std::fmt;
use std::sync::Arc;

/// A service: its namespace and full host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The full host name, `name.namespace.svc.<cluster domain>`.
    pub hostname: Arc<str>,
}

// === impl ServiceName ===

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}
