//! The mesh's ports in a pod's namespace: bound, or found to be somebody else's.

use std::{collections::HashSet, io, os::fd::AsFd};

use mesh::ports;
use nix::sys::stat::fstat;
use tokio::task::spawn_blocking;

use super::{Task, error::EnrolError};
use crate::{
    capture::{self, Families},
    netns::PodNetns,
    pods::listeners::{self, SocketId},
    serve::Listeners,
    socket,
};

const PORTS: [u16; 3] = [ports::OUTBOUND, ports::INBOUND, hbone::PORT];

/// What listens for us in a pod's namespace.
pub(super) struct Bound {
    pub(super) families: Families,
    /// One for each core.
    pub(super) listeners: Vec<Listeners>,
    /// The same, as the kernel numbers them.
    pub(super) sockets: HashSet<SocketId>,
    /// Hears of changes to the namespace's rules and routes.
    pub(super) changes: Option<capture::Watch>,
}

impl Task {
    /// Listeners for each core, on ports that no process of the pod has. A pod that is redirected already was in the mesh
    /// before: it stays, whoever shares its ports ([`Self::watch_for_intruder`]), and its connections are served at once.
    pub(super) async fn listen(&self, netns: &PodNetns) -> Result<Bound, EnrolError> {
        let cores = self.node.workers.count();
        let look = move || {
            let redirected = capture::is_installed().unwrap_or(false);
            let changes = capture::Watch::begin().inspect_err(|error| {
                tracing::warn!(%error, "changes to a pod's rules are not told: they are read every few seconds");
            });
            (capture::families(), bind(cores), redirected, changes.ok())
        };
        let (families, listeners, redirected, changes) =
            netns.call(look).await.map_err(EnrolError::Namespace)?;
        let sockets = listeners
            .as_ref()
            .map_or(HashSet::new(), |of| of.iter().flat_map(ids).collect());
        let stays = redirected && listeners.is_ok();
        if !stays && let Some(taken) = self.taken(netns, &sockets).await {
            return Err(taken);
        }
        Ok(Bound {
            families,
            listeners: listeners.map_err(EnrolError::Listen)?,
            sockets,
            changes,
        })
    }

    /// Says, once, that a process of a pod in the mesh listens beside us. It stays in the mesh: who can do that could as
    /// well break its connections by other means, and its peers must not be made to speak in the clear.
    pub(super) async fn watch_for_intruder(&mut self) {
        let Some(up) = &self.up else { return };
        let netns = up.serving.netns.clone();
        let found = self.taken(&netns, &up.sockets).await;
        let found = found.map(|intruder| intruder.to_string());
        if found != self.intruder
            && let Some(intruder) = &found
        {
            tracing::warn!(
                pod = self.name,
                intruder,
                "connections that are meant for ztunnel go to a pod's own process"
            );
        }
        self.intruder = found;
    }

    /// A process of the pod itself that listens on one of the ports: either there is no room for us, or it has a share of
    /// what is led there. Other sockets than `ours` may also be those of the ztunnel before this one.
    async fn taken(&self, netns: &PodNetns, ours: &HashSet<SocketId>) -> Option<EnrolError> {
        let mut others = netns
            .call(|| listeners::listening_on(PORTS))
            .await
            .ok()?
            .ok()?;
        for (_, sockets) in &mut others {
            sockets.retain(|socket| !ours.contains(socket));
        }
        if others.iter().all(|(_, sockets)| sockets.is_empty()) {
            return None;
        }
        let running = self.node.recent_processes().await.ok()?;
        let (proc, uid) = (self.node.proc.clone(), self.uid.clone());
        let find = move || {
            others.iter().find_map(|(port, sockets)| {
                let holder = listeners::holder(&proc, running.pids(uid.as_str()), sockets)?;
                Some((*port, holder))
            })
        };
        let (port, holder) = spawn_blocking(find).await.ok()??;
        Some(EnrolError::PortTaken { port, holder })
    }
}

fn bind(cores: usize) -> io::Result<Vec<Listeners>> {
    let families = capture::families();
    let one = |_| {
        Ok(Listeners {
            outbound: socket::listen(families, ports::OUTBOUND)?,
            plaintext: socket::listen(families, ports::INBOUND)?,
            tunnel: socket::listen(families, hbone::PORT)?,
        })
    };
    (0..cores).map(one).collect()
}

fn ids(listeners: &Listeners) -> impl Iterator<Item = SocketId> {
    let all = [&listeners.outbound, &listeners.plaintext, &listeners.tunnel];
    all.map(|of| fstat(of.as_fd()).map(|stat| stat.st_ino))
        .into_iter()
        .flatten()
}
