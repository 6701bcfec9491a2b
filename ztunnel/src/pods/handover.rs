//! Whether another ztunnel serves a pod by now: two of them listen in its namespace during an upgrade.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use mesh::ports;
use tokio::{
    net::UnixStream,
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::listeners::{SocketId, held_by, listening};
use crate::netns::PodNetns;

/// How often is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How old a look at the ztunnels' sockets may be: it serves the pods that are handed over together.
const LOOK_AGE: Duration = Duration::from_millis(250);

/// Looks in a row that find a stranger before that is said: longer than [`LOOK_AGE`] by then.
const CERTAIN_AFTER: u32 = 10;

/// The ztunnels of this node: this process, and whichever answers the CNI plugin. Nobody else can be that: the
/// socket's directory is root's on the node.
#[derive(Debug)]
pub struct Ztunnels {
    cni_socket: PathBuf,
    sockets: Mutex<Option<(Instant, Rc<HashSet<SocketId>>)>>,
}

// === impl Ztunnels ===

impl Ztunnels {
    /// This process, and whoever listens at `cni_socket`.
    pub fn new(cni_socket: PathBuf) -> Self {
        Self {
            cni_socket,
            sockets: Mutex::default(),
        }
    }

    /// Returns once ztunnels have more than `ours` sockets that listen in a namespace where captured connections are led.
    /// Other listeners there are reported, as those of `pod`, and do not count.
    pub(super) async fn succeeded(&self, netns: &PodNetns, ours: usize, pod: &str) {
        let mut mismatches = 0;
        loop {
            let found = netns.call(|| listening(ports::OUTBOUND)).await;
            if let Ok(Ok(found)) = found
                && found.len() > ours
            {
                let trusted = self.sockets().await;
                let of_ztunnels = found.intersection(&trusted).count();
                if of_ztunnels > ours {
                    return;
                }
                mismatches += 1;
                // Our look at the ztunnels' sockets may be older than the successor's.
                if mismatches == CERTAIN_AFTER {
                    let strangers = found.len() - of_ztunnels;
                    tracing::warn!(
                        pod,
                        strangers,
                        "not only ztunnel listens where the pod's connections are led; that is no successor"
                    );
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The sockets of all ztunnels.
    async fn sockets(&self) -> Rc<HashSet<SocketId>> {
        let mut sockets = self.sockets.lock().await;
        if let Some((at, sockets)) = &*sockets
            && at.elapsed() < LOOK_AGE
        {
            return sockets.clone();
        }
        let mut processes = vec![PathBuf::from("/proc/self")];
        processes.extend(listener_of(&self.cni_socket).await);
        let look = move || processes.iter().flat_map(|of| held_by(of)).collect();
        let found: Rc<HashSet<SocketId>> = Rc::new(spawn_blocking(look).await.unwrap_or_default());
        *sockets = Some((Instant::now(), found.clone()));
        found
    }
}

/// The process that listens at a Unix socket, as the kernel noted it when it began to.
async fn listener_of(socket: &Path) -> Option<PathBuf> {
    let stream = timeout(LOOK_AGE, UnixStream::connect(socket)).await.ok()?;
    let pid = stream.ok()?.peer_cred().ok()?.pid()?;
    Some(Path::new("/proc").join(pid.to_string()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn knows_who_answers_the_plugin_and_what_that_has_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cni.sock");
        assert_eq!(listener_of(&path).await, None);
        let _server = tokio::net::UnixListener::bind(&path).unwrap();
        let ours = Path::new("/proc").join(std::process::id().to_string());
        assert_eq!(listener_of(&path).await, Some(ours));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listening(listener.local_addr().unwrap().port()).unwrap();
        let sockets = Ztunnels::new(path).sockets().await;
        assert!(found.len() == 1 && found.is_subset(&sockets));
    }
}
