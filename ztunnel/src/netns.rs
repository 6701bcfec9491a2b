//! Runs a closure in a pod's network namespace; sockets born there stay there.
//!
//! Entering a namespace moves one thread. It is never a thread of the data plane: a few threads do nothing else
//! (`netns/visitors.rs`), namespaces take turns, and a thread that cannot come back home after a visit ends itself.

mod turns;
mod visitors;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

use self::visitors::{Back, Limits, Visitors};

/// An open network namespace. It lives at least as long as this value.
#[derive(Clone, Debug)]
pub struct PodNetns {
    fd: Arc<OwnedFd>,
    id: NetnsId,
}

/// Tells two network namespaces apart while either is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    dev: u64,
    ino: u64,
}

// === impl PodNetns ===

impl PodNetns {
    /// Opens the namespace at `path`, such as `/proc/PID/ns/net` or what a container runtime passes to CNI plugins.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Takes a namespace that is already open, such as one received over a Unix socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if fstatfs(&fd)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a namespace (its mount is gone)",
            ));
        }
        let stat = fstat(&fd)?;
        let id = NetnsId {
            dev: stat.st_dev,
            ino: stat.st_ino,
        };
        Ok(Self {
            fd: Arc::new(fd),
            id,
        })
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` inside the namespace and waits for it, blocking the calling thread.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (tx, rx) = mpsc::sync_channel(1);
        self.submit(f, move |result| drop(tx.send(result)))?;
        rx.recv().unwrap_or_else(|_| Err(visitor_died()))
    }

    /// Runs `f` inside the namespace without blocking the calling task.
    pub async fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (tx, rx) = oneshot::channel();
        self.submit(f, move |result| drop(tx.send(result)))?;
        rx.await.unwrap_or_else(|_| Err(visitor_died()))
    }

    fn submit<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
        report: impl FnOnce(io::Result<T>) + Send + 'static,
    ) -> io::Result<()> {
        let fd = Arc::clone(&self.fd);
        // The main thread never leaves home; the calling thread may itself be on a visit.
        let home = HOME.as_ref().map_err(|kind| io::Error::from(*kind))?;
        let visit = move || {
            let result = match setns(fd.as_fd(), CloneFlags::CLONE_NEWNET) {
                Ok(()) => Ok(f()),
                Err(e) => Err(e.into()),
            };
            drop(fd);
            let restored = setns(home.fd.as_fd(), CloneFlags::CLONE_NEWNET);
            if let Err(error) = restored {
                tracing::error!(%error, "a thread could not leave a pod's network namespace; ending it");
            }
            Back {
                report: Box::new(move || report(result)),
                home: restored.is_ok(),
            }
        };
        let submitted = VISITORS.submit(self.id, Box::new(visit));
        submitted.map_err(io::Error::other)
    }
}

// === impl NetnsId ===

impl NetnsId {
    /// Of whatever is at `path`, without opening it. What is no namespace has an id that none has.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let stat = nix::sys::stat::stat(path)?;
        Ok(Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
        })
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

// === the visiting threads ===

/// Of the whole process. A visit takes some 50 µs: eight threads are enough for a data plane that dials from several cores
/// while pods are enrolled.
static VISITORS: LazyLock<Arc<Visitors>> = LazyLock::new(|| {
    Visitors::new(Limits {
        threads: 8,
        replacements: 24,
        hangs_after: Duration::from_secs(5),
        in_one: 2,
        // As many connections as arrive while an application's patience lasts, and less than the pod may have.
        waiting: 4096,
    })
});

/// Where all threads of the process come from.
static HOME: LazyLock<Result<PodNetns, io::ErrorKind>> =
    LazyLock::new(|| PodNetns::open("/proc/self/ns/net").map_err(|error| error.kind()));

const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

fn visitor_died() -> io::Error {
    io::Error::other("the visit to the network namespace panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_namespace() {
        let error = PodNetns::open("/proc/self/status").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(PodNetns::open("/nonexistent").is_err());
    }

    #[test]
    fn the_same_namespace_has_the_same_id() {
        let a = PodNetns::current().unwrap();
        let b = PodNetns::open("/proc/self/ns/net").unwrap();
        assert_eq!(a.id(), b.id());
    }
}
