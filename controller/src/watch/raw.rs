//! What the API server says, taken apart before any object is decoded: an object that cannot be decoded stands for itself.
//!
//! A page and a watch's line are split into the texts of their objects. Of each the name and the version are read first;
//! then it is decoded by itself, without `metadata.managedFields`, which nobody here reads, to which every client may
//! write what it likes (years that no clock here knows), and which is most of some objects.

use std::collections::BTreeMap;

use futures_util::io::AsyncBufReadExt;
use futures_util::{Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{Request, Status};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::index::names::Key;

/// How much of a decoder's words is passed on: it may quote the object.
const MAX_WHY: usize = 200;

/// Where a kind is asked for.
pub(super) struct Source {
    client: Client,
    request: Request,
    metadata_only: bool,
}

/// A page of a list, its objects as they were written.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub metadata: ListMeta,
    #[serde(borrow, deserialize_with = "null_is_empty")]
    pub items: Vec<&'a RawValue>,
}

/// What a watch says happened.
#[derive(Debug)]
pub(super) enum Line<K> {
    /// An object came or changed.
    Put(Object<K>),
    /// An object went, at this version.
    Deleted { key: Key, version: String },
    /// Nothing more up to this version.
    Bookmark { version: String },
    /// The watch ends for this reason.
    Error(Box<Status>),
}

/// An object, by name and version.
#[derive(Debug)]
pub(super) struct Object<K> {
    pub key: Key,
    /// Empty if it has none.
    pub uid: String,
    pub version: String,
    pub content: Content<K>,
}

/// Whether it could be decoded.
#[derive(Debug)]
pub(super) enum Content<K> {
    Decoded(K),
    /// For this reason it could not, with the place in the object.
    Unreadable(String),
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// The fields of a JSON object as they were written.
type Fields<'a> = BTreeMap<String, &'a RawValue>;

// === impl Source ===

impl Source {
    pub(super) fn of<K: Resource>(api: Api<K>) -> Self {
        Self {
            request: Request::new(api.resource_url()),
            client: api.into_client(),
            metadata_only: K::metadata_api(),
        }
    }

    /// The text of one page.
    pub(super) async fn list(&self, params: &ListParams) -> kube::Result<String> {
        let request = match self.metadata_only {
            true => self.request.list_metadata(params),
            false => self.request.list(params),
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request_text(request).await
    }

    /// What happens from a version on.
    pub(super) async fn watch<K: DeserializeOwned>(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> kube::Result<impl Stream<Item = kube::Result<Line<K>>> + use<K>> {
        let request = match self.metadata_only {
            true => self.request.watch_metadata(params, version),
            false => self.request.watch(params, version),
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        let lines = self.client.request_stream(request).await?.lines();
        Ok(lines.filter_map(|line| async {
            match line.map_err(kube::Error::ReadEvents) {
                Ok(line) => read_line(&line).transpose(),
                Err(error) => Some(Err(error)),
            }
        }))
    }
}

// === impl Page ===

impl<'a> Page<'a> {
    pub(super) fn read(text: &'a str) -> kube::Result<Self> {
        serde_json::from_str(text).map_err(kube::Error::SerdeError)
    }
}

// === impl Object ===

impl<K: DeserializeOwned> Object<K> {
    /// Reads an object. It is an error if it does not even have a name: then this is no object.
    pub(super) fn read(raw: &RawValue) -> kube::Result<Self> {
        let mut fields = fields(raw)?;
        let mut metadata = match fields.get("metadata") {
            Some(metadata) => self::fields(metadata)?,
            None => return Err(no_object("metadata")),
        };
        let name = text(&metadata, "name")?;
        let key = Key::new(&text(&metadata, "namespace").unwrap_or_default(), &name);
        let version = text(&metadata, "resourceVersion").unwrap_or_default();
        let uid = text(&metadata, "uid").unwrap_or_default();
        metadata.remove("managedFields");
        let metadata =
            serde_json::value::to_raw_value(&metadata).map_err(kube::Error::SerdeError)?;
        fields.insert("metadata".to_owned(), &metadata);
        let trimmed = serde_json::to_string(&fields).map_err(kube::Error::SerdeError)?;
        let content = match serde_json::from_str(&trimmed) {
            Ok(decoded) => Content::Decoded(decoded),
            Err(error) => Content::Unreadable(why::<K>(&trimmed, &error)),
        };
        Ok(Object {
            key,
            uid,
            version,
            content,
        })
    }
}

// === free ===

/// Reads a watch's line; nothing, if the stream ended in the middle of it.
fn read_line<K: DeserializeOwned>(line: &str) -> kube::Result<Option<Line<K>>> {
    let event: Event<'_> = match serde_json::from_str(line) {
        Ok(event) => event,
        Err(error) if error.is_eof() => return Ok(None),
        // A refusal may stand alone.
        Err(error) => {
            let status = serde_json::from_str(line);
            return Err(status.map_or(kube::Error::SerdeError(error), kube::Error::Api));
        }
    };
    let line = match event.r#type.as_str() {
        "ADDED" | "MODIFIED" => Line::Put(Object::read(event.object)?),
        "DELETED" => {
            let Object { key, version, .. } = Object::<serde::de::IgnoredAny>::read(event.object)?;
            Line::Deleted { key, version }
        }
        "BOOKMARK" => {
            let fields = fields(event.object)?;
            let metadata = fields
                .get("metadata")
                .ok_or_else(|| no_object("metadata"))?;
            Line::Bookmark {
                version: text(&self::fields(metadata)?, "resourceVersion")?,
            }
        }
        "ERROR" => {
            let status = serde_json::from_str(event.object.get());
            Line::Error(status.map_err(kube::Error::SerdeError)?)
        }
        _ => return Err(no_object("known type")),
    };
    Ok(Some(line))
}

/// Why an object cannot be decoded: `spec.containers: invalid type: ...`. It is read once more: following the path costs, and
/// all objects that can be decoded would pay for it.
fn why<K: DeserializeOwned>(text: &str, error: &serde_json::Error) -> String {
    let mut text = serde_json::Deserializer::from_str(text);
    let read = serde_path_to_error::deserialize::<_, K>(&mut text);
    let why = read.map_or_else(|error| error.to_string(), |_| error.to_string());
    why.chars().take(MAX_WHY).collect()
}

fn fields(raw: &RawValue) -> kube::Result<Fields<'_>> {
    serde_json::from_str(raw.get()).map_err(kube::Error::SerdeError)
}

fn text(fields: &Fields<'_>, name: &'static str) -> kube::Result<String> {
    let raw = fields.get(name).ok_or_else(|| no_object(name))?;
    serde_json::from_str(raw.get()).map_err(kube::Error::SerdeError)
}

fn no_object(missing: &str) -> kube::Error {
    kube::Error::SerdeError(serde::de::Error::custom(format!("it has no {missing}")))
}

/// As Go writes a list of nothing. That there is no list at all is an error.
fn null_is_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<&'de RawValue>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}
