//! `GatewayClass.spec` and `Gateway.spec`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::ObjectRef;

/// `GatewayClass.spec`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Whose class it is.
    pub controller_name: String,
    /// For people.
    pub description: Option<String>,
    /// Not served yet.
    pub parameters_ref: Option<ObjectRef>,
}

/// `Gateway.spec`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// The class, which names the controller.
    pub gateway_class_name: String,
    /// A waypoint has one.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Not served: a waypoint's address is its Service's.
    #[serde(default)]
    pub addresses: Vec<Value>,
    /// What is passed on to the children.
    pub infrastructure: Option<Infrastructure>,
    /// Not served: clients come through tunnels.
    pub tls: Option<Value>,
    /// Without effect: who may attach ListenerSets, which a waypoint does not have.
    pub allowed_listeners: Option<Value>,
    /// Without effect: routes without parents, which a waypoint does not have.
    pub default_scope: Option<String>,
}

/// What a Gateway passes on to the objects made for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Infrastructure {
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Not served yet.
    pub parameters_ref: Option<ObjectRef>,
}

/// One listener of a Gateway.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name in status.
    pub name: String,
    /// Without effect: a waypoint's routes are not chosen by host name.
    pub hostname: Option<String>,
    /// 15008 for a waypoint.
    pub port: i64,
    /// `HBONE` for a waypoint.
    pub protocol: String,
    /// Not served: a tunnel's certificate is the mesh's.
    pub tls: Option<Value>,
    /// Not served.
    pub filters: Option<Value>,
    /// From where it may be used.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// From where a listener may be used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// Absent: from the Gateway's own namespace.
    pub namespaces: Option<RouteNamespaces>,
    /// Without effect: routes attach to Services.
    #[serde(default)]
    pub kinds: Vec<Value>,
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteNamespaces {
    /// `Same`, `All` or `Selector`.
    pub from: Option<String>,
    /// With `Selector`.
    pub selector: Option<LabelSelector>,
}
