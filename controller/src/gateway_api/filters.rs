//! What a rule does to a request or its response.

use serde::Deserialize;

use super::{BackendObjectRef, ObjectRef};

/// A filter: the one field that its type names.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpFilter {
    /// Which of the fields is meant.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of type `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Of type `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifier>,
    /// Of type `RequestRedirect`.
    pub request_redirect: Option<RequestRedirect>,
    /// Of type `URLRewrite`; not served yet.
    pub url_rewrite: Option<UrlRewrite>,
    /// Of type `RequestMirror`; not served yet.
    pub request_mirror: Option<RequestMirror>,
    /// Of type `CORS`; not served yet.
    pub cors: Option<Cors>,
    /// Of type `ExternalAuth`; not served yet.
    pub external_auth: Option<ExternalAuth>,
    /// Of type `ExtensionRef`; not served yet.
    pub extension_ref: Option<ObjectRef>,
}

/// Changes to headers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Case does not matter.
    pub name: String,
    /// As it is sent.
    pub value: String,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Absent: the request's.
    pub hostname: Option<String>,
    /// Absent: the request's.
    pub path: Option<PathModifier>,
    /// Absent: by the scheme.
    pub port: Option<i64>,
    /// 302 unless said.
    pub status_code: Option<i64>,
}

/// Changes to the request's URL on its way to the backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UrlRewrite {
    /// Absent: the request's.
    pub hostname: Option<String>,
    /// Absent: the request's.
    pub path: Option<PathModifier>,
}

/// How a path is changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of type `ReplaceFullPath`.
    pub replace_full_path: Option<String>,
    /// Of type `ReplacePrefixMatch`.
    pub replace_prefix_match: Option<String>,
}

/// A copy of requests for another backend, whose answers nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// Who gets it.
    pub backend_ref: BackendObjectRef,
    /// Of a hundred requests.
    pub percent: Option<i64>,
    /// Of any number of requests.
    pub fraction: Option<Fraction>,
}

/// A part of a whole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fraction {
    /// Above.
    pub numerator: i64,
    /// Below: 100 unless said.
    pub denominator: Option<i64>,
}

/// What other origins may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Which origins.
    #[serde(default)]
    pub allow_origins: Vec<String>,
    /// Whether cookies are sent.
    pub allow_credentials: Option<bool>,
    /// Which methods.
    #[serde(default)]
    pub allow_methods: Vec<String>,
    /// Which request headers.
    #[serde(default)]
    pub allow_headers: Vec<String>,
    /// Which response headers scripts may read.
    #[serde(default)]
    pub expose_headers: Vec<String>,
    /// Seconds; 5 unless said.
    pub max_age: Option<i64>,
}

/// Somebody else decides whether a request may pass.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuth {
    /// `GRPC` or `HTTP`.
    pub protocol: String,
    /// Who decides.
    pub backend_ref: BackendObjectRef,
    /// Of protocol `GRPC`.
    pub grpc: Option<AuthHeaders>,
    /// Of protocol `HTTP`.
    pub http: Option<AuthHttp>,
    /// How much of the body is shown.
    pub forward_body: Option<ForwardBody>,
}

/// The request headers that are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthHeaders {
    /// Their names.
    #[serde(default)]
    pub allowed_headers: Vec<String>,
}

/// How an HTTP service is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthHttp {
    /// Before the request's path.
    pub path: Option<String>,
    /// The request headers that are shown.
    #[serde(default)]
    pub allowed_headers: Vec<String>,
    /// The headers of its answer that go on to the backend.
    #[serde(default)]
    pub allowed_response_headers: Vec<String>,
}

/// How much of the body is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardBody {
    /// Bytes; 0: none.
    pub max_size: Option<i64>,
}
