//! `HTTPRoute.spec`.

use serde::Deserialize;

use super::{HttpFilter, ParentRef};

/// `HTTPRoute.spec`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    pub use_default_gateways: Option<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    pub timeouts: Option<Timeouts>,
    /// Not served yet.
    pub retry: Option<Retry>,
    /// Not served yet.
    pub session_persistence: Option<SessionPersistence>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// `PathPrefix` unless said.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `/` unless said.
    pub value: Option<String>,
}

/// A header or query condition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueMatch {
    /// `Exact` unless said.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The header or parameter.
    pub name: String,
    /// What it must be.
    pub value: String,
}

/// One backend of a rule.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
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

/// How long a request may take, as durations of GEP-2257.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// The whole request with its retries.
    pub request: Option<String>,
    /// One attempt.
    pub backend_request: Option<String>,
}

/// When an attempt is made again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Status codes that are tried again, beside connection errors.
    #[serde(default)]
    pub codes: Vec<i64>,
    /// 1 unless said; 0 turns retries off.
    pub attempts: Option<i64>,
    /// The least time between two attempts.
    pub backoff: Option<String>,
}

/// Requests of one client to one backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// `Cookie` unless said.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// When it ends, whatever happens.
    pub absolute_timeout: Option<String>,
    /// Of type `Cookie`; until 1.6 called `cookieConfig`.
    #[serde(alias = "cookieConfig")]
    pub cookie: Option<SessionCookie>,
    /// Of type `Header`.
    pub header: Option<SessionHeader>,
    /// Until 1.6: the cookie's or header's name.
    pub session_name: Option<String>,
}

/// The cookie of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCookie {
    /// `Session` unless said.
    pub lifetime_type: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// `/` unless said.
    pub path: Option<String>,
}

/// The header of a session.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionHeader {
    /// Its name.
    pub name: String,
}

/// What the API server fills in where a route has no rules: one that matches everything and has no backend.
fn default_rules() -> Vec<HttpRule> {
    vec![HttpRule::default()]
}
