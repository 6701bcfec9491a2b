//! Answers the plugin: accepts its connections and hands each request to a handler.
//!
//! Who asks decides which namespace becomes a pod's, so not everybody may: only root, as container runtimes run plugins,
//! and no process of a pod that got hold of the socket's directory, unless that pod is on the host's network: there
//! are network plugins that run other plugins from such pods.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::protocol::{Answer, MAX_MESSAGE, Request};
use crate::cgroup::pod_uid;

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
    let asker = Asker::of(&stream)?;
    let answer = match (asker.objection(), serde_json::from_slice(&bytes)) {
        (None, Ok(request)) => handler(request).await,
        (Some(reason), _) => {
            tracing::warn!(
                ?asker,
                reason,
                "a request in the CNI plugin's name is refused"
            );
            Answer::Hold { reason }
        }
        (None, Err(error)) => Answer::Hold {
            reason: format!("ztunnel cannot read the CNI plugin's request: {error}"),
        },
    };
    stream.write_all(&serde_json::to_vec(&answer)?).await?;
    stream.shutdown().await
}

/// The plugin has its request ready when it connects.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The process at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asker {
    /// Its user, as the kernel tells it: root of a user namespace is not 0.
    uid: u32,
    /// The pod that it belongs to, if any.
    pod: Option<String>,
    /// Whether it is in the host's network namespace.
    on_host: bool,
}

// === impl Asker ===

impl Asker {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        // It waits for our answer, so it is still there; without a number it is of another PID namespace.
        let pid = credentials.pid().unwrap_or_default();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let network = |pid| {
            let namespace = fs::metadata(format!("/proc/{pid}/ns/net"));
            namespace.map(|of| (of.dev(), of.ino()))
        };
        Ok(Self {
            uid: credentials.uid(),
            pod: pod_uid(&cgroup),
            on_host: matches!((network(pid), network(1)), (Ok(its), Ok(host)) if its == host),
        })
    }

    /// Why it may not ask.
    fn objection(&self) -> Option<String> {
        if self.uid != 0 {
            let uid = self.uid;
            return Some(format!("user {uid} asks ztunnel, and only root may"));
        }
        let pod = self.pod.as_ref().filter(|_| !self.on_host)?;
        Some(format!(
            "a process of pod {pod} asks ztunnel, and only the container runtime may"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_roots_processes_outside_of_pods_are_answered() {
        let (near, _far) = UnixStream::pair().unwrap();
        let ours = Asker::of(&near).unwrap();
        assert_eq!(ours.uid, nix::unistd::getuid().as_raw());

        let runtime = Asker {
            uid: 0,
            pod: None,
            on_host: true,
        };
        assert_eq!(runtime.objection(), None);
        let user = Asker {
            uid: 1000,
            ..runtime.clone()
        };
        assert!(user.objection().unwrap().contains("1000"));
        let of_pod = |on_host| Asker {
            pod: Some("u-1".into()),
            on_host,
            ..runtime.clone()
        };
        assert!(of_pod(false).objection().unwrap().contains("u-1"));
        assert_eq!(of_pod(true).objection(), None);
        // A runtime in a container of its own.
        let nested = Asker {
            on_host: false,
            ..runtime
        };
        assert_eq!(nested.objection(), None);
    }
}
