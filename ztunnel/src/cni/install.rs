//! Installs the plugin on the node, keeps it there, and takes it away again.
//!
//! # Guarantees
//!
//! * Whoever reads the node's configuration at any moment sees a whole file, with or without the plugin: files
//!   are written beside their place under a name that no runtime reads, and renamed.
//! * The program is there before the configuration names it, and goes after the configuration stopped.
//! * Installing twice, or after an interruption anywhere, ends in the same state. Everything in the file that is not
//!   ours keeps its meaning.
//! * Another program's rewrite of its own file is answered by inserting the plugin again.
//!
//! # Which file
//!
//! A runtime uses the first configuration by name. A list gets the plugin as its last entry. A single
//! configuration (`.conf`, `.json`) cannot hold two plugins: it stays as it is, and a list made from it, with a
//! name that comes first, takes its place. Where there is no configuration yet, we wait for one.

mod files;
mod list;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
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
}

/// What [`Installer::ensure`] found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The plugin is in this file.
    Ready {
        /// The file that runtimes use.
        config: PathBuf,
        /// Whether anything had to be written.
        changed: bool,
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
        }
    }

    /// Installs what is missing. Blocks.
    pub fn ensure(&self) -> Result<Installed, InstallError> {
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
    pub fn uninstall(&self) -> Result<(), InstallError> {
        files::remove_unfinished(&self.conf_dir)?;
        files::remove_unfinished(&self.bin_dir)?;
        let (ours, theirs) = self.configs()?;
        for path in theirs.iter().filter(|path| list::is_list(path)) {
            self.strip(path)?;
        }
        files::remove_all(&ours)?;
        files::remove_all(&[
            self.bin_dir.join(PLUGIN),
            self.enrolled.clone(),
            self.socket.clone(),
        ])?;
        Ok(())
    }

    /// Installs the plugin and keeps it installed until dropped. Every outcome that is news goes to `report`.
    pub async fn keep(
        &self,
        mut report: impl FnMut(Result<&Installed, &InstallError>),
    ) -> Result<std::convert::Infallible, InstallError> {
        let mut events = self.watch()?;
        let mut last = None;
        loop {
            let installer = self.clone();
            let outcome = tokio::task::spawn_blocking(move || installer.ensure()).await;
            let outcome = outcome.unwrap_or_else(|panic| {
                let source = io::Error::other(panic);
                let path = self.conf_dir.clone();
                Err(InstallError::File { path, source })
            });
            let news = outcome.as_ref().map_err(ToString::to_string).cloned();
            if last.as_ref() != Some(&news) {
                report(outcome.as_ref());
            }
            let pause = if outcome.is_ok() { VERIFY } else { RETRY };
            last = Some(news);
            // Our own writes are events, too; they lead to one more look.
            let event = tokio::time::timeout(pause, events.next()).await;
            if !matches!(event, Ok(Some(Ok(_)))) {
                // A timer, or a directory that was replaced by another.
                events = self.watch()?;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    fn watch(&self) -> Result<inotify::EventStream<[u8; 4096]>, InstallError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| InstallError::File { path, source }
        };
        let inotify = Inotify::init().map_err(at(&self.conf_dir))?;
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        for dir in [&self.conf_dir, &self.bin_dir] {
            std::fs::create_dir_all(dir).map_err(at(dir))?;
            inotify.watches().add(dir, mask).map_err(at(dir))?;
        }
        inotify
            .into_event_stream([0; 4096])
            .map_err(at(&self.conf_dir))
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
/// How often the files are looked at without an event.
const VERIFY: Duration = Duration::from_secs(30);
/// How soon after a failure they are looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// Several events in a row are one; two installers that undo each other do not spin.
const SETTLE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
