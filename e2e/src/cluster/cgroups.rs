//! Control groups of a machine: where they are, who is in them, and how they go away.
//!
//! Whatever runs on a machine of the lab is in that machine's control groups from its first instruction on. That makes
//! them the register by which `down` finds every process, with no list of process ids that could be stale.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Controllers that kubelet and runc cannot do without on a version 1 machine.
const NEEDED_V1: [&str; 8] = [
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
];
/// The same on a version 2 machine, where the rest needs no controller.
const NEEDED_V2: [&str; 3] = ["cpu", "memory", "pids"];
/// How long processes may take to be gone after SIGKILL, and control groups after their processes.
const PATIENCE: Duration = Duration::from_secs(15);

/// One mounted hierarchy, as a machine has to mount it again for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted here.
    pub mount: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub fstype: String,
    /// Mount options that choose it, such as `memory` or `none,name=systemd`.
    pub options: String,
    /// This process's own group, below which ours are made.
    pub own: PathBuf,
}

impl Hierarchy {
    fn controls(&self, name: &str) -> bool {
        self.options.split(',').any(|o| o == name)
    }
}

/// Finds out how control groups are laid out here, or says why no lab can run.
pub(super) fn detect() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let found = parse(&mounts, &own);
    let v1 = found.iter().any(|h| h.fstype == "cgroup");
    let missing: Vec<&str> = if v1 {
        NEEDED_V1
            .into_iter()
            .filter(|c| !found.iter().any(|h| h.controls(c)))
            .collect()
    } else if let [one] = found.as_slice() {
        let there = fs::read_to_string(one.mount.join("cgroup.controllers")).unwrap_or_default();
        NEEDED_V2
            .into_iter()
            .filter(|c| !there.split_whitespace().any(|t| t == *c))
            .collect()
    } else {
        bail!(
            "control groups are laid out in a way the lab does not know: neither version 1 hierarchies nor one \
             version 2 mount under /sys/fs/cgroup"
        );
    };
    if !missing.is_empty() {
        bail!(
            "the lab needs the control group controllers {}, which are not mounted here",
            missing.join(", ")
        );
    }
    Ok(found)
}

fn parse(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(mount), Some(fstype), Some(all)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if !fstype.starts_with("cgroup") || !mount.starts_with("/sys/fs/cgroup") {
            continue;
        }
        let options = if fstype == "cgroup2" {
            String::new()
        } else {
            choosing(all)
        };
        if !seen.insert((fstype.to_owned(), options.clone())) {
            continue;
        }
        let below = own_group(own, &options).unwrap_or("/");
        let group = Path::new(mount).join(below.trim_start_matches('/'));
        // On version 2 only the root may have both processes and groups with controllers.
        let v2_alone = fstype == "cgroup2" && mount == "/sys/fs/cgroup";
        let group = if v2_alone || !group.is_dir() {
            mount.into()
        } else {
            group
        };
        found.push(Hierarchy {
            mount: mount.into(),
            fstype: fstype.to_owned(),
            options,
            own: group,
        });
    }
    found
}

/// Of all mount options, those that choose the hierarchy.
fn choosing(all: &str) -> String {
    let known = |o: &&str| {
        NEEDED_V1.contains(o)
            || o.starts_with("name=")
            || ["net_cls", "net_prio", "perf_event", "hugetlb"].contains(o)
    };
    let chosen: Vec<&str> = all.split(',').filter(known).collect();
    match chosen.as_slice() {
        [one] if one.starts_with("name=") => format!("none,{one}"),
        _ => chosen.join(","),
    }
}

/// The path that `/proc/self/cgroup` names for the hierarchy with these options.
fn own_group<'a>(own: &'a str, options: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let wanted = options.strip_prefix("none,").unwrap_or(options);
        (controllers == wanted).then_some(path)
    })
}

/// Where a machine's groups are, one for each hierarchy; nothing is made yet.
pub(super) fn places(layout: &[Hierarchy], label: &str, machine: &str) -> Vec<PathBuf> {
    layout
        .iter()
        .map(|h| h.own.join(format!("ambit-{label}")).join(machine))
        .collect()
}

/// Makes a machine's groups, usable at once.
pub(super) fn create(layout: &[Hierarchy], label: &str, machine: &str) -> anyhow::Result<()> {
    for hierarchy in layout {
        let lab = hierarchy.own.join(format!("ambit-{label}"));
        let v2_alone = layout.len() == 1 && hierarchy.fstype == "cgroup2";
        for group in [&lab, &lab.join(machine)] {
            if v2_alone && let Some(parent) = group.parent() {
                enable_v2(parent)?;
            }
            fs::create_dir_all(group)
                .with_context(|| format!("making the control group {}", group.display()))?;
            if hierarchy.controls("cpuset") {
                inherit_cpuset(group)?;
            }
        }
    }
    Ok(())
}

/// Hands the needed controllers of a version 2 group to its children.
pub(super) fn enable_v2(group: &Path) -> anyhow::Result<()> {
    let there = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = there.split_whitespace().map(|c| format!("+{c}")).collect();
    let file = group.join("cgroup.subtree_control");
    fs::write(&file, wanted.join(" ")).with_context(|| {
        format!(
            "{}: control groups of version 2 cannot be divided further here",
            file.display()
        )
    })
}

/// A new cpuset is empty, and nothing may enter it, until it is told its share.
fn inherit_cpuset(group: &Path) -> anyhow::Result<()> {
    let Some(parent) = group.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let share = fs::read_to_string(parent.join(file))
            .with_context(|| format!("{file} of {}", parent.display()))?;
        fs::write(group.join(file), share.trim())
            .with_context(|| format!("{file} of {}", group.display()))?;
    }
    Ok(())
}

/// Moves the calling process into these groups.
pub(super) fn join(groups: &[PathBuf]) -> anyhow::Result<()> {
    for group in groups {
        fs::write(group.join("cgroup.procs"), "0")
            .with_context(|| format!("joining {}", group.display()))?;
    }
    Ok(())
}

/// Every process in these groups and the groups below them.
pub(super) fn members(groups: &[PathBuf]) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for group in groups {
        for dir in tree(group) {
            let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            // 0 stands for a process that this process id namespace cannot name.
            found.extend(
                listed
                    .lines()
                    .filter_map(|l| l.parse::<i32>().ok())
                    .filter(|p| *p > 1),
            );
        }
    }
    found
}

/// Ends every process in these groups and removes the groups.
///
/// Both are tried together until both are done: a process that is only just joining is caught at the next turn, and one
/// that finds its group gone gives up by itself.
pub(crate) fn clear(groups: &[PathBuf]) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        for dir in groups.iter().flat_map(|g| tree(g)) {
            // A frozen process does not die; the file exists in one hierarchy only.
            let state = dir.join("freezer.state");
            if state.exists() {
                let _ = fs::write(state, "THAWED");
            }
        }
        let left = members(groups);
        for pid in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // Groups are removed only once nobody is in them: a half-removed machine would be harder to find again.
        let failed = if left.is_empty() {
            remove(groups)
        } else {
            None
        };
        match failed {
            None if left.is_empty() => return Ok(()),
            _ if Instant::now() < end => pause(Duration::from_millis(10)),
            None => bail!("processes {left:?} in {} do not end", groups[0].display()),
            Some((dir, e)) => {
                return Err(e)
                    .with_context(|| format!("removing the control group {}", dir.display()));
            }
        }
    }
}

/// Removes groups and all below them; returns one that could not be.
fn remove(groups: &[PathBuf]) -> Option<(PathBuf, io::Error)> {
    let dirs = groups.iter().flat_map(|g| tree(g).into_iter().rev());
    dirs.filter_map(|dir| fs::remove_dir(&dir).err().map(|e| (dir, e)))
        .filter(|(_, e)| e.kind() != io::ErrorKind::NotFound)
        .fold(None, |first, failed| first.or(Some(failed)))
}

/// A group and all below it, parents first.
fn tree(group: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut next = vec![group.to_owned()];
    while let Some(dir) = next.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        next.extend(
            entries
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
        all.push(dir);
    }
    all
}

/// Waits a moment for the kernel, which offers nothing to wait on here.
pub(super) fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n\
                      tmpfs /sys/fs/cgroup tmpfs rw 0 0\n";

    #[test]
    fn version_one_is_read_with_names_and_unified() {
        let found = parse(V1, "9:name=systemd:/\n1:cpu:/\n0::/\n");
        let options: Vec<&str> = found.iter().map(|h| h.options.as_str()).collect();
        assert_eq!(options, ["cpu", "none,name=systemd", ""]);
        assert_eq!(found[2].fstype, "cgroup2");
    }

    #[test]
    fn own_group_is_found_by_controller() {
        let own = "9:name=systemd:/a\n4:memory:/b\n2:cpu,cpuacct:/c\n0::/d\n";
        assert_eq!(own_group(own, "memory"), Some("/b"));
        assert_eq!(own_group(own, "cpu,cpuacct"), Some("/c"));
        assert_eq!(own_group(own, "none,name=systemd"), Some("/a"));
        assert_eq!(own_group(own, ""), Some("/d"));
        assert_eq!(own_group(own, "pids"), None);
    }

    #[test]
    fn places_are_below_the_own_group() {
        let layout = parse(V1, "");
        assert_eq!(
            places(&layout, "lab", "worker-1")[0],
            Path::new("/sys/fs/cgroup/cpu/ambit-lab/worker-1")
        );
    }
}
