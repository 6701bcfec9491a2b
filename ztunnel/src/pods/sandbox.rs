//! Sandboxes as the container runtime tells of them: which namespaces are believed, and whose end is a pod's.
//!
//! Runtimes repeat the end of a sandbox, some hours late, under the UID of a pod that runs in another one by then.

use std::path::Path;

use mesh::enrolment::PodUid;
use tokio::sync::watch;

use super::{
    Handle, Pods,
    desired::{DesiredState, Status},
    node::Sandbox,
};
use crate::{
    capture::surroundings,
    cni::protocol,
    netns::{NetnsId, PodNetns},
};

/// Whose sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// The one that the pod runs in.
    ThePods,
    /// Another, which the pod had before.
    Another,
    /// Whether it is the pod's, its processes show: it has none any more.
    IfItHasNoProcess,
}

impl Pods {
    /// The container runtime takes a sandbox down. If that is what the pod runs in, the pod's status is returned: once
    /// it is [`Status::Out`], nothing of it is served any more.
    pub(crate) async fn sandbox_gone(
        &self,
        gone: &protocol::Sandbox,
    ) -> Option<watch::Receiver<Status>> {
        let uid = self.uid_of(gone)?;
        let netns = self.open_path(&gone.netns).map(|netns| netns.id()).ok();
        let ends = |handle: &Handle| {
            let container = handle.sandbox.as_ref().map(|of| of.container.as_str());
            whose(container, handle.served_in(), &gone.container_id, netns)
        };
        let first = ends(self.known.borrow().get(&uid)?);
        let dead = match first {
            Ends::Another => return None,
            Ends::ThePods => true,
            Ends::IfItHasNoProcess => match self.node().processes().await {
                Ok(running) => !running.runs(uid.as_str()),
                Err(error) => {
                    tracing::warn!(%error, %uid, "cannot tell whether a pod lives whose sandbox is said to be gone");
                    false
                }
            },
        };
        let mut known = self.known.borrow_mut();
        let handle = known.get_mut(&uid)?;
        // Meanwhile it may have got another.
        if !dead || ends(handle) != first {
            return None;
        }
        handle.let_go();
        Some(handle.status.clone())
    }

    /// The namespace of a new sandbox, as far as it is what it is said to be: not the host's, and with the
    /// addresses that it was given.
    pub(crate) async fn open(&self, sandbox: &protocol::Sandbox) -> Result<Sandbox, String> {
        let path = sandbox.netns.display();
        let netns = self
            .open_path(&sandbox.netns)
            .map_err(|e| format!("cannot open network namespace {path}: {e}"))?;
        let host = PodNetns::open(self.node().proc.join("1/ns/net"));
        if host.is_ok_and(|host| host.id() == netns.id()) {
            return Err(format!("network namespace {path} is the host's own"));
        }
        let found = netns
            .call(surroundings::own_addresses)
            .await
            .and_then(|found| found)
            .map_err(|e| format!("cannot enter network namespace {path}: {e}"))?;
        let given = sandbox.ips.iter().filter(|ip| found.contains(ip));
        let ips: Vec<_> = given.copied().collect();
        if ips.is_empty() && !sandbox.ips.is_empty() {
            let expected = &sandbox.ips;
            return Err(format!(
                "network namespace {path} has none of the pod's addresses {expected:?}, but {found:?}"
            ));
        }
        Ok(Sandbox {
            netns,
            ips,
            container: sandbox.container_id.clone(),
        })
    }

    /// A namespace by its path as the container runtime means it: as the node's first process sees it.
    fn open_path(&self, path: &Path) -> std::io::Result<PodNetns> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let on_node = self.node().proc.join("1/root").join(relative);
        PodNetns::open(on_node).or_else(|_| PodNetns::open(path))
    }

    /// The pod of a sandbox; not every runtime tells its UID.
    fn uid_of(&self, sandbox: &protocol::Sandbox) -> Option<PodUid> {
        if let Some(uid) = &sandbox.uid {
            return Some(PodUid::from(uid.as_str()));
        }
        let known = self.known.borrow();
        let mut of = known.iter().filter(|(_, handle)| {
            let here = handle.sandbox.as_ref();
            here.is_some_and(|here| here.container == sandbox.container_id)
        });
        of.next().map(|(uid, _)| uid.clone())
    }
}

// === impl Handle ===

impl Handle {
    /// Where the pod is captured.
    fn served_in(&self) -> Option<NetnsId> {
        match *self.status.borrow() {
            Status::Captured(netns) => Some(netns),
            _ => None,
        }
    }

    /// The pod's sandbox is no more; it may get another.
    fn let_go(&mut self) {
        self.sandbox = None;
        self.sandbox_gone = true;
        if self.unmentioned.is_some() {
            self.remove();
        } else {
            self.desired.send_replace(DesiredState::SandboxGone);
        }
    }
}

/// Whose the sandbox is that ends, in the namespace `gone_in` if that can still be opened: a pod's of which we know the
/// sandbox from its start, or only, found while it ran, the namespace that it is served in.
fn whose(
    container: Option<&str>,
    served_in: Option<NetnsId>,
    gone: &str,
    gone_in: Option<NetnsId>,
) -> Ends {
    let same = match (container, served_in, gone_in) {
        (Some(container), ..) => container == gone,
        (None, Some(served), Some(gone)) => served == gone,
        (None, ..) => return Ends::IfItHasNoProcess,
    };
    if same { Ends::ThePods } else { Ends::Another }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_its_own_sandbox_is_the_pods() {
        let here = PodNetns::current().unwrap().id();
        let there = {
            let thread = std::thread::spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
                PodNetns::current().ok()
            });
            thread.join().unwrap()
        };
        // From its start: the container says it, whatever the path leads to by now.
        for gone_in in [None, Some(here)] {
            assert_eq!(whose(Some("a"), Some(here), "a", gone_in), Ends::ThePods);
            assert_eq!(whose(Some("a"), Some(here), "b", gone_in), Ends::Another);
        }
        // Found while it ran.
        assert_eq!(whose(None, Some(here), "a", Some(here)), Ends::ThePods);
        if let Some(there) = there {
            let elsewhere = whose(None, Some(here), "a", Some(there.id()));
            assert_eq!(elsewhere, Ends::Another);
        }
        for (served, gone_in) in [(Some(here), None), (None, Some(here)), (None, None)] {
            assert_eq!(whose(None, served, "a", gone_in), Ends::IfItHasNoProcess);
        }
    }
}
