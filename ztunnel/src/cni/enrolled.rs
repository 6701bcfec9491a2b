//! The node's own list of namespaces in the mesh, for when no ztunnel answers.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The namespaces in the mesh, as ztunnel last knew them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Their names.
    pub enrolled: BTreeSet<String>,
}

impl Enrolled {
    /// Reads the list at `path`. No file means that no ztunnel on this node ever knew it.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Writes the list to `path`; a reader sees the old one or the new one.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    }
}

impl<S: Into<String>> FromIterator<S> for Enrolled {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self {
            enrolled: names.into_iter().map(Into::into).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lib/namespaces.json");
        assert!(Enrolled::read(&path).is_err());
        let names = Enrolled::from_iter(["b", "a"]);
        names.write(&path).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"enrolled":["a","b"]}"#
        );
        assert_eq!(Enrolled::read(&path).unwrap(), names);
        Enrolled::default().write(&path).unwrap();
        assert_eq!(Enrolled::read(&path).unwrap(), Enrolled::default());
        fs::write(&path, "garbage").unwrap();
        assert!(Enrolled::read(&path).is_err());
    }
}
