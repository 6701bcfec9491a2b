//! Answers the plugin: accepts its connections and hands each request to a handler.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::protocol::{Answer, MAX_MESSAGE, Request};

/// A socket that the plugin finds.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

/// Binds `path` and serves it; see [`Server`].
pub async fn serve<H>(path: &Path, handler: H) -> io::Result<()>
where
    H: AsyncFn(Request) -> Answer,
{
    Server::bind(path)?.run(handler).await
}

// === impl Server ===

impl Server {
    /// Binds `path`, in the place of a predecessor's socket if one is there: connections go to one or the other.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        Ok(Self {
            listener,
            path: path.into(),
        })
    }

    /// Answers every request through `handler`, many at a time. Ends only with an error of the listener; dropping the
    /// future drops the requests in it unanswered, and the plugin tells its pods to wait.
    pub async fn run<H>(self, handler: H) -> io::Result<()>
    where
        H: AsyncFn(Request) -> Answer,
    {
        let mut exchanges = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted?;
                    exchanges.push(exchange(stream, &handler));
                }
                Some(result) = exchanges.next() => {
                    if let Err(error) = result {
                        tracing::warn!(%error, path = %self.path.display(), "an exchange with the CNI plugin failed");
                    }
                }
            }
        }
    }
}

async fn exchange<H>(mut stream: UnixStream, handler: &H) -> io::Result<()>
where
    H: AsyncFn(Request) -> Answer,
{
    let mut bytes = Vec::new();
    let mut limited = (&mut stream).take(MAX_MESSAGE);
    let reading = limited.read_to_end(&mut bytes);
    let read: Result<_, _> = tokio::time::timeout(READ_TIMEOUT, reading).await;
    read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if bytes.is_empty() {
        // Somebody only looked whether we are there.
        return Ok(());
    }
    let answer = match serde_json::from_slice(&bytes) {
        Ok(request) => handler(request).await,
        Err(error) => Answer::Hold {
            reason: format!("ztunnel cannot read the CNI plugin's request: {error}"),
        },
    };
    stream.write_all(&serde_json::to_vec(&answer)?).await?;
    stream.shutdown().await
}

/// The plugin has its request ready when it connects.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
