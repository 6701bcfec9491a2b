//! What the lab needs from the host, checked before anything is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::cgroups::{self, Hierarchy};
use super::programs;

/// Programs of the distribution that the lab calls, and the Debian packages that have them.
const PACKAGES: [(&str, &str); 7] = [
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("busybox", "busybox-static"),
];
/// Where programs are looked for, whatever PATH says.
const FOLDERS: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Makes sure that a lab can run here, installing what is missing; starts nothing.
pub(crate) fn ensure() -> anyhow::Result<Vec<Hierarchy>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the local cluster makes namespaces and mounts and has to be run by root");
    }
    let layout = cgroups::detect()?;
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.split_whitespace().any(|f| f == "overlay") {
        bail!(
            "this kernel has no overlay file system, which the local cluster's nodes are made of"
        );
    }
    if !programs::built() {
        programs::check_go()?;
    }
    install()?;
    Ok(layout)
}

fn install() -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(p, _)| !usable(p))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        bail!(
            "the local cluster needs the Debian packages {list} (or the same programs), and there is no apt-get to install them"
        );
    }
    eprintln!("installing {list} …");
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&arguments)?;
    match PACKAGES.iter().find(|(program, _)| !usable(program)) {
        None => Ok(()),
        Some((program, package)) => {
            bail!("{package} is installed, but there is no usable {program}")
        }
    }
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let run = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output();
    let output = run.context("running apt-get")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`apt-get {}` failed: {}",
            arguments.join(" "),
            said.lines().last().unwrap_or("it does not say why")
        );
    }
    Ok(())
}

fn usable(program: &str) -> bool {
    let Some(path) = find(program) else {
        return false;
    };
    // The tool image holds busybox alone, so only the static one will do.
    program != "busybox" || is_static(&path)
}

/// Where a program of the distribution is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    FOLDERS
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

/// Whether a program needs no loader: it does not name one.
fn is_static(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    let name = b"/ld-linux";
    !bytes.is_empty() && !bytes.windows(name.len()).any(|w| w == name)
}
