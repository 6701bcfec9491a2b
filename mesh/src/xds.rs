//! Delta xDS: the types that the mesh speaks, one resource encoded once, and what an update is.

pub mod client;
pub mod node;
pub mod session;
mod view;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

pub use self::view::{Resources, View};

/// Workloads and services (stock).
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// The routes of one waypoint.
pub const ROUTE_TYPE: &str = "type.googleapis.com/ambit.mesh.waypoint.v1.Route";
/// The pods of one node.
pub const ENROLMENT_TYPE: &str = "type.googleapis.com/ambit.mesh.node.v1.Enrolment";
/// The namespaces whose pods are in the mesh.
pub const ENROLLED_NAMESPACE_TYPE: &str =
    "type.googleapis.com/ambit.mesh.node.v1.EnrolledNamespace";
/// What every node must know of the mesh as a whole.
pub const MESH_STATE_TYPE: &str = "type.googleapis.com/ambit.mesh.node.v1.MeshState";
/// The one resource of that type.
pub const MESH_STATE_NAME: &str = "mesh";
/// Upwards: what became of one pod.
pub const ENROLMENT_REPORT_TYPE: &str = "type.googleapis.com/ambit.mesh.node.v1.EnrolmentReport";

/// What begins the URL of every type of our own.
const OUR_TYPES: &str = "type.googleapis.com/ambit.mesh.";

/// True for the types that only a controller of ours serves.
pub fn is_ours(type_url: &str) -> bool {
    type_url.starts_with(OUR_TYPES)
}

/// One resource, encoded once and shared by every stream that it goes to. Equal when the versions are.
#[derive(Clone)]
pub struct Encoded(Content);

/// A controller holds a million of these several times over: two words each.
#[derive(Clone)]
enum Content {
    /// The version's 8 bytes, then an encoded `google.protobuf.Any`.
    Whole(Arc<[u8]>),
    /// Only the version is known, by the word of a client.
    Known(Version),
}

/// Bytes of a version.
const VERSION_BYTES: usize = size_of::<u64>();

/// A resource's version: 64 bits of a hash of its content, on the wire as 16 hexadecimal digits.
///
/// It is only ever compared with another version of the same name. A version that another control plane made is hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

/// What one response of the controller changes. The bytes are the resource's own encoding (without the `Any`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// One of the types that the client asked for.
    pub type_url: &'static str,
    /// New and changed resources, by name. A name appears once.
    pub updated: Vec<(String, Bytes)>,
    /// Names that are gone.
    pub removed: Vec<String>,
}

/// The resources of an update that cannot be taken, each with its reason. Nothing of that update was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Name and reason.
    pub resources: Vec<(String, String)>,
}

// === impl Version ===

impl Version {
    fn of(content: &[u8]) -> Self {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
        let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
        Self(u64::from_be_bytes(first))
    }

    /// As we write it; nothing else, so that what is read can be written again.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let ours = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = ours.then(|| u64::from_str_radix(text, 16))?;
        number.ok().map(Self)
    }

    /// Bytes of its text.
    pub(crate) fn text_len(self) -> usize {
        16
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Encoded ===

impl Encoded {
    /// Encodes `message`; the version is a hash of its content.
    ///
    /// Equal messages get equal versions, also in another process, as long as their maps are ordered (`BTreeMap`).
    pub fn new(type_url: &str, message: &impl Message) -> Self {
        let any = prost_types::Any {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec(),
        };
        let any = any.encode_to_vec();
        let version = Version::of(&any).0.to_be_bytes();
        Self(Content::Whole([&version[..], &any].concat().into()))
    }

    /// What a client says that it has.
    fn known(version_text: &str) -> Self {
        let version = Version::parse(version_text);
        let version = version.unwrap_or_else(|| Version::of(version_text.as_bytes()));
        Self(Content::Known(version))
    }

    /// Whether only the version is known, by the word of a client.
    pub(crate) fn is_unseen(&self) -> bool {
        matches!(self.0, Content::Known(_))
    }

    /// The content's hash.
    pub fn version(&self) -> Version {
        match &self.0 {
            Content::Whole(bytes) => {
                let version = bytes.first_chunk::<VERSION_BYTES>();
                Version(u64::from_be_bytes(version.copied().unwrap_or_default()))
            }
            Content::Known(version) => *version,
        }
    }

    /// The encoded `google.protobuf.Any`; empty where only the version is known.
    pub fn any(&self) -> &[u8] {
        match &self.0 {
            Content::Whole(bytes) => bytes.get(VERSION_BYTES..).unwrap_or_default(),
            Content::Known(_) => &[],
        }
    }

    /// The resource itself.
    pub fn decode<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        let any = prost_types::Any::decode(self.any())?;
        M::decode(&*any.value)
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.version() == other.version()
    }
}

impl Eq for Encoded {}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({}, {} bytes)", self.version(), self.any().len())
    }
}

// === impl Rejected ===

impl Rejected {
    /// One resource and its reason.
    pub fn one(name: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            resources: vec![(name.into(), reason.to_string())],
        }
    }
}

impl fmt::Display for Rejected {
    /// The first few by name; a message of thousands must not become a header or log line of megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        for (at, (name, reason)) in self.resources.iter().take(SHOWN).enumerate() {
            write!(f, "{}{name}: {reason}", if at == 0 { "" } else { "; " })?;
        }
        match self.resources.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for Rejected {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_two_words_and_says_what_it_was_made_of() {
        assert_eq!(size_of::<Encoded>(), 2 * size_of::<usize>());
        let text = "text".to_owned();
        let whole = Encoded::new("type", &text);
        assert_eq!(whole.decode::<String>(), Ok(text));
        let known = Encoded::known(&whole.version().to_string());
        assert_eq!(known, whole);
        assert!(known.is_unseen() && known.any().is_empty() && !whole.is_unseen());
    }
}
