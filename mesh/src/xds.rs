//! Delta xDS: the types that the mesh speaks, one resource encoded once, and what an update is.

pub mod client;
pub mod node;
pub mod session;
mod view;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

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
    /// The version's 8 bytes, one for the type, then the resource's own encoding.
    Whole(Arc<[u8]>),
    /// Only the version is known, by the word of a client.
    Known(Version),
}

/// Bytes of a version.
const VERSION_BYTES: usize = size_of::<u64>();

/// The types of resources, whose names would be a third of what is kept of one.
const TYPES: [&str; 5] = [
    ADDRESS_TYPE,
    ROUTE_TYPE,
    ENROLMENT_TYPE,
    ENROLLED_NAMESPACE_TYPE,
    MESH_STATE_TYPE,
];

/// Stands for a type that is none of [`TYPES`]: what follows is an encoded `google.protobuf.Any`.
const ANY: u8 = u8::MAX;

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
        let value = message.encode_to_vec();
        let mut any = Vec::with_capacity(any_len(type_url, &value));
        put_any(type_url, &value, &mut any);
        let version = Version::of(&any).0.to_be_bytes();
        let known = TYPES.iter().position(|known| *known == type_url);
        let known = known.and_then(|at| u8::try_from(at).ok());
        let (of_type, content) = known.map_or((ANY, &any), |of_type| (of_type, &value));
        Self(Content::Whole(
            [&version[..], &[of_type], content].concat().into(),
        ))
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
    pub fn any(&self) -> Vec<u8> {
        let mut any = Vec::with_capacity(self.any_len());
        self.put_any(&mut any);
        any
    }

    /// How many bytes that has.
    pub fn any_len(&self) -> usize {
        match self.parts() {
            (Some(type_url), value) => any_len(type_url, value),
            (None, any) => any.len(),
        }
    }

    /// Writes it.
    pub(crate) fn put_any(&self, buf: &mut Vec<u8>) {
        match self.parts() {
            (Some(type_url), value) => put_any(type_url, value, buf),
            (None, any) => buf.extend_from_slice(any),
        }
    }

    /// The type and the resource's own encoding, or no type and an `Any`.
    fn parts(&self) -> (Option<&'static str>, &[u8]) {
        let Content::Whole(bytes) = &self.0 else {
            return (None, &[]);
        };
        let rest = bytes.get(VERSION_BYTES..).unwrap_or_default();
        match rest.split_first() {
            Some((of_type, content)) => (TYPES.get(usize::from(*of_type)).copied(), content),
            None => (None, &[]),
        }
    }

    /// The resource itself.
    pub fn decode<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        match self.parts() {
            (Some(_), value) => M::decode(value),
            (None, any) => M::decode(&*prost_types::Any::decode(any)?.value),
        }
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
        write!(f, "Encoded({}, {} bytes)", self.version(), self.any_len())
    }
}

/// Bytes of an encoded `Any`.
fn any_len(type_url: &str, value: &[u8]) -> usize {
    let field = |bytes: &[u8]| match bytes.len() {
        0 => 0,
        len => key_len(1) + encoded_len_varint(len as u64) + len,
    };
    field(type_url.as_bytes()) + field(value)
}

/// An encoded `Any`, byte for byte as prost writes it.
fn put_any(type_url: &str, value: &[u8], buf: &mut Vec<u8>) {
    for (tag, bytes) in [(1, type_url.as_bytes()), (2, value)] {
        if !bytes.is_empty() {
            encode_key(tag, WireType::LengthDelimited, buf);
            encode_varint(bytes.len() as u64, buf);
            buf.extend_from_slice(bytes);
        }
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
        for (type_url, text) in [("type", "text"), (ADDRESS_TYPE, "text"), (ROUTE_TYPE, "")] {
            let text = text.to_owned();
            let whole = Encoded::new(type_url, &text);
            assert_eq!(whole.decode::<String>(), Ok(text.clone()));
            let any = prost_types::Any {
                type_url: type_url.to_owned(),
                value: text.encode_to_vec(),
            };
            assert_eq!(whole.any(), any.encode_to_vec());
            assert_eq!(whole.any_len(), whole.any().len());
            assert_eq!(whole.version(), Version::of(&whole.any()));
        }
        let whole = Encoded::new("type", &"text".to_owned());
        let known = Encoded::known(&whole.version().to_string());
        assert_eq!(known, whole);
        assert!(known.is_unseen() && known.any().is_empty() && !whole.is_unseen());
    }
}
