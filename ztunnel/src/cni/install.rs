//! Installs the plugin on the node, keeps it there, and takes it away again.
//!
//! # Guarantees
//!
//! * Whoever reads the node's configuration at any moment sees a whole file, with or without the plugin: files
//!   are written beside their place under a name that no runtime reads, and renamed.
//! * The program is there before the configuration names it, and goes after the configuration stopped: whatever ends
//!   when, no runtime is told of a plugin that it cannot run.
//! * One installer at a time works on a node, whichever process it is in. What [`Installer::keep`] began before it was
//!   dropped has ended, or does nothing, by the time [`Installer::uninstall`] begins.
//! * Installing twice, or after an interruption anywhere, ends in the same state. Everything in the file that is not
//!   ours keeps its meaning.
//! * Another program's rewrite of its own file is answered by inserting the plugin again: at once, and ever later if
//!   that program insists.
//!
//! # Which file
//!
//! A runtime uses the first configuration by name. A list gets the plugin as its last entry. A single
//! configuration (`.conf`, `.json`) cannot hold two plugins: it stays as it is, and a list made from it, with a
//! name that comes first, takes its place. Where there is no configuration yet, we wait for one.

mod contest;
mod files;
mod keep;
mod list;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{DEFAULT_ENROLLED, DEFAULT_SOCKET, DEFAULT_SYSTEM_NAMESPACE, PLUGIN};

/// Where the plugin is installed, and what it is told.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The node's CNI configuration (`/etc/cni/net.d`), as seen from here.
    pub conf_dir: PathBuf,
    /// The node's CNI programs (`/opt/cni/bin`), as seen from here.
    pub bin_dir: PathBuf,
    /// The program to install; it must run on the node.
    pub program: PathBuf,
    /// Where ztunnel listens for the plugin, as seen from the node.
    pub socket: PathBuf,
    /// The list of enrolled namespaces, as seen from the node.
    pub enrolled: PathBuf,
    /// The mesh's own namespace, whose pods are never held.
    pub system_namespace: String,
    /// The sockets of runtimes that end a pod with the configuration that it started with, whatever the node's says by
    /// then, as seen from here: where one is, the program outlives its entry.
    pub replaying: Vec<PathBuf>,
}

/// What [`Installer::uninstall`] left on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// The program, for pods that started with it: without it they could not end.
    Program,
}

/// What [`Installer::ensure`] or [`Installer::keep`] found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The plugin is in this file.
    Ready {
        /// The file that runtimes use.
        config: PathBuf,
        /// Whether anything had to be written.
        changed: bool,
    },
    /// The plugin was put back, but another program takes it out again each time: from now on it is put back later.
    /// Only [`Installer::keep`] sees this.
    Contested {
        /// The file that both write.
        config: PathBuf,
        /// How often it was written in a row.
        times: u32,
        /// How long the next rewrite is left unanswered.
        pause: Duration,
    },
    /// The node has no network configuration yet.
    Waiting,
}

/// Why the plugin is not installed, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The first configuration is none.
    #[error("{} is not a CNI configuration: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else keeps rewriting the configuration.
    #[error("{} changed each time it was about to be written", .0.display())]
    Contended(PathBuf),
    /// Another ztunnel of the node is at it and does not come to an end.
    #[error("another ztunnel has locked {}", .0.display())]
    Locked(PathBuf),
}

// === impl Installer ===

impl Installer {
    /// Installs this very program, with the usual paths.
    pub fn new(conf_dir: impl Into<PathBuf>, bin_dir: impl Into<PathBuf>) -> Self {
        Self {
            conf_dir: conf_dir.into(),
            bin_dir: bin_dir.into(),
            program: "/proc/self/exe".into(),
            socket: DEFAULT_SOCKET.into(),
            enrolled: DEFAULT_ENROLLED.into(),
            system_namespace: DEFAULT_SYSTEM_NAMESPACE.into(),
            replaying: Vec::new(),
        }
    }

    /// Installs what is missing. Blocks.
    pub fn ensure(&self) -> Result<Installed, InstallError> {
        let _alone = self.alone()?;
        self.ensure_alone()
    }

    fn ensure_alone(&self) -> Result<Installed, InstallError> {
        files::remove_unfinished(&self.conf_dir)?;
        files::remove_unfinished(&self.bin_dir)?;
        let mut changed = files::copy_program(&self.program, &self.bin_dir.join(PLUGIN))?;
        for _ in 0..ATTEMPTS {
            let (ours, theirs) = self.configs()?;
            let Some(source) = theirs.first() else {
                files::remove_all(&ours)?;
                return Ok(Installed::Waiting);
            };
            let original = files::read(source)?;
            let target = if list::is_list(source) {
                source.clone()
            } else {
                list::stand_in(source)
            };
            let stale: Vec<_> = ours.into_iter().filter(|path| *path != target).collect();
            let wanted = if target == *source {
                list::with_plugin(source, &original, &self.entry())?
            } else {
                Some(list::from_single(source, &original, &self.entry())?)
            };
            let written = match wanted {
                Some(wanted) if files::read(&target).ok().as_ref() != Some(&wanted) => {
                    if !files::replace(&target, &wanted, source, &original)? {
                        continue;
                    }
                    true
                }
                _ => false,
            };
            changed |= written | files::remove_all(&stale)?;
            let config = target;
            return Ok(Installed::Ready { config, changed });
        }
        Err(InstallError::Contended(self.conf_dir.clone()))
    }

    /// Leaves the node as it was without us. Blocks.
    ///
    /// A runtime that has not yet noticed may still try the plugin for a new pod, fail, and try again.
    pub fn uninstall(&self) -> Result<Left, InstallError> {
        let _alone = self.alone()?;
        files::remove_unfinished(&self.conf_dir)?;
        files::remove_unfinished(&self.bin_dir)?;
        self.take_out()?;
        files::remove_all(&[self.enrolled.clone(), self.socket.clone()])?;
        let left = if self.replaying.iter().any(|socket| socket.exists()) {
            Left::Program
        } else {
            files::remove_all(&[self.bin_dir.join(PLUGIN)])?;
            Left::Nothing
        };
        // A program that edits what it has read may have written us back meanwhile.
        self.take_out()?;
        Ok(left)
    }

    /// Removes the plugin from every configuration.
    fn take_out(&self) -> Result<(), InstallError> {
        let (ours, theirs) = self.configs()?;
        for path in theirs.iter().filter(|path| list::is_list(path)) {
            self.strip(path)?;
        }
        files::remove_all(&ours).map(drop)
    }

    /// Waits until no other installer works on this node; none does while the result lives.
    fn alone(&self) -> Result<std::fs::File, InstallError> {
        files::lock(&self.conf_dir, LOCK_PATIENCE)
    }

    /// What the configuration names us with.
    fn entry(&self) -> Value {
        json!({
            "type": PLUGIN,
            "socket": self.socket,
            "enrolled": self.enrolled,
            "systemNamespace": self.system_namespace,
        })
    }

    /// The configurations in the order in which a runtime considers them: those we made from single ones, and the rest.
    fn configs(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>), InstallError> {
        let mut paths = files::list(&self.conf_dir)?;
        paths.retain(|path| list::is_config(path));
        paths.sort();
        Ok(paths.into_iter().partition(|path| list::is_stand_in(path)))
    }

    fn strip(&self, path: &Path) -> Result<(), InstallError> {
        for _ in 0..ATTEMPTS {
            let original = files::read(path)?;
            // What is no configuration has no plugin of ours.
            let Ok(Some(without)) = list::without_plugin(path, &original) else {
                return Ok(());
            };
            if files::replace(path, &without, path, &original)? {
                return Ok(());
            }
        }
        Err(InstallError::Contended(path.into()))
    }
}

/// How often a file that changes under our hands is read again.
const ATTEMPTS: u32 = 10;
/// An installer that works is done in much less; one that does not is a process that hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
