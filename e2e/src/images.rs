//! The images of the lab: which there are, what is in them, and how they get onto its nodes.

pub mod previous;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::cluster::machine::Machine;
use crate::cluster::plan;
use crate::cluster::worker::PAUSE_IMAGE;
use crate::cluster::{Cluster, prerequisites};
use crate::image::{self, Entry, Image, Tarball};

/// A shell and the usual small programs.
pub const TOOLS_IMAGE: &str = "docker.io/ambit/busybox:local";
/// The cluster's name server.
pub const COREDNS_IMAGE: &str = "docker.io/ambit/coredns:local";
/// The app that tests talk to and from.
pub const ECHO_IMAGE: &str = "docker.io/ambit/echo:local";
/// The name that the Gateway API conformance suite knows the echo app by.
const CONFORMANCE_ECHO: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
/// Programs of this workspace: package, binary, image.
const OURS: [(&str, &str, &str); 4] = [
    ("e2e", "ambit-echo", ECHO_IMAGE),
    ("ztunnel", "ztunnel", "docker.io/ambit/ztunnel:local"),
    ("waypoint", "waypoint", "docker.io/ambit/waypoint:local"),
    (
        "controller",
        "controller",
        "docker.io/ambit/controller:local",
    ),
];
/// The target that our images are built for: with it named, the flags do not reach build scripts.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// The images that a cluster cannot start without.
pub fn base(tools: &Path) -> anyhow::Result<Vec<Tarball>> {
    let pause = pause()?;
    let busybox = prerequisites::find("busybox").context("no busybox")?;
    [
        pause_image(&pause),
        busybox_image(&busybox)?,
        coredns_image(tools),
    ]
    .iter()
    .map(image::build)
    .collect()
}

fn pause_image(program: &Path) -> Image {
    Image {
        names: vec![PAUSE_IMAGE.to_owned()],
        entries: [("/pause".to_owned(), Entry::Program(program.to_owned()))].into(),
        entrypoint: vec!["/pause".to_owned()],
    }
}

fn coredns_image(tools: &Path) -> Image {
    Image {
        names: vec![COREDNS_IMAGE.to_owned()],
        entries: [("/coredns".to_owned(), Entry::Program(tools.join("coredns")))].into(),
        entrypoint: vec!["/coredns".to_owned()],
    }
}

fn busybox_image(busybox: &Path) -> anyhow::Result<Image> {
    let list = Command::new(busybox)
        .arg("--list")
        .output()
        .context("asking busybox what it can do")?;
    let mut entries = BTreeMap::from([
        (
            "/bin/busybox".to_owned(),
            Entry::Program(busybox.to_owned()),
        ),
        ("/tmp".to_owned(), Entry::Scratch),
        (
            "/etc/passwd".to_owned(),
            Entry::File(b"root:x:0:0:root:/:/bin/sh\n".to_vec()),
        ),
    ]);
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        entries.insert(
            format!("/bin/{applet}"),
            Entry::Link("/bin/busybox".to_owned()),
        );
    }
    let entrypoint = ["/bin/sh".to_owned()].into();
    Ok(Image {
        names: vec![TOOLS_IMAGE.to_owned()],
        entries,
        entrypoint,
    })
}

/// Builds the pause program: alone, so that a cluster needs no static build of this whole crate.
fn pause() -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/ambit-pause.rs");
    let text = fs::read(&source).with_context(|| source.display().to_string())?;
    let key = &image::hex_digest(&text)[..12];
    let program = plan::cache()?.join("images").join(format!("pause-{key}"));
    if !program.is_file() {
        let dir = program.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let new = program.with_extension("new");
        let mut rustc = Command::new("rustc");
        rustc.args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
            "-o",
        ]);
        let output = rustc
            .arg(&new)
            .arg(&source)
            .output()
            .context("running rustc")?;
        if !output.status.success() {
            bail!(
                "building the pause program: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        fs::rename(&new, &program)?;
    }
    Ok(program)
}

/// Builds the programs of this workspace and packs them; cargo's progress is shown.
pub fn ours() -> anyhow::Result<Vec<Tarball>> {
    let programs = compile()?;
    let mut packed = Vec::new();
    for (_, binary, name) in OURS {
        let program = programs.join(binary);
        if !program.is_file() {
            eprintln!("there is no {binary} yet: its image is left out");
            continue;
        }
        packed.push(image::build(&program_image(binary, name, &program)?)?);
    }
    Ok(packed)
}

fn program_image(binary: &str, name: &str, program: &Path) -> anyhow::Result<Image> {
    let at = format!("/usr/local/bin/{binary}");
    let mut entries = BTreeMap::from([
        (at.clone(), Entry::Program(program.to_owned())),
        ("/tmp".to_owned(), Entry::Scratch),
        (
            "/etc/passwd".to_owned(),
            Entry::File(b"root:x:0:0:root:/:/\n".to_vec()),
        ),
        (
            "/etc/nsswitch.conf".to_owned(),
            Entry::File(b"hosts: files dns\n".to_vec()),
        ),
    ]);
    let mut names = vec![name.to_owned()];
    let mut entrypoint = vec![at.clone()];
    if name == ECHO_IMAGE {
        names.push(CONFORMANCE_ECHO.to_owned());
        entrypoint = vec!["/usr/local/bin/server".to_owned()];
        for role in ["server", "client"] {
            entries.insert(format!("/usr/local/bin/{role}"), Entry::Link(at.clone()));
        }
        let (certificate, key) = echo_certificate()?;
        entries.insert("/cert.crt".to_owned(), Entry::File(certificate));
        entries.insert("/cert.key".to_owned(), Entry::File(key));
    }
    Ok(Image {
        names,
        entries,
        entrypoint,
    })
}

/// The echo app's own certificate; kept, so that the image stays the same.
fn echo_certificate() -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let dir = plan::cache()?.join("images");
    let (certificate, key) = (dir.join("echo.crt"), dir.join("echo.key"));
    if !certificate.is_file() {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "echo".to_owned()])?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        fs::write(&certificate, made.cert.pem())?;
    }
    Ok((fs::read(&certificate)?, fs::read(&key)?))
}

/// This workspace's folder.
fn workspace() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")
}

/// Builds static binaries and returns the folder with them.
fn compile() -> anyhow::Result<PathBuf> {
    let workspace = workspace()?;
    let quick = match std::env::var("AMBIT_IMAGE_PROFILE").as_deref() {
        Err(_) | Ok("release") => false,
        Ok("dev" | "debug") => true,
        Ok(other) => bail!("AMBIT_IMAGE_PROFILE is `dev` or `release`, not `{other}`"),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--locked", "--target", TARGET])
        .current_dir(workspace)
        .stdin(Stdio::null());
    if !quick {
        cargo.arg("--release");
    }
    // All packages are named, so that one set of features holds; of the bins only those that go into images.
    for (package, binary, _) in OURS {
        if binary != "ambit-echo" || workspace.join("e2e/src/bin/ambit-echo.rs").is_file() {
            cargo.args(["-p", package, "--bin", binary]);
        }
    }
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    cargo.env(
        "RUSTFLAGS",
        format!("{flags} -C target-feature=+crt-static").trim(),
    );
    let status = cargo.status().context("running cargo")?;
    if !status.success() {
        bail!("building the programs for the images failed: see cargo's message above");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |d| workspace.join(d));
    Ok(target
        .join(TARGET)
        .join(if quick { "debug" } else { "release" }))
}

/// Builds the images of this workspace's programs and brings them onto the nodes; returns how many nodes needed one.
///
/// An image replaces the one of the same name: pods made afterwards run the new one.
pub fn refresh(cluster: &Cluster) -> anyhow::Result<usize> {
    let images = ours()?;
    let mut changed = 0;
    for node in &cluster.nodes {
        for tarball in &images {
            changed += usize::from(import(&node.machine, tarball)?);
        }
    }
    Ok(changed)
}

/// Brings an image onto a node; false if it was there already.
pub fn import(node: &Machine, tarball: &Tarball) -> anyhow::Result<bool> {
    // Kept on the node, in memory: a node that is made anew has nothing.
    let known = node.path("/run/ambit-lab/images");
    fs::create_dir_all(&known).with_context(|| known.display().to_string())?;
    // One mark for each name, so that going back to an earlier image of that name is a change too.
    let mark = known.join(tarball.name.replace(['/', ':'], "-"));
    if fs::read_to_string(&mark).is_ok_and(|digest| digest == tarball.digest) {
        return Ok(false);
    }
    let file = node.folder.join("import.tar");
    fs::write(&file, &tarball.bytes).with_context(|| file.display().to_string())?;
    let ctr = node.tools.join("ctr");
    let (ctr, path) = (ctr.display().to_string(), file.display().to_string());
    node.exec(&[&ctr, "-n", "k8s.io", "images", "import", "--local", &path])?;
    fs::remove_file(&file)?;
    fs::write(&mark, &tarball.digest)?;
    Ok(true)
}
