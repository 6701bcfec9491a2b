//! A call, taken apart: which objects it is about, and how it wants them.

use http::{Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tower::BoxError;

use super::Cluster;
use super::store::{Place, Resource};

/// Which objects are asked for, and how.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub(super) resource: Resource,
    /// As objects name it.
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
    pub(super) metadata_only: bool,
}

/// A call, taken apart.
pub(super) struct Asked {
    pub(super) verb: &'static str,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) accept: String,
    pub(super) content_type: String,
    pub(super) body: Value,
    pub(super) scope: Scope,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
    pub(super) known: bool,
}

// === impl Asked ===

impl Asked {
    pub(super) async fn read(cluster: &Cluster, request: Request<Body>) -> Result<Self, BoxError> {
        let (head, body) = request.into_parts();
        let query = pairs(head.uri.query().unwrap_or_default());
        let text = |name: header::HeaderName| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let body = body.collect().await?.to_bytes();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body)?
        };
        let get = |name: &str| {
            let found = query.iter().find(|(key, _)| key == name);
            found
                .map(|(_, value)| value.clone())
                .filter(|v| !v.is_empty())
        };
        let path = head.uri.path().to_owned();
        let (group, version, rest) = api(&path);
        let (namespace, rest) = match rest.as_slice() {
            // A namespace's own subresource is no kind.
            ["namespaces", namespace, plural, rest @ ..]
                if !matches!(*plural, "status" | "finalize") =>
            {
                let all = std::iter::once(*plural).chain(rest.iter().copied());
                (Some((*namespace).to_owned()), all.collect::<Vec<_>>())
            }
            rest => (None, rest.to_vec()),
        };
        let plural = rest.first().copied().unwrap_or_default();
        let kind = cluster.lock().store.kind(group, version, plural).copied();
        let name = rest.get(1).map(|name| (*name).to_owned());
        let watching = get("watch").is_some_and(|value| value == "true" || value == "1");
        let verb = match (head.method.as_str(), &name) {
            ("GET", None) if watching => "WATCH",
            ("GET", None) => "LIST",
            ("GET", Some(_)) => "GET",
            ("POST", _) => "POST",
            ("PUT", _) => "PUT",
            ("PATCH", _) => "PATCH",
            _ => "DELETE",
        };
        let scope = Scope {
            resource: Resource {
                group: group.to_owned(),
                plural: plural.to_owned(),
            },
            api_version: if group.is_empty() {
                version.to_owned()
            } else {
                format!("{group}/{version}")
            },
            kind: kind.map_or("", |kind| kind.3).to_owned(),
            namespace,
            labels: get("labelSelector"),
            fields: get("fieldSelector"),
            metadata_only: text(header::ACCEPT).contains("as=PartialObjectMetadata"),
        };
        Ok(Self {
            verb,
            subresource: rest.get(2).map(|name| (*name).to_owned()),
            accept: text(header::ACCEPT),
            content_type: text(header::CONTENT_TYPE),
            known: kind.is_some(),
            path,
            query,
            body,
            scope,
            name,
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    pub(super) fn place(&self) -> Place {
        let namespace = self.scope.namespace.clone().unwrap_or_default();
        let name = self.name.clone().or_else(|| {
            let name = self.body["metadata"]["name"].as_str();
            name.map(str::to_owned)
        });
        (
            self.scope.resource.clone(),
            namespace,
            name.unwrap_or_default(),
        )
    }
}

/// Group, version and what follows.
fn api(path: &str) -> (&str, &str, Vec<&str>) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", version, rest @ ..] => ("", version, rest.to_vec()),
        ["apis", group, version, rest @ ..] => (group, version, rest.to_vec()),
        _ => ("", "", Vec::new()),
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let bytes = text.as_bytes();
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let hex = bytes
                .get(at + 1..at + 3)
                .and_then(|two| std::str::from_utf8(two).ok());
            match hex.map(|two| u8::from_str_radix(two, 16)) {
                Some(Ok(byte)) if bytes[at] == b'%' => {
                    out.push(byte);
                    at += 3;
                }
                _ => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

// === impl Scope ===

impl Scope {
    /// Whether the object is asked for.
    pub(super) fn holds(&self, object: &Value) -> bool {
        let meta = &object["metadata"];
        let there = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
        let namespace = self.namespace.as_deref();
        namespace.is_none_or(|namespace| meta["namespace"] == namespace)
            && selected(self.labels.as_deref(), |name| {
                meta["labels"]
                    .get(name)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            })
            && selected(self.fields.as_deref(), |path| {
                let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
                let of = parents.split('.').fold(object, |of, name| &of[name]);
                Some(there(of, last))
            })
    }

    /// The object as it is asked for.
    pub(super) fn shown(&self, object: &Value) -> Value {
        if !self.metadata_only {
            return object.clone();
        }
        json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": object["metadata"],
        })
    }
}

/// Whether every requirement holds: `a=b`, `a==b`, `a!=b`, `a`, `!a`.
fn selected(selector: Option<&str>, get: impl Fn(&str) -> Option<String>) -> bool {
    let all = selector.unwrap_or_default().split(',');
    all.map(str::trim).filter(|one| !one.is_empty()).all(|one| {
        if let Some((name, value)) = one.split_once("!=") {
            return get(name.trim()).as_deref() != Some(value.trim());
        }
        if let Some((name, value)) = one.split_once('=') {
            let value = value.trim_start_matches('=').trim();
            return get(name.trim()).as_deref() == Some(value);
        }
        match one.strip_prefix('!') {
            Some(name) => get(name).is_none(),
            None => get(one).is_some(),
        }
    })
}
