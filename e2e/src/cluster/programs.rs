//! The programs of Kubernetes, built from source once and kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::init::Service;
use super::plan;
use crate::image;

/// What the programs say they are; clients that parse versions choke on the default.
const LINK_FLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";
/// How often a build without a terminal says that it goes on.
const NEWS: Duration = Duration::from_secs(20);

/// The folder with `go.mod` and `go.sum` that name every program.
fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

/// The folder with the programs; builds them the first time.
pub(super) fn ensure() -> anyhow::Result<PathBuf> {
    let dir = folder()?;
    if !dir.is_dir() {
        build(&dir)?;
    }
    Ok(dir)
}

/// Whether the programs are there already.
pub(super) fn built() -> bool {
    folder().is_ok_and(|dir| dir.is_dir())
}

/// Fails if they are not there and cannot be built.
pub(super) fn check_go() -> anyhow::Result<()> {
    // It reads go.mod, so it fails where a build would for Go's version.
    let out = go().args(["list", "-m"]).current_dir(module()).output();
    let said = match &out {
        Ok(out) if out.status.success() => return Ok(()),
        Ok(out) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    bail!(
        "Kubernetes is built from source, which needs Go 1.26 or newer (`go list -m` says: {said}): install it from \
         https://go.dev/dl, or with an older Go from 1.21 on let it fetch a newer one by setting GOTOOLCHAIN=auto"
    )
}

/// The Go tool, in PATH or where its own installer puts it.
pub(super) fn go() -> Command {
    let usual = Path::new("/usr/local/go/bin/go");
    let in_path = std::env::var_os("PATH")
        .is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("go").is_file()));
    if !in_path && usual.is_file() {
        Command::new(usual)
    } else {
        Command::new("go")
    }
}

/// Every version has a folder of its own.
fn folder() -> anyhow::Result<PathBuf> {
    let mut named = Vec::new();
    for file in ["go.mod", "go.sum"] {
        named.extend(fs::read(module().join(file)).with_context(|| format!("e2e/cluster/{file}"))?);
    }
    named.extend(LINK_FLAGS.as_bytes());
    let key = &image::hex_digest(&named)[..12];
    Ok(plan::cache()?.join("tools").join(key))
}

fn build(dir: &Path) -> anyhow::Result<()> {
    check_go()?;
    let partial = dir.with_extension("partial");
    fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
    let mut go = go()
        .args(["build", "-v", "-trimpath", "-ldflags", LINK_FLAGS, "-o"])
        // Go takes it for a folder by the slash.
        .arg(format!("{}/", partial.display()))
        .arg("tool")
        .current_dir(module())
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running go")?;
    let said = match go.stderr.take() {
        Some(stderr) => watch(BufReader::new(stderr).lines().map_while(Result::ok)),
        None => Vec::new(),
    };
    let status = go.wait().context("waiting for go")?;
    if !status.success() {
        let last = said[said.len().saturating_sub(15)..].join("\n    ");
        bail!("building Kubernetes failed ({status}):\n    {last}");
    }
    fs::rename(&partial, dir).context("keeping the built programs")
}

/// Shows how far a build is, and returns what it said.
fn watch(lines: impl Iterator<Item = String>) -> Vec<String> {
    let begun = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    if !terminal {
        eprintln!("building Kubernetes from source, once (about 10 minutes on 2 cores) …");
    }
    let mut said = Vec::new();
    let mut news = begun;
    for line in lines {
        said.push(line);
        let now = format!(
            "building Kubernetes from source, once: {} packages",
            said.len()
        );
        if !terminal && news.elapsed() > NEWS {
            eprintln!("{now} after {} s", begun.elapsed().as_secs());
            news = Instant::now();
        }
        bar.set_message(now);
    }
    bar.finish_and_clear();
    said
}

/// A service that runs one of the programs.
pub(super) fn service(
    tools: &Path,
    name: &str,
    program: &str,
    arguments: impl IntoIterator<Item = String>,
) -> Service {
    let mut argv = vec![tools.join(program).display().to_string()];
    argv.extend(arguments);
    // Ours first: containerd looks for its shim in PATH, and a distribution's older one fails every pod.
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        tools.display()
    );
    let env = [
        ("PATH", path.as_str()),
        ("TMPDIR", "/run/tmp"),
        ("HOME", "/run"),
        ("LANG", "C.UTF-8"),
    ];
    let env = env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    Service {
        name: name.to_owned(),
        argv,
        env: BTreeMap::from_iter(env),
    }
}
