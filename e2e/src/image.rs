//! Container images without Docker or a registry: files in, one OCI layout tarball out, the same bytes every time.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aws_lc_rs::digest::{SHA256, digest as sha};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// What is at one place of an image's file system.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A file of the host, executable.
    Program(PathBuf),
    /// A plain file with these contents.
    File(Vec<u8>),
    /// A link to this path.
    Link(String),
    /// An empty folder that anybody may write to.
    Scratch,
}

/// What to make an image of.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Full names with registry and tag, such as `docker.io/ambit/echo:local`.
    pub names: Vec<String>,
    /// Absolute path → what is there.
    pub entries: BTreeMap<String, Entry>,
    /// What runs when the pod does not say.
    pub entrypoint: Vec<String>,
}

/// An image, ready for `ctr images import`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tarball {
    /// The image's first name.
    pub name: String,
    /// The file's contents.
    pub bytes: Vec<u8>,
    /// Digest of its index: equal when names and contents are.
    pub digest: String,
}

/// Packs an image: one uncompressed layer, times and owners zero.
pub fn build(image: &Image) -> anyhow::Result<Tarball> {
    let layer = layer(&image.entries)?;
    let layer_digest = digest(&layer);
    let config = bytes(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created_by": "ambit-lab"}],
    }));
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
    }));
    let named = image.names.iter().map(|name| {
        let mut entry = described("application/vnd.oci.image.manifest.v1+json", &manifest);
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        entry["annotations"] =
            json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        entry
    });
    let index = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": named.collect::<Vec<Value>>(),
    }));

    let mut out = Builder::new(Vec::with_capacity(layer.len() + 16 * 1024));
    put(
        &mut out,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    put(&mut out, "index.json", 0o644, &index)?;
    for blob in [&config, &manifest, &layer] {
        put(
            &mut out,
            &format!(
                "blobs/sha256/{}",
                digest(blob).trim_start_matches("sha256:")
            ),
            0o644,
            blob,
        )?;
    }
    Ok(Tarball {
        name: image
            .names
            .first()
            .cloned()
            .context("an image without a name")?,
        bytes: out.into_inner().context("packing an image")?,
        digest: digest(&index),
    })
}

fn layer(entries: &BTreeMap<String, Entry>) -> anyhow::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    let mut made = BTreeSet::new();
    for (path, entry) in entries {
        let path = path.trim_start_matches('/');
        // Folders come before what is in them.
        let above: Vec<&Path> = Path::new(path)
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect();
        for dir in above.into_iter().rev() {
            if made.insert(dir.to_owned()) {
                special(
                    &mut out,
                    EntryType::Directory,
                    0o755,
                    &dir.display().to_string(),
                    None,
                )?;
            }
        }
        match entry {
            Entry::Program(file) => {
                let contents =
                    std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
                put(&mut out, path, 0o755, &contents)?;
            }
            Entry::File(contents) => put(&mut out, path, 0o644, contents)?,
            Entry::Link(target) => {
                special(&mut out, EntryType::Symlink, 0o777, path, Some(target))?;
            }
            Entry::Scratch => special(&mut out, EntryType::Directory, 0o1777, path, None)?,
        }
    }
    out.into_inner().context("packing a layer")
}

fn put(out: &mut Builder<Vec<u8>>, path: &str, mode: u32, contents: &[u8]) -> anyhow::Result<()> {
    let mut header = header(EntryType::Regular, mode);
    header.set_size(contents.len() as u64);
    out.append_data(&mut header, path, contents)
        .with_context(|| format!("packing {path}"))
}

fn special(
    out: &mut Builder<Vec<u8>>,
    kind: EntryType,
    mode: u32,
    path: &str,
    to: Option<&str>,
) -> anyhow::Result<()> {
    let mut header = header(kind, mode);
    match to {
        Some(target) => out.append_link(&mut header, path, target),
        None => out.append_data(&mut header, format!("{path}/"), std::io::empty()),
    }
    .with_context(|| format!("packing {path}"))
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn described(media: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex_digest(blob))
}

/// The SHA-256 of some bytes; in assembly, because images are large and a debug build is slow.
pub(crate) fn hex_digest(blob: &[u8]) -> String {
    sha(&SHA256, blob)
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// What container tools call this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        let entries = [
            ("/usr/local/bin/x".to_owned(), Entry::File(b"x".to_vec())),
            ("/bin/sh".to_owned(), Entry::Link("busybox".to_owned())),
            ("/tmp".to_owned(), Entry::Scratch),
        ];
        Image {
            names: vec!["docker.io/a/b:local".into(), "docker.io/a/c:1".into()],
            entries: entries.into(),
            entrypoint: vec!["/usr/local/bin/x".into()],
        }
    }

    #[test]
    fn the_same_image_is_the_same_bytes() {
        assert_eq!(build(&sample()).unwrap(), build(&sample()).unwrap());
    }

    #[test]
    fn another_file_is_another_digest() {
        let mut other = sample();
        other
            .entries
            .insert("/usr/local/bin/x".into(), Entry::File(b"y".to_vec()));
        assert_ne!(
            build(&sample()).unwrap().digest,
            build(&other).unwrap().digest
        );
    }

    #[test]
    fn folders_come_before_their_files_and_once() {
        let layer = layer(&sample().entries).unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            paths,
            [
                "bin/",
                "bin/sh",
                "tmp/",
                "usr/",
                "usr/local/",
                "usr/local/bin/",
                "usr/local/bin/x"
            ]
        );
    }

    #[test]
    fn every_name_is_in_the_index() {
        let tarball = build(&sample()).unwrap();
        let text = String::from_utf8_lossy(&tarball.bytes);
        for name in sample().names {
            assert!(text.contains(&name), "{name} is missing");
        }
    }
}
