//! The node's CNI plugin as long as this ztunnel is the node's newest: installed, answered, handed over.
//!
//! During an upgrade two ztunnels live on a node. The newer one takes the socket and the plugin's files; the older
//! one leaves both alone, and takes them back should the newer one die first.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::Duration};

use mesh::process::readiness::{Pending, Readiness};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    net::UnixStream,
    task::{spawn_blocking, spawn_local},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::cni::{
    install::{InstallError, Installed, Installer, Left},
    protocol::{Answer, Request},
    server::Server,
};

/// The plugin in this ztunnel's hands.
pub(crate) struct Plugin {
    installer: Installer,
    /// Cancelled once nothing is answered or installed by us any more.
    released: CancellationToken,
}

/// What the node is told of the plugin: not ready for as long as new pods may start without it.
pub(crate) struct Standing {
    ready: Readiness,
    awaits: Option<Pending>,
    /// How often the plugin was written into the node's configuration.
    written: Counter,
}

/// How often the socket is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long nothing is tried after a failure.
const RETRY: Duration = Duration::from_secs(5);

// === impl Plugin ===

impl Plugin {
    /// Takes the socket, answers there through `answer`, and keeps the plugin installed, until `draining`.
    pub(crate) fn start<A>(
        installer: Installer,
        answer: A,
        standing: Standing,
        draining: CancellationToken,
    ) -> io::Result<Self>
    where
        A: AsyncFn(Request) -> Answer + 'static,
    {
        let server = Server::bind(&installer.socket)?;
        let hold = hold(installer.clone(), server, answer, standing);
        let released = CancellationToken::new();
        let release = released.clone().drop_guard();
        spawn_local(async move {
            tokio::select! {
                () = hold => {}
                () = draining.cancelled() => {}
            }
            drop(release);
        });
        Ok(Self {
            installer,
            released,
        })
    }

    /// Returns once another ztunnel answers the plugin, after draining began.
    pub(crate) fn succeeded(&self) -> impl Future<Output = ()> + use<> {
        let (released, socket) = (self.released.clone(), self.installer.socket.clone());
        async move {
            released.cancelled().await;
            while dead(&socket).await {
                sleep(POLL_INTERVAL).await;
            }
        }
    }

    /// Leaves the node as it was without us, after draining began.
    pub(crate) async fn remove(self) {
        // Or it would be put back.
        self.released.cancelled().await;
        match spawn_blocking(move || self.installer.uninstall()).await {
            Ok(Ok(Left::Nothing)) => tracing::info!("the CNI plugin is removed"),
            Ok(Ok(Left::Program)) => {
                tracing::info!(
                    "the CNI plugin is removed, but for its program: pods that started with it end with it"
                );
            }
            Ok(Err(error)) => tracing::error!(%error, "cannot remove the CNI plugin"),
            Err(error) => tracing::error!(%error, "cannot remove the CNI plugin"),
        }
    }
}

// === impl Standing ===

impl Standing {
    /// Not ready yet.
    pub(crate) fn new(ready: &Readiness, written: Counter) -> Self {
        let mut standing = Self {
            ready: ready.clone(),
            awaits: None,
            written,
        };
        standing.set(false);
        standing
    }

    fn set(&mut self, ready: bool) {
        if ready {
            self.awaits = None;
        } else if self.awaits.is_none() {
            self.awaits = Some(self.ready.wait_for("cni plugin"));
        }
    }

    fn hear(&mut self, outcome: Result<&Installed, &InstallError>, installer: &Installer) {
        match outcome {
            Ok(Installed::Ready { config, changed }) => {
                if *changed || self.awaits.is_some() {
                    tracing::info!(config = %config.display(), "the CNI plugin is installed");
                }
                if *changed {
                    self.written.inc();
                }
            }
            Ok(Installed::Contested {
                config,
                times,
                pause,
            }) => {
                self.written.inc();
                tracing::warn!(config = %config.display(), times, next_in = ?pause, "another program takes the CNI plugin out of the node's configuration again and again; in between new pods start outside the mesh");
            }
            Ok(Installed::Waiting) => {
                tracing::warn!(dir = %installer.conf_dir.display(), "waiting for the node's CNI configuration; where the node keeps it elsewhere, the manifest has to say so");
            }
            Err(error) => tracing::error!(%error, "the CNI plugin is not installed"),
        }
        match outcome {
            Ok(Installed::Ready { .. }) => self.set(true),
            // Between two writes the plugin is in force. Unready for as long as somebody insists, this node would keep
            // every other from its upgrade.
            Ok(Installed::Contested { .. }) => {}
            _ => self.set(false),
        }
    }
}

async fn hold<A>(installer: Installer, mut server: Server, answer: A, mut standing: Standing)
where
    A: AsyncFn(Request) -> Answer,
{
    loop {
        // What tells our socket from another's at the same path.
        let ours = inode(&installer.socket);
        let mut answering = std::pin::pin!(server.run(&answer));
        let ended = tokio::select! {
            ended = &mut answering => Some(ended),
            () = keep_installed(&installer, &mut standing) => None,
            () = taken(&installer.socket, ours) => None,
        };
        match ended {
            Some(Err(error)) => tracing::error!(%error, "the CNI plugin is not answered"),
            Some(Ok(())) => {}
            None => {
                tracing::info!("the CNI plugin's socket is another ztunnel's now");
                // Who asked us before still gets an answer.
                tokio::select! {
                    _ = &mut answering => {}
                    () = abandoned(&installer.socket) => {}
                }
                tracing::info!("nobody listens there any more");
            }
        }
        server = loop {
            match Server::bind(&installer.socket) {
                Ok(server) => break server,
                Err(error) => {
                    tracing::error!(%error, "cannot listen for the CNI plugin");
                    sleep(RETRY).await;
                }
            }
        };
    }
}

async fn keep_installed(installer: &Installer, standing: &mut Standing) {
    loop {
        let kept = installer.keep(|outcome| standing.hear(outcome, installer));
        let Err::<_, InstallError>(error) = kept.await;
        standing.set(false);
        tracing::error!(%error, "the CNI plugin is not watched; trying again");
        sleep(RETRY).await;
    }
}

/// Returns once the socket at `path` is not ours.
async fn taken(path: &Path, ours: Option<u64>) {
    while inode(path) == ours {
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns once nobody listens at `path` any more.
async fn abandoned(path: &Path) {
    while !dead(path).await {
        sleep(POLL_INTERVAL).await;
    }
}

async fn dead(path: &Path) -> bool {
    UnixStream::connect(path).await.is_err_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        )
    })
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|m| m.ino())
}

#[cfg(test)]
mod tests {
    use tokio::{task::LocalSet, time::timeout};

    use std::path::PathBuf;

    use super::*;
    use crate::cni::protocol::Sandbox;

    struct Tenant {
        plugin: Plugin,
        end: CancellationToken,
    }

    fn tenant(dir: &Path, name: &'static str) -> Tenant {
        let (conf, bin) = (dir.join("conf"), dir.join("bin"));
        let installer = Installer {
            socket: dir.join("cni.sock"),
            enrolled: dir.join("namespaces.json"),
            ..Installer::new(conf, bin)
        };
        let end = CancellationToken::new();
        let answer = async move |_| Answer::Hold {
            reason: name.into(),
        };
        let standing = Standing::new(&Readiness::new(), Counter::default());
        let plugin = Plugin::start(installer, answer, standing, end.clone()).unwrap();
        Tenant { plugin, end }
    }

    async fn answered_by(dir: &Path) -> Option<String> {
        let socket: PathBuf = dir.join("cni.sock");
        let sandbox = Sandbox {
            uid: None,
            name: "a".into(),
            namespace: "b".into(),
            container_id: "c".into(),
            netns: "".into(),
            ips: vec![],
        };
        let ask = move || {
            crate::cni::protocol::ask(&socket, &Request::Add(sandbox), Duration::from_secs(5))
        };
        match spawn_blocking(ask).await.unwrap() {
            Ok(Answer::Hold { reason }) => Some(reason),
            _ => None,
        }
    }

    #[tokio::test]
    async fn the_one_that_leaves_sees_its_successor() {
        let test = async {
            let dir = tempfile::tempdir().unwrap();
            let old = tenant(dir.path(), "old");
            let succeeded = spawn_local(old.plugin.succeeded());
            old.end.cancel();
            old.plugin.released.cancelled().await;
            assert_eq!(answered_by(dir.path()).await, None);
            assert!(!succeeded.is_finished());
            let new = tenant(dir.path(), "new");
            succeeded.await.unwrap();
            new.end.cancel();
        };
        let local = LocalSet::new();
        local
            .run_until(timeout(Duration::from_secs(20), test))
            .await
            .unwrap();
    }

    #[test]
    fn a_node_without_its_plugin_is_not_ready() {
        let installer = Installer::new("/conf", "/bin");
        let (ready, written) = (Readiness::new(), Counter::default());
        let mut standing = Standing::new(&ready, written.clone());
        assert_eq!(ready.pending(), ["cni plugin"]);
        let in_force = |changed| Installed::Ready {
            config: "/conf/10-pods.conflist".into(),
            changed,
        };
        let contested = Installed::Contested {
            config: "/conf/10-pods.conflist".into(),
            times: 6,
            pause: RETRY,
        };
        let failed = InstallError::Contended("/conf".into());
        // Before it was ever in force, a fight does not make it ready.
        standing.hear(Ok(&contested), &installer);
        assert_eq!(ready.pending(), ["cni plugin"]);
        let bad: [Result<&Installed, &InstallError>; 2] = [Ok(&Installed::Waiting), Err(&failed)];
        for bad in bad {
            standing.hear(Ok(&in_force(true)), &installer);
            assert!(ready.pending().is_empty());
            for _ in 0..2 {
                standing.hear(bad, &installer);
                assert_eq!(ready.pending(), ["cni plugin"], "{bad:?}");
            }
        }
        standing.hear(Ok(&in_force(false)), &installer);
        assert!(ready.pending().is_empty());
        // Nor does one that begins later keep the other nodes from their upgrade.
        standing.hear(Ok(&contested), &installer);
        assert!(ready.pending().is_empty());
        assert_eq!(written.get(), 4);
    }

    #[tokio::test]
    async fn the_newer_one_answers_and_the_older_one_takes_over_when_it_dies() {
        let test = async {
            let dir = tempfile::tempdir().unwrap();
            let old = tenant(dir.path(), "old");
            assert_eq!(answered_by(dir.path()).await.as_deref(), Some("old"));
            let new = tenant(dir.path(), "new");
            assert_eq!(answered_by(dir.path()).await.as_deref(), Some("new"));
            new.end.cancel();
            new.plugin.released.cancelled().await;
            while answered_by(dir.path()).await.as_deref() != Some("old") {
                sleep(POLL_INTERVAL).await;
            }
            old.end.cancel();
        };
        let local = LocalSet::new();
        local
            .run_until(timeout(Duration::from_secs(20), test))
            .await
            .unwrap();
    }
}
