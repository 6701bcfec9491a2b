//! Whole files only: read, replaced by renaming, removed.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::InstallError;

/// Ends the names of files that are not finished. No runtime reads them.
const UNFINISHED: &str = ".ambit-tmp";

/// The files in a directory. None in one that is not there.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(at(dir)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(at(dir)(e)),
    }
}

/// Locks a directory, made if need be, until the result is dropped or the process ends.
pub(super) fn lock(dir: &Path, patience: Duration) -> Result<File, InstallError> {
    const POLL_INTERVAL: Duration = Duration::from_millis(10);
    fs::create_dir_all(dir).map_err(at(dir))?;
    let file = File::open(dir).map_err(at(dir))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(InstallError::Locked(dir.into()));
            }
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(POLL_INTERVAL),
            // A file system without locks: then the order of steps has to do.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, dir = %dir.display(), "cannot be locked");
                return Ok(file);
            }
        }
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    fs::read(path).map_err(at(path))
}

/// Puts `bytes` at `path` if `source` still holds `original`, with the permissions of `source`.
pub(super) fn replace(
    path: &Path,
    bytes: &[u8],
    source: &Path,
    original: &[u8],
) -> Result<bool, InstallError> {
    // A link stays a link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let permissions = fs::metadata(source).map_err(at(source))?.permissions();
    let fresh = write_beside(&path, bytes, permissions)?;
    if read(source)? != original {
        fs::remove_file(&fresh).map_err(at(&fresh))?;
        return Ok(false);
    }
    rename(&fresh, &path)?;
    Ok(true)
}

/// Copies a program, unless the same is there. Says whether it was copied.
pub(super) fn copy_program(from: &Path, to: &Path) -> Result<bool, InstallError> {
    let bytes = read(from)?;
    let there = fs::metadata(to).is_ok_and(|m| m.permissions().mode() & 0o777 == 0o755);
    if there && fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).map_err(at(dir))?;
    }
    let fresh = write_beside(to, &bytes, Permissions::from_mode(0o755))?;
    rename(&fresh, to)?;
    Ok(true)
}

/// Removes files, where they are there. Says whether any was.
pub(super) fn remove_all(paths: &[PathBuf]) -> Result<bool, InstallError> {
    let mut removed = false;
    for path in paths {
        step(path)?;
        match fs::remove_file(path) {
            Ok(()) => removed = true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(at(path)(e)),
        }
    }
    Ok(removed)
}

/// Removes what an interrupted predecessor left.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), InstallError> {
    let mut files = list(dir)?;
    files.retain(|path| {
        path.as_os_str()
            .as_encoded_bytes()
            .ends_with(UNFINISHED.as_bytes())
    });
    remove_all(&files).map(drop)
}

fn write_beside(
    path: &Path,
    bytes: &[u8],
    permissions: Permissions,
) -> Result<PathBuf, InstallError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(UNFINISHED);
    let fresh = path.with_file_name(name);
    step(&fresh)?;
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.set_permissions(permissions)?;
        // A node that loses power must not come back with an empty file.
        file.sync_all()
    };
    write().map_err(at(&fresh))?;
    Ok(fresh)
}

fn rename(fresh: &Path, path: &Path) -> Result<(), InstallError> {
    step(path)?;
    fs::rename(fresh, path).map_err(at(path))?;
    if let Some(dir) = path.parent() {
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(at(dir))?;
    }
    Ok(())
}

/// Something is about to be changed on the node: where a test ends the installer.
#[cfg_attr(
    not(test),
    allow(clippy::unnecessary_wraps, reason = "only a test fails here")
)]
fn step(_path: &Path) -> Result<(), InstallError> {
    #[cfg(test)]
    stopping::step().map_err(at(_path))?;
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError::File { path, source }
}

/// Ends an installer of the current thread after some steps, as a kill would.
#[cfg(test)]
pub(super) mod stopping {
    use std::{cell::Cell, io};

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// `f`, which is stopped before it changes more than `steps` things.
    pub(crate) fn after<T>(steps: usize, f: impl FnOnce() -> T) -> T {
        LEFT.set(Some(steps));
        let result = f();
        LEFT.set(None);
        result
    }

    pub(super) fn step() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("stopped")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
