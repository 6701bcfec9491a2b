//! What is written down about a lab, so that a later command finds it, and `down` finds all of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// A lab's record. It is written before anything is made, and again when more is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// The lab's number.
    pub index: u8,
    /// Set once everything runs; a record without it is of a start that did not end well.
    pub complete: bool,
    /// The loopback port of the API server.
    pub port: u16,
    /// Folder of the programs it runs.
    pub tools: PathBuf,
    /// Every control group that may exist for it.
    pub cgroups: Vec<PathBuf>,
    /// The machines made so far, the control plane first.
    pub machines: Vec<Machine>,
}

impl State {
    fn file(folder: &Path) -> PathBuf {
        folder.join("state.json")
    }

    /// The record in a lab's folder, if there is one.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let file = Self::file(folder);
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("reading {}", file.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }

    /// Writes the record, whole or not at all.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let new = folder.join("state.json.new");
        fs::write(&new, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, Self::file(folder)).context("recording the lab's state")
    }
}

/// Keeps other commands off a lab while it is held.
#[derive(Debug)]
pub(super) struct Hold(#[expect(dead_code, reason = "held, never read")] Flock<File>);

/// Waits until no other command changes this lab, and keeps others waiting.
pub(super) fn hold(folder: &Path) -> anyhow::Result<Hold> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Beside the folder: `down` removes what is in it.
    let path = folder.with_extension("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .context("waiting for another command")?;
    Ok(Hold(lock))
}
