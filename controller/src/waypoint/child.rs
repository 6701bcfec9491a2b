//! The kinds of objects that are made for a Gateway.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};

use crate::index::names::Key;

/// The kinds of what is made, in the order in which it is taken away.
pub const CHILDREN: [Child; 3] = [Child::Deployment, Child::Service, Child::ServiceAccount];

/// A kind of what is made for a Gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// apps/v1
    Deployment,
    /// v1
    Service,
    /// v1
    ServiceAccount,
}

// === impl Child ===

impl Child {
    /// As Kubernetes calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
        }
    }

    fn resource(self) -> ApiResource {
        let (group, plural) = match self {
            Self::Deployment => ("apps", "deployments"),
            Self::Service => ("", "services"),
            Self::ServiceAccount => ("", "serviceaccounts"),
        };
        let api_version = if group.is_empty() { "v1" } else { "apps/v1" };
        ApiResource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            api_version: api_version.to_owned(),
            kind: self.kind().to_owned(),
            plural: plural.to_owned(),
        }
    }

    /// Those in the Gateway's namespace.
    pub(crate) fn of(self, client: &Client, gateway: &Key) -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), &gateway.namespace, &self.resource())
    }

    /// Those in all namespaces.
    pub(crate) fn all(self, client: &Client) -> Api<DynamicObject> {
        Api::all_with(client.clone(), &self.resource())
    }
}
