//! Objects and their past, under one version counter.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::apply;

/// Group, version, plural, kind, whether it lives in namespaces.
type Kind = (&'static str, &'static str, &'static str, &'static str, bool);

const GATEWAY: &str = "gateway.networking.k8s.io";

/// What an API server of these tests knows.
const KINDS: &[Kind] = &[
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "nodes", "Node", false),
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "services", "Service", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "secrets", "Secret", true),
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "events", "Event", true),
    ("apps", "v1", "deployments", "Deployment", true),
    ("apps", "v1", "replicasets", "ReplicaSet", true),
    ("apps", "v1", "daemonsets", "DaemonSet", true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true),
    (
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        true,
    ),
    ("events.k8s.io", "v1", "events", "Event", true),
    (
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        true,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterroles",
        "ClusterRole",
        false,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterrolebindings",
        "ClusterRoleBinding",
        false,
    ),
    (
        "authentication.k8s.io",
        "v1",
        "tokenreviews",
        "TokenReview",
        false,
    ),
    (GATEWAY, "v1", "gatewayclasses", "GatewayClass", false),
    (GATEWAY, "v1", "gateways", "Gateway", true),
    (GATEWAY, "v1", "httproutes", "HTTPRoute", true),
    (GATEWAY, "v1", "grpcroutes", "GRPCRoute", true),
    (
        GATEWAY,
        "v1beta1",
        "referencegrants",
        "ReferenceGrant",
        true,
    ),
];

/// Where objects of a kind live.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    pub group: String,
    pub plural: String,
}

/// Where one object lives.
pub type Place = (Resource, String, String);

/// What happened to one object.
#[derive(Debug, Clone)]
pub struct Happened {
    pub version: u64,
    pub at: Place,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// Everything there is, and was.
#[derive(Default)]
pub struct Store {
    version: u64,
    oldest: u64,
    uids: u64,
    objects: BTreeMap<Place, Value>,
    past: Vec<Happened>,
    /// What each manager applied last, and to which part of the object (`status` or the rest).
    applied: BTreeMap<(Place, String, bool), Value>,
    absent: Vec<String>,
}

/// A refusal: status, reason, message.
pub type Refusal = (u16, &'static str, String);

/// How an object is to be changed.
pub struct Change {
    pub how: How,
    pub body: Value,
    /// The status subresource, rather than all the rest.
    pub status: bool,
}

/// The ways to change an object.
pub enum How {
    Replace,
    Merge,
    Apply { manager: String, force: bool },
}

// === impl Store ===

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn pass(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub fn compact(&mut self) {
        self.oldest = self.version;
        self.past.clear();
    }

    /// Whether what happened after that version is still known.
    pub fn remembers(&self, version: u64) -> bool {
        version >= self.oldest
    }

    pub fn install(&mut self, plural: &str, installed: bool) {
        self.absent.retain(|one| one != plural);
        if !installed {
            self.absent.push(plural.to_owned());
        }
    }

    /// The kind under this path, if the server has it.
    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        KINDS
            .iter()
            .find(|kind| (kind.0, kind.1, kind.2) == (group, version, plural))
            .filter(|kind| !self.absent.iter().any(|one| one == kind.2))
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects
            .iter()
            .find(|((resource, ns, n), _)| {
                resource.plural == plural && ns == namespace && n == name
            })
            .map(|(_, object)| object)
    }

    pub fn at(&self, place: &Place) -> Option<&Value> {
        self.objects.get(place)
    }

    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.objects
            .iter()
            .filter(|((resource, ..), _)| resource.plural == plural)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Everything of a kind as it was at a version, by namespace and name.
    pub fn as_of(&self, version: u64, resource: &Resource) -> BTreeMap<Place, Value> {
        let mut then: BTreeMap<Place, Value> = self
            .objects
            .iter()
            .filter(|((of, ..), _)| of == resource)
            .map(|(place, object)| (place.clone(), object.clone()))
            .collect();
        for happened in self.past.iter().rev() {
            if happened.version <= version || happened.at.0 != *resource {
                continue;
            }
            match &happened.before {
                Some(before) => then.insert(happened.at.clone(), before.clone()),
                None => then.remove(&happened.at),
            };
        }
        then
    }

    /// What happened to objects of a kind after a version.
    pub fn since(&self, version: u64, resource: &Resource) -> impl Iterator<Item = &Happened> {
        let from = self.past.partition_point(|one| one.version <= version);
        self.past[from..]
            .iter()
            .filter(move |one| one.at.0 == *resource)
    }

    /// Creates or replaces, status and all.
    pub fn put(&mut self, object: Value) -> Value {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let found = KINDS
            .iter()
            .find(|one| (one.0, one.1, one.3) == (group, version, kind.as_str()))
            .unwrap_or_else(|| panic!("no kind {api_version} {kind}"));
        let meta = |field: &str| {
            let text = object["metadata"][field].as_str().unwrap_or_default();
            text.to_owned()
        };
        let resource = Resource {
            group: group.to_owned(),
            plural: found.2.to_owned(),
        };
        let place = (resource, meta("namespace"), meta("name"));
        self.write(place, object)
    }

    pub fn remove(&mut self, plural: &str, namespace: &str, name: &str) {
        let place = self
            .objects
            .keys()
            .find(|(resource, ns, n)| resource.plural == plural && ns == namespace && n == name)
            .cloned()
            .unwrap_or_else(|| panic!("no {plural} {namespace}/{name}"));
        self.delete(&place, &Value::Null).expect("no precondition");
    }

    /// Deletes, or marks as being deleted if finalizers hold it. Preconditions as in `DeleteOptions`.
    pub fn delete(&mut self, place: &Place, options: &Value) -> Result<Value, Refusal> {
        let Some(object) = self.objects.get(place) else {
            return Err(not_found(place));
        };
        preconditions(&options["preconditions"], object)?;
        let mut object = object.clone();
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        if held {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return Ok(self.write(place.clone(), object));
        }
        self.gone(place);
        Ok(object)
    }

    /// Creates what must not be there.
    pub fn create(&mut self, place: Place, object: Value) -> Result<Value, Refusal> {
        if self.objects.contains_key(&place) {
            let message = format!("{} \"{}\" already exists", place.0.plural, place.2);
            return Err((409, "AlreadyExists", message));
        }
        Ok(self.write(place, object))
    }

    /// Changes what is there, or (apply) makes it.
    pub fn change(&mut self, place: &Place, change: Change) -> Result<Value, Refusal> {
        let Change { how, body, status } = change;
        let Some(before) = self.objects.get(place).cloned() else {
            let How::Apply { manager, .. } = how else {
                return Err(not_found(place));
            };
            if status {
                return Err(not_found(place));
            }
            if body["metadata"]["uid"].is_string() {
                return Err((409, "Conflict", "no existing object was found".to_owned()));
            }
            let key = (place.clone(), manager, false);
            self.applied.insert(key, part(&body, false));
            return Ok(self.write(place.clone(), body));
        };
        preconditions(&body["metadata"], &before)?;
        let wanted = part(&body, status);
        let after = match how {
            How::Replace => apply::put_part(&before, &wanted, status),
            How::Merge => apply::merge_patch(&before, &wanted),
            How::Apply { manager, force } => self.apply(place, wanted, status, &manager, force)?,
        };
        Ok(self.write(place.clone(), after))
    }

    fn apply(
        &mut self,
        place: &Place,
        wanted: Value,
        status: bool,
        manager: &str,
        force: bool,
    ) -> Result<Value, Refusal> {
        let before = self.objects.get(place).cloned().unwrap_or_default();
        let mut others: Vec<Value> = Vec::new();
        for ((at, who, part), applied) in &mut self.applied {
            if at != place || *part != status || who == manager {
                continue;
            }
            if let Some(field) = apply::conflict(applied, &wanted) {
                if !force {
                    let message = format!("conflict with \"{who}\": {field}");
                    return Err((409, "Conflict", message));
                }
                *applied = apply::without(applied, &wanted);
            }
            others.push(applied.clone());
        }
        let key = (place.clone(), manager.to_owned(), status);
        let last = self.applied.insert(key, wanted.clone());
        let last = last.unwrap_or_else(|| json!({}));
        Ok(apply::apply(&before, &wanted, &last, &others))
    }

    /// Keeps an object as it shall be, with what the server alone says, unless nothing changes.
    fn write(&mut self, place: Place, mut object: Value) -> Value {
        let before = self.objects.get(&place).cloned();
        let version = self.version + 1;
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let meta = &mut object["metadata"];
        meta["name"] = json!(place.2);
        if !place.1.is_empty() {
            meta["namespace"] = json!(place.1);
        }
        match &before {
            None => {
                self.uids += 1;
                if !meta["uid"].is_string() {
                    meta["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
                }
                meta["generation"] = json!(1);
                if !meta["creationTimestamp"].is_string() {
                    meta["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
                }
            }
            Some(before) => {
                for kept in ["uid", "resourceVersion", "generation", "creationTimestamp"] {
                    meta[kept] = before["metadata"][kept].clone();
                }
                if !before["metadata"]["deletionTimestamp"].is_null() {
                    meta["deletionTimestamp"] = before["metadata"]["deletionTimestamp"].clone();
                }
                if object == *before {
                    return object;
                }
                if spec(&object) != spec(before) {
                    let generation = before["metadata"]["generation"].as_u64().unwrap_or(0);
                    object["metadata"]["generation"] = json!(generation + 1);
                }
            }
        }
        let deleted = !object["metadata"]["deletionTimestamp"].is_null();
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        if deleted && !held && before.is_some() {
            self.gone(&place);
            return object;
        }
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.version = version;
        self.objects.insert(place.clone(), object.clone());
        self.past.push(Happened {
            version,
            at: place,
            before,
            after: Some(object.clone()),
        });
        object
    }

    fn gone(&mut self, place: &Place) {
        let Some(mut before) = self.objects.remove(place) else {
            return;
        };
        self.applied.retain(|(at, ..), _| at != place);
        self.version += 1;
        // As the watch shows it: the last state under the version of the deletion.
        let was = before.clone();
        before["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.past.push(Happened {
            version: self.version,
            at: place.clone(),
            before: Some(was),
            after: None,
        });
    }
}

/// The part of an object that a call to it (or to its status) may change.
fn part(body: &Value, status: bool) -> Value {
    let empty = Map::new();
    let fields = body.as_object().unwrap_or(&empty);
    let mut part: Map<String, Value> = fields
        .iter()
        .filter(|(field, _)| (field.as_str() == "status") == status)
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    // Of a pod, whoever may write the status may write annotations with it.
    let annotations = &body["metadata"]["annotations"];
    if status && body["kind"] == "Pod" && annotations.is_object() {
        part.insert("metadata".to_owned(), json!({"annotations": annotations}));
    }
    if let Some(Value::Object(meta)) = part.get_mut("metadata") {
        for servers in [
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "managedFields",
        ] {
            meta.remove(servers);
        }
    }
    Value::Object(part)
}

fn spec(object: &Value) -> Value {
    let mut spec = object.clone();
    if let Value::Object(fields) = &mut spec {
        fields.remove("metadata");
        fields.remove("status");
    }
    spec
}

fn preconditions(wanted: &Value, object: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        let (wanted, is) = (&wanted[field], &object["metadata"][field]);
        if wanted.as_str().is_some_and(|text| !text.is_empty()) && wanted != is {
            let message = format!("the {field} is {is}, not {wanted}");
            return Err((409, "Conflict", message));
        }
    }
    Ok(())
}

pub fn not_found(place: &Place) -> Refusal {
    let message = format!("{} \"{}\" not found", place.0.plural, place.2);
    (404, "NotFound", message)
}
