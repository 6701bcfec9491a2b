//! The Gateway API objects the controller reads: written by hand after version 1.6, whole or refused.

use serde::Deserialize;
use serde_json::Value;

/// The API group of Gateway, GatewayClass and the routes.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The version in which all three kinds are read.
pub const API_VERSION: &str = "gateway.networking.k8s.io/v1";

/// `HTTPRoute.spec`. A field that is not known here refuses the route: it asks for something that would not happen.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// What the route attaches to.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Ignored for Service parents, as the mesh part of the API says.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// In the order in which ties are broken.
    #[serde(default = "default_rules")]
    pub rules: Vec<HttpRule>,
    /// Gateways only.
    pub use_default_gateways: Option<Value>,
}

/// One parent. Read on its own as well, so that a route that is refused still has a status to say so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// `""` is Kubernetes' own group.
    pub group: Option<String>,
    /// `Service` for the mesh.
    pub kind: Option<String>,
    /// The route's namespace unless said.
    pub namespace: Option<String>,
    /// The object.
    pub name: String,
    /// A port's name.
    pub section_name: Option<String>,
    /// A port's number.
    pub port: Option<i64>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// For people.
    pub name: Option<String>,
    /// One must match; none listed: all do.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
    /// What is done to a request that matches.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
    /// Where it goes.
    #[serde(default)]
    pub backend_refs: Vec<HttpBackendRef>,
    /// Not served yet.
    pub timeouts: Option<Value>,
    /// Not served yet.
    pub retry: Option<Value>,
    /// Not served yet.
    pub session_persistence: Option<Value>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Absent: every path.
    pub path: Option<PathMatch>,
    /// Absent: every method.
    pub method: Option<String>,
    /// Request headers.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
}

/// A path condition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// `PathPrefix` unless said.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `/` unless said.
    pub value: Option<String>,
}

/// A header or query condition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueMatch {
    /// `Exact` unless said.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The header or parameter.
    pub name: String,
    /// What it must be.
    pub value: String,
}

/// A filter: the one field that its type names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpFilter {
    /// Which of the fields is meant; the others of the API are refused by this name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of type `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Of type `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifier>,
    /// Of type `RequestRedirect`.
    pub request_redirect: Option<RequestRedirect>,
}

/// Changes to headers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Overwrites.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Appends.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Takes away.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Case does not matter.
    pub name: String,
    /// As it is sent.
    pub value: String,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Absent: the request's.
    pub hostname: Option<String>,
    /// Absent: the request's.
    pub path: Option<RedirectPath>,
    /// Absent: by the scheme.
    pub port: Option<i64>,
    /// 302 unless said.
    pub status_code: Option<i64>,
}

/// How a redirect changes the path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedirectPath {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of type `ReplaceFullPath`.
    pub replace_full_path: Option<String>,
    /// Of type `ReplacePrefixMatch`.
    pub replace_prefix_match: Option<String>,
}

/// One backend of a rule.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpBackendRef {
    /// `""` unless said.
    pub group: Option<String>,
    /// `Service` unless said.
    pub kind: Option<String>,
    /// The object.
    pub name: String,
    /// The route's namespace unless said.
    pub namespace: Option<String>,
    /// A Service needs one.
    pub port: Option<i64>,
    /// 1 unless said.
    pub weight: Option<i64>,
    /// For this backend only.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
}

/// `GatewayClass.spec`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Whose class it is.
    pub controller_name: String,
    /// Not served yet.
    pub parameters_ref: Option<Value>,
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
}

/// What a Gateway passes on to the objects made for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Infrastructure {
    /// Labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Annotations.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Not served yet.
    pub parameters_ref: Option<Value>,
}

/// One listener of a Gateway.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name in status.
    pub name: String,
    /// 15008 for a waypoint.
    pub port: i64,
    /// `HBONE` for a waypoint.
    pub protocol: String,
    /// From where it may be used.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// From where a listener may be used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// Absent: from the Gateway's own namespace.
    pub namespaces: Option<RouteNamespaces>,
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteNamespaces {
    /// `Same`, `All` or `Selector`.
    pub from: Option<String>,
    /// With `Selector`.
    pub selector: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
}

/// What the API server fills in where a route has no rules: one that matches everything and has no backend.
fn default_rules() -> Vec<HttpRule> {
    vec![HttpRule {
        name: None,
        matches: Vec::new(),
        filters: Vec::new(),
        backend_refs: Vec::new(),
        timeouts: None,
        retry: None,
        session_persistence: None,
    }]
}
