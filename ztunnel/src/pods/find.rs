//! Finds a running pod's network namespace by the pod's UID.
//!
//! The kubelet names a pod's cgroup after its UID, so one pass over the processes of the node says which
//! belong to which pod. A namespace found this way is believed only when it is not the host's, and owns
//! one of the pod's addresses where they are known: a container may make namespaces of its own.
//!
//! It may even give those the pod's addresses. But runtimes keep the namespaces that they make at a place of their own
//! (`/run/netns`), where no container can put one: of several that would do, the one that is there is the pod's; and if
//! none of the processes is in such a one any more, a single one there with the pod's addresses is.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::capture::surroundings;
use crate::cgroup::pod_uid;
use crate::netns::{NetnsId, PodNetns};

/// The processes of this node's pods, as of one moment.
#[derive(Debug)]
pub struct Running {
    proc_root: PathBuf,
    pids: HashMap<String, Vec<u32>>,
}

/// Why a pod's network namespace was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The process table cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Processes {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No process on this node belongs to the pod.
    #[error("no running process belongs to pod {0}")]
    NoProcess(String),
    /// The pod's processes are in the host's network namespace.
    #[error("pod {0} is in the host's network namespace")]
    HostNetwork(String),
    /// None of the namespaces of the pod's processes has any of the pod's addresses.
    #[error("no network namespace of pod {uid} has an address of {expected:?}; found {found:?}")]
    ForeignAddresses {
        /// The pod.
        uid: String,
        /// The pod's addresses.
        expected: Vec<IpAddr>,
        /// The addresses in the last namespace looked at.
        found: Vec<IpAddr>,
    },
    /// Several namespaces could be the pod's.
    #[error(
        "{number} network namespaces of the node have addresses of pod {uid} ({expected:?}), and none of its processes is in one of them"
    )]
    Ambiguous {
        /// The pod.
        uid: String,
        /// The pod's addresses.
        expected: Vec<IpAddr>,
        /// How many.
        number: usize,
    },
    /// The pod's processes ended or cannot be looked into.
    #[error("cannot enter the network namespace of pod {uid}: {source}")]
    Unreachable {
        /// The pod.
        uid: String,
        /// What the kernel said last.
        source: io::Error,
    },
}

/// Finds one pod's namespace. For several pods at once, scan once with [`Running::scan`].
pub fn find(proc_root: &Path, uid: &str, ips: &[IpAddr]) -> Result<PodNetns, FindError> {
    Running::scan(proc_root)?.netns(uid, ips)
}

/// Where runtimes keep the namespaces that they make, on the node.
const KEPT: &str = "run/netns";

// === impl Running ===

impl Running {
    /// Reads every process's cgroup under `proc_root` (the host's `/proc`).
    pub fn scan(proc_root: impl Into<PathBuf>) -> Result<Self, FindError> {
        let proc_root = proc_root.into();
        let entries = fs::read_dir(&proc_root).map_err(|source| FindError::Processes {
            path: proc_root.clone(),
            source,
        })?;
        let mut pids: HashMap<String, Vec<u32>> = HashMap::new();
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            // A process may end between the two reads.
            let Ok(cgroup) = fs::read_to_string(entry.path().join("cgroup")) else {
                continue;
            };
            if let Some(uid) = pod_uid(&cgroup) {
                pids.entry(uid).or_default().push(pid);
            }
        }
        // The sandbox's own process comes first, and is never in a namespace a container made.
        pids.values_mut().for_each(|pids| pids.sort_unstable());
        Ok(Self { proc_root, pids })
    }

    /// The UIDs of the pods that have a process.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pids.keys().map(String::as_str)
    }

    /// Whether pod `uid` has a process: its sandbox has one for as long as it lives.
    pub fn runs(&self, uid: &str) -> bool {
        self.pids.contains_key(uid)
    }

    /// The processes of pod `uid`.
    pub(super) fn pids(&self, uid: &str) -> &[u32] {
        self.pids.get(uid).map_or(&[], Vec::as_slice)
    }

    /// The network namespace of pod `uid`, which must own one of `ips` if any are given. Blocks shortly.
    pub fn netns(&self, uid: &str, ips: &[IpAddr]) -> Result<PodNetns, FindError> {
        let Some(pids) = self.pids.get(uid) else {
            return Err(FindError::NoProcess(uid.into()));
        };
        let host = PodNetns::open(self.ns_of(1)).map(|host| host.id()).ok();
        let made = self.made_by_runtime();
        let (mut seen, mut own) = (Vec::new(), None);
        let mut error = FindError::NoProcess(uid.into());
        for pid in pids {
            match PodNetns::open(self.ns_of(*pid)) {
                Ok(netns) if seen.contains(&netns.id()) => {}
                Ok(netns) => {
                    seen.push(netns.id());
                    match belongs(&netns, host == Some(netns.id()), uid, ips) {
                        Ok(()) if made.contains_key(&netns.id()) => return Ok(netns),
                        Ok(()) => own = own.or(Some(netns)),
                        Err(e) => error = e,
                    }
                }
                Err(source) if seen.is_empty() => {
                    error = FindError::Unreachable {
                        uid: uid.into(),
                        source,
                    };
                }
                Err(_) => {}
            }
        }
        let own = own.ok_or(error)?;
        Ok(kept(&made, uid, ips)?.unwrap_or(own))
    }

    /// The namespaces that container runtimes, or whoever else is root on the node, keep by name. None where that is not
    /// how they do it.
    fn made_by_runtime(&self) -> HashMap<NetnsId, PathBuf> {
        let names =
            fs::read_dir(self.proc_root.join("1/root").join(KEPT)).or_else(|e| match e.kind() {
                // As the manifest mounts it, where looking through the host's first process is forbidden.
                io::ErrorKind::PermissionDenied => fs::read_dir(Path::new("/").join(KEPT)),
                _ => Err(e),
            });
        let paths = names.into_iter().flatten().flatten().map(|e| e.path());
        let of = |path: PathBuf| Some((NetnsId::at(&path).ok()?, path));
        paths.filter_map(of).collect()
    }

    fn ns_of(&self, pid: u32) -> PathBuf {
        self.proc_root.join(pid.to_string()).join("ns/net")
    }
}

/// The one of these namespaces that has the pod's addresses, if they are known.
fn kept(
    made: &HashMap<NetnsId, PathBuf>,
    uid: &str,
    ips: &[IpAddr],
) -> Result<Option<PodNetns>, FindError> {
    if ips.is_empty() {
        return Ok(None);
    }
    let opened = made.values().filter_map(|path| PodNetns::open(path).ok());
    let mut with: Vec<_> = opened
        .filter(|netns| belongs(netns, false, uid, ips).is_ok())
        .collect();
    match with.len() {
        0 | 1 => Ok(with.pop()),
        number => Err(FindError::Ambiguous {
            uid: uid.into(),
            expected: ips.to_vec(),
            number,
        }),
    }
}

fn belongs(netns: &PodNetns, is_host: bool, uid: &str, ips: &[IpAddr]) -> Result<(), FindError> {
    if is_host {
        return Err(FindError::HostNetwork(uid.into()));
    }
    if ips.is_empty() {
        return Ok(());
    }
    let found = netns
        .run(surroundings::own_addresses)
        .and_then(|found| found)
        .map_err(|source| FindError::Unreachable {
            uid: uid.into(),
            source,
        })?;
    if ips.iter().any(|ip| found.contains(ip)) {
        return Ok(());
    }
    Err(FindError::ForeignAddresses {
        uid: uid.into(),
        expected: ips.to_vec(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a";

    #[test]
    fn says_why_nothing_was_found() {
        let dir = tempfile::tempdir().unwrap();
        let missing = find(&dir.path().join("none"), UID, &[]).unwrap_err();
        assert!(matches!(missing, FindError::Processes { .. }), "{missing}");
        let empty = find(dir.path(), UID, &[]).unwrap_err();
        assert!(matches!(empty, FindError::NoProcess(_)), "{empty}");

        let gone = dir.path().join("42");
        fs::create_dir(&gone).unwrap();
        fs::write(gone.join("cgroup"), format!("0::/kubepods/pod{UID}/1\n")).unwrap();
        let gone = find(dir.path(), UID, &[]).unwrap_err();
        assert!(matches!(gone, FindError::Unreachable { .. }), "{gone}");
    }

    #[test]
    fn refuses_the_hosts_namespace() {
        let dir = tempfile::tempdir().unwrap();
        for pid in ["1", "42"] {
            let ns = dir.path().join(pid).join("ns");
            fs::create_dir_all(&ns).unwrap();
            std::os::unix::fs::symlink("/proc/self/ns/net", ns.join("net")).unwrap();
        }
        fs::write(
            dir.path().join("42/cgroup"),
            format!("0::/kubepods/pod{UID}/1\n"),
        )
        .unwrap();
        let host = find(dir.path(), UID, &[]).unwrap_err();
        assert!(matches!(host, FindError::HostNetwork(_)), "{host}");
    }
}
