//! Reads a `spec` whole: what does not fit and what is not known are named with their path.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a spec is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A field has another type, or is missing.
    #[error("{path}: {problem}")]
    Malformed {
        /// Where; `.` is the spec itself.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// Fields that ask for something that would not happen.
    #[error("{} {} not known to this version", .0.join(", "), if .0.len() == 1 { "is" } else { "are" })]
    Unknown(Vec<String>),
}

/// How many unknown fields are named: a refusal stays a sentence.
const NAMED: usize = 5;

/// A path as people write it: `rules[0].filters[1].type`.
struct Written<'a>(&'a serde_ignored::Path<'a>);

/// Reads a spec. A field that is not known refuses it.
pub fn read<T: DeserializeOwned>(spec: &Value) -> Result<T, Unreadable> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        if unknown.len() < NAMED {
            unknown.push(Written(&path).to_string());
        }
    };
    let noting = serde_ignored::Deserializer::new(spec, &mut note);
    let read = serde_path_to_error::deserialize(noting).map_err(|error| Unreadable::Malformed {
        path: error.path().to_string(),
        problem: error.into_inner().to_string(),
    })?;
    if unknown.is_empty() {
        Ok(read)
    } else {
        Err(Unreadable::Unknown(unknown))
    }
}

// === impl Written ===

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use serde_ignored::Path;
        match self.0 {
            Path::Root => Ok(()),
            Path::Seq { parent, index } => write!(f, "{}[{index}]", Self(parent)),
            Path::Map {
                parent: Path::Root,
                key,
            } => f.write_str(key),
            Path::Map { parent, key } => write!(f, "{}.{key}", Self(parent)),
            Path::Some { parent }
            | Path::NewtypeStruct { parent }
            | Path::NewtypeVariant { parent } => write!(f, "{}", Self(parent)),
        }
    }
}
