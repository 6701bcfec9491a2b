//! The labels, annotations, conditions and identifiers that the index reads and writes.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// Whether a namespace or pod is in the mesh: `ambient` or `none`.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The waypoint of a namespace, service or pod, or `none`.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The namespace of that waypoint.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// What a waypoint serves: `service`, `workload`, `all` or `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// On a pod, written by us: `enabled` while its traffic is redirected.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// On a pod: plaintext that arrives is left alone.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// On a pod: it has a sidecar, and is never captured.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// On a pod: `http` says that it speaks HBONE itself.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// On a pod, written by its kubelet: it mirrors a static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// On what is made for a Gateway: its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// On what is made for a Gateway: by whom.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// The value of [`MANAGED`] on what we made.
pub const MANAGED_BY_US: &str = "ambit.mesh-waypoint-controller";
/// On an EndpointSlice: its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The controller name that our GatewayClasses, and the status we write on routes, carry.
pub const CONTROLLER_NAME: &str = "ambit.mesh/waypoint-controller";
/// The GatewayClasses that we make.
pub const CLASSES: [&str; 2] = ["ambit-waypoint", "istio-waypoint"];

/// Pod and Namespace condition: is it in the mesh?
pub const IN_MESH: &str = "ambit.mesh/InMesh";
/// Service condition: does its waypoint serve it?
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// On the ConfigMaps of accepted generations: the namespace whose objects they are about.
pub const ACCEPTED_IN: &str = "ambit.mesh/accepted-in";
/// The names of those ConfigMaps begin so; the namespace follows.
pub const ACCEPTED_PREFIX: &str = "ambit-accepted-";

/// The taint that keeps pods from a node on which the mesh is not there yet. Its effect is `NoSchedule`.
pub const NOT_READY: &str = "ambit.mesh/not-ready";
/// The same of the existing ambient mesh: node pools that make their nodes with it need no change.
pub const ECOSYSTEMS_NOT_READY: &str = "cni.istio.io/not-ready";

/// The port on which tunnels arrive.
pub const HBONE_PORT: u16 = 15008;

/// A namespaced object; the namespace of a cluster-scoped one is empty. A word, because an object is in many tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Arc<NamespacedName>);

/// What a [`Key`] says.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The object's namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
}

/// What a [`Key`] is looked up by, where there is only text.
pub trait Named {
    /// Namespace and name.
    fn parts(&self) -> (&str, &str);
}

// === impl Key ===

impl Key {
    /// Names an object.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self::within(namespace.into(), name)
    }

    /// Names an object of a namespace whose name others hold as well.
    pub fn within(namespace: Arc<str>, name: &str) -> Self {
        let name = name.into();
        Self(Arc::new(NamespacedName { namespace, name }))
    }

    /// Names the object that carries this metadata.
    pub fn of(meta: &kube::core::ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl Deref for Key {
    type Target = NamespacedName;

    fn deref(&self) -> &NamespacedName {
        &self.0
    }
}

// === impl Named ===

impl Named for Key {
    fn parts(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }
}

impl Named for (&str, &str) {
    fn parts(&self) -> (&str, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Named + 'a> for Key {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

// A borrowed key must hash and compare as the key itself does.

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Hash for dyn Named + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Named + '_ {}

impl PartialOrd for dyn Named + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Named + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
