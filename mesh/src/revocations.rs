//! What the mesh's authorities have revoked: a file that is read at the start, and again whenever it says something else.
//!
//! Without a file, or with an empty one, nobody is revoked. One that cannot be read whole at the start lets nobody in,
//! since nobody can tell whom it names; one that becomes so later leaves in force what was, loudly.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hbone::{Revocations, UnknownRevocation};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often the file is read again. A mounted ConfigMap changes by a link that is replaced, of which a watch of the file
/// itself hears nothing.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Of lists together. A ConfigMap holds 1 MiB; what is mounted from elsewhere may name some hundred thousand certificates.
const MAX_BYTES: u64 = 16 << 20;

/// Who follows the file. [`run`](Self::run) it on the control thread.
#[derive(Debug)]
pub struct RevocationFile {
    path: Option<PathBuf>,
    /// As it was read last.
    seen: Result<Vec<u8>, String>,
    in_force: watch::Sender<Option<Revocations>>,
    metrics: Metrics,
}

/// What is in force now: nothing where nobody is revoked.
pub type InForce = watch::Receiver<Option<Revocations>>;

#[derive(Clone, Debug, Default)]
struct Metrics {
    lists: Gauge,
    unreadable: Gauge,
    failures: Counter,
}

// === impl RevocationFile ===

impl RevocationFile {
    /// Reads the file for the first time; without a path there is none.
    pub fn open(path: Option<PathBuf>) -> (Self, InForce) {
        let (in_force, receiver) = watch::channel(None);
        let mut file = Self {
            path,
            // Of a file that is not there.
            seen: Ok(Vec::new()),
            in_force,
            metrics: Metrics::default(),
        };
        if let Some(path) = &file.path {
            let content = read(path);
            file.take(content, true);
        }
        (file, receiver)
    }

    /// Adds what it counts to the process's registry.
    pub fn register(&self, registry: &mut Registry) {
        let Metrics {
            lists,
            unreadable,
            failures,
        } = self.metrics.clone();
        registry.register(
            "ambit_revocation_lists",
            "Certificate revocation lists in force",
            lists,
        );
        registry.register(
            "ambit_revocation_lists_unreadable",
            "1 while the file of revocation lists cannot be read as it is now",
            unreadable,
        );
        registry.register(
            "ambit_revocation_list_failures",
            "Times that the file of revocation lists had changed and could not be read",
            failures,
        );
    }

    /// Follows the file for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let Some(path) = self.path.clone() else {
            return std::future::pending().await;
        };
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let path = path.clone();
            let content = tokio::task::spawn_blocking(move || read(&path)).await;
            let content = content.unwrap_or_else(|error| Err(error.to_string()));
            if content != self.seen {
                self.take(content, false);
            }
        }
    }

    /// Takes what the file says, whole or not at all.
    fn take(&mut self, content: Result<Vec<u8>, String>, first: bool) {
        let parsed = content.clone().and_then(|content| parse(&content));
        self.seen = content;
        let path = self.path.as_deref().unwrap_or(Path::new("")).display();
        self.metrics.unreadable.set(parsed.is_err().into());
        let now = match parsed {
            Ok(lists) => {
                let before = self.in_force.borrow().is_some();
                match &lists {
                    Some(lists) => {
                        tracing::info!(%path, lists = lists.count(), "revocation lists in force");
                    }
                    None if before => {
                        tracing::warn!(%path, "no revocation list any more: nobody is revoked");
                    }
                    None => {}
                }
                lists
            }
            Err(error) => {
                self.metrics.failures.inc();
                if !first {
                    tracing::error!(%path, error, "the revocation lists cannot be read: what was in force stays so");
                    return;
                }
                tracing::error!(%path, error, "the revocation lists cannot be read: no peer is let in");
                Some(Revocations::unreadable())
            }
        };
        let count = now.as_ref().map_or(0, Revocations::count);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.lists.set(count);
        self.in_force.send_replace(now);
    }
}

/// All of a file; a file that is not there is empty.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 > MAX_BYTES => Err(format!("more than {MAX_BYTES} bytes")),
        Ok(_) => Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// What has no list yet is distributed as an empty text, too.
fn parse(content: &[u8]) -> Result<Option<Revocations>, String> {
    let text = str::from_utf8(content).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let lists = Revocations::from_pem(text, UnknownRevocation::Allow);
    lists.map(Some).map_err(|error| error.to_string())
}
