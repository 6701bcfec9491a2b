//! Names of other objects.

use serde::Deserialize;

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

/// A backend that is named without a weight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendObjectRef {
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
}

/// Any object; the namespace only where the API has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Its group.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: Option<String>,
}
