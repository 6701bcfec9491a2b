//! What a machine sees of the file system: the host's programs, and its own `/etc`, `/var`, `/run`, `/opt`, `/sys`, `/proc`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};

use super::cgroups::{self, Hierarchy};
use super::init::Spec;

/// Where a machine keeps the upper halves of its overlays, in memory.
const UPPER: &str = "/run/ambit-lab";
/// Settings of the whole host that kubelet insists on: it is shown these values, the real ones stay.
const SHOWN: [(&str, &str); 4] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
];

/// Mounts that every machine needs: process list, temporary files.
pub(super) fn plain() -> anyhow::Result<()> {
    propagation(MsFlags::MS_PRIVATE)?;
    fresh("proc", "/proc", "")?;
    fresh("tmpfs", "/run", "mode=755")?;
    make_dir("/run/tmp")
}

/// Mounts of a worker, on which kubelet and containerd find a machine that is theirs alone.
pub(super) fn worker(spec: &Spec) -> anyhow::Result<()> {
    plain()?;
    fresh("sysfs", "/sys", "")?;
    control_groups(spec)?;
    fresh("bpf", "/sys/fs/bpf", "mode=700")?;
    for dir in ["/etc", "/var", "/opt"] {
        overlay(dir)?;
    }
    for (inside, outside) in [
        ("/var/lib/containerd", "containerd"),
        ("/var/lib/kubelet", "kubelet"),
    ] {
        make_dir(inside)?;
        let from = spec.folder.join(outside);
        make_dir(&from)?;
        bind(&from, Path::new(inside))?;
    }
    for dir in [
        "/etc/cni/net.d",
        "/opt/cni/bin",
        "/var/log/pods",
        "/var/log/containers",
        "/run/netns",
    ] {
        make_dir(dir)?;
    }
    // Nothing may be resolved outside: nodes know no name server.
    fs::write("/etc/resolv.conf", "").context("/etc/resolv.conf")?;
    fs::write("/etc/hostname", format!("{}\n", spec.name)).context("/etc/hostname")?;
    for (setting, value) in SHOWN {
        let file = Path::new(UPPER).join(setting.replace('/', "-"));
        fs::write(&file, value).context("writing a shown setting")?;
        bind(&file, &Path::new("/proc/sys").join(setting))?;
    }
    propagation(MsFlags::MS_SHARED)
}

/// The network settings of a router of pods; they belong to the machine's network namespace.
pub(super) fn network_settings() -> anyhow::Result<()> {
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/route_localnet", "1"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
    ] {
        let file = Path::new("/proc/sys/net").join(setting);
        fs::write(&file, value).with_context(|| format!("setting {}", file.display()))?;
    }
    // Without these a Service whose endpoint shares the client's bridge answers past the address translation.
    for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let file = Path::new("/proc/sys/net/bridge").join(setting);
        if file.exists() {
            fs::write(&file, "1").with_context(|| format!("setting {}", file.display()))?;
        }
    }
    Ok(())
}

fn control_groups(spec: &Spec) -> anyhow::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if let [Hierarchy { fstype, .. }] = spec.layout.as_slice()
        && fstype == "cgroup2"
    {
        fresh("cgroup2", "/sys/fs/cgroup", "")?;
        // A group with processes cannot hand controllers on, so the machine's own processes move one down.
        let own = root.join("init");
        make_dir(&own)?;
        cgroups::join(&[own])?;
        return cgroups::enable_v2(root);
    }
    fresh("tmpfs", "/sys/fs/cgroup", "mode=755")?;
    for hierarchy in &spec.layout {
        let Some(name) = hierarchy.mount.file_name() else {
            continue;
        };
        let at = root.join(name);
        make_dir(&at)?;
        fresh(&hierarchy.fstype, &at, &hierarchy.options)?;
        for alone in hierarchy
            .options
            .split(',')
            .filter(|c| !c.contains('=') && *c != "none" && !c.is_empty())
        {
            let link = root.join(alone);
            if !link.exists() {
                std::os::unix::fs::symlink(name, &link).context("linking a control group")?;
            }
        }
    }
    Ok(())
}

/// Gives the machine its own copy of a folder: reads the host's, writes to memory.
fn overlay(dir: &str) -> anyhow::Result<()> {
    let base = Path::new(UPPER).join(dir.trim_start_matches('/'));
    let (upper, work) = (base.join("upper"), base.join("work"));
    make_dir(&upper)?;
    make_dir(&work)?;
    let options = format!(
        "lowerdir={dir},upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    fresh("overlay", dir, &options)
}

fn fresh(fstype: &str, at: impl AsRef<Path>, options: &str) -> anyhow::Result<()> {
    let at = at.as_ref();
    let flags = if fstype == "proc" || fstype == "sysfs" {
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
    } else {
        MsFlags::empty()
    };
    mount(Some(fstype), at, Some(fstype), flags, Some(options)).with_context(|| {
        format!(
            "mounting {fstype} on {} with options {options:?}",
            at.display()
        )
    })
}

fn bind(from: &Path, at: &Path) -> anyhow::Result<()> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} to {}", from.display(), at.display()))
}

fn propagation(kind: MsFlags) -> anyhow::Result<()> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | kind,
        None::<&str>,
    )
    .context("mount propagation")
}

fn make_dir(dir: impl AsRef<Path>) -> anyhow::Result<()> {
    let dir = dir.as_ref();
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}
