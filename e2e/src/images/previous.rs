//! Images of an earlier commit's programs, built from git: proxies and controllers are not replaced in one moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::{OURS, TARGET, import, program_image, workspace};
use crate::cluster::Cluster;
use crate::cluster::plan;
use crate::image;

/// What images of earlier programs are tagged with, in place of `local`.
pub const TAG: &str = "previous";

/// An earlier commit, built.
#[derive(Debug)]
pub struct Previous {
    /// Its files.
    pub source: PathBuf,
    programs: PathBuf,
}

/// Builds the programs of this commit, the first time; several minutes.
pub fn build(commit: &str) -> Result<Previous> {
    let folder = plan::cache()?.join("previous").join(commit);
    let (source, target) = (folder.join("source"), folder.join("target"));
    if !source.is_dir() {
        unpack(commit, &source)?;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--locked", "--release", "--target", TARGET])
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The toolchain is the commit's own.
        .env_remove("RUSTUP_TOOLCHAIN")
        .stdin(Stdio::null());
    for (package, binary, _) in programs() {
        cargo.args(["-p", package, "--bin", binary]);
    }
    let status = cargo.status().context("running cargo")?;
    ensure!(
        status.success(),
        "building the programs of {commit} failed: see cargo's message above"
    );
    Ok(Previous {
        source,
        programs: target.join(TARGET).join("release"),
    })
}

/// The programs of the mesh; the apps of the tests are always today's.
fn programs() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    OURS.into_iter().filter(|(package, ..)| *package != "e2e")
}

/// Puts a commit's files into a new folder.
fn unpack(commit: &str, into: &Path) -> Result<()> {
    let known = Command::new("git")
        .args(["cat-file", "-e", &format!("{commit}^{{commit}}")])
        .current_dir(workspace()?)
        .output()
        .context("running git")?;
    if !known.status.success() {
        bail!(
            "this checkout has no commit {commit}, whose programs are to be built. A shallow one lacks history: `git fetch \
             --unshallow` (in CI: a checkout of full depth)"
        );
    }
    // Whole or not at all.
    let partial = into.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    let mut git = Command::new("git")
        .args(["archive", "--format=tar", commit])
        .current_dir(workspace()?)
        .stdout(Stdio::piped())
        .spawn()
        .context("running git")?;
    let files = git.stdout.take().context("git has no output")?;
    tar::Archive::new(files)
        .unpack(&partial)
        .context("unpacking what git gives")?;
    ensure!(git.wait()?.success(), "git archive {commit} failed");
    fs::rename(&partial, into).context("keeping the files")
}

impl Previous {
    /// Brings its images onto the nodes, beside today's.
    pub fn bring(&self, cluster: &Cluster) -> Result<()> {
        for (_, binary, name) in programs() {
            let program = self.programs.join(binary);
            let image = program_image(
                binary,
                &name.replace(":local", &format!(":{TAG}")),
                &program,
            )?;
            let tarball = image::build(&image)?;
            for node in &cluster.nodes {
                import(&node.machine, &tarball)?;
            }
        }
        Ok(())
    }
}
