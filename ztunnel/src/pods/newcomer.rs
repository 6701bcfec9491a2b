//! Answers the CNI plugin about a pod that is about to start: it proceeds captured, or not ours, or it waits.

use std::{sync::Arc, time::Duration};

use mesh::enrolment::Enrolment;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Pods, desired::Status};
use crate::{
    cgroup::is_static,
    cni::{
        enrolled::Enrolled,
        protocol::{Answer, Request, Sandbox},
    },
};

/// Shorter than the plugin's patience, so that the reason is ours to give.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a sandbox's end waits for its connections' end; shorter than the plugin's patience.
const LETTING_GO: Duration = Duration::from_secs(1);

/// How long the control plane may take to announce a pod of a mesh namespace: the kubelet often knows it first.
const ANNOUNCEMENT: Duration = Duration::from_secs(10);

/// The same where only the pod's own label could ask for the mesh: every start in such a namespace waits
/// this long if the control plane does not mention the pod.
const UNLIKELY_ANNOUNCEMENT: Duration = Duration::from_secs(2);

impl Pods {
    /// Answers one request of the CNI plugin.
    pub async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Add(sandbox) => {
                let answer = self.add(&sandbox).await;
                if let Answer::Hold { reason } = &answer {
                    tracing::warn!(
                        namespace = sandbox.namespace,
                        pod = sandbox.name,
                        reason,
                        "a new pod waits"
                    );
                }
                answer
            }
            Request::Del(sandbox) => {
                if let Some(mut status) = self.sandbox_gone(&sandbox).await {
                    // The pod's network goes next, and with it every word to those who are connected. The task may
                    // have ended, and all with it.
                    let out = status.wait_for(|status| *status == Status::Out);
                    let _ = timeout(LETTING_GO, out).await;
                }
                Answer::Proceed
            }
        }
    }

    async fn add(&self, sandbox: &Sandbox) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        let Some(enrolment) = self.announced(sandbox).await else {
            return self.unannounced(sandbox);
        };
        if !enrolment.capture {
            return Answer::Proceed;
        }
        match timeout_at(deadline, self.capture(&enrolment, sandbox)).await {
            Ok(Ok(())) => Answer::Proceed,
            Ok(Err(reason)) => Answer::Hold { reason },
            Err(_) => {
                let reason = self.failure(&enrolment.uid);
                let reason = reason.unwrap_or_else(|| "it could not be captured in time".into());
                Answer::Hold { reason }
            }
        }
    }

    /// The control plane's word on the pod, waited for as long as it may still come.
    async fn announced(&self, sandbox: &Sandbox) -> Option<Arc<Enrolment>> {
        let node = self.node();
        let mut changes = node.shared.world.changes()?;
        let (mut connected, mut synced) = (node.connected.clone(), node.synced.clone());
        let start = Instant::now();
        loop {
            let find = |e: &&Arc<Enrolment>| match &sandbox.uid {
                // The kubelet's own name for a static pod is none that the API server gave its mirror.
                Some(uid) if !is_static(uid) => e.uid.as_str() == uid,
                _ => *e.name == *sandbox.name && *e.namespace == *sandbox.namespace,
            };
            let (found, likely) = node.shared.world.look(|world| {
                (
                    world.enrolments().find(find).cloned(),
                    world.enrolled_namespace(&sandbox.namespace),
                )
            });
            if found.is_some() || !*connected.borrow_and_update() {
                return found;
            }
            let likely = likely || !*synced.borrow_and_update();
            let wait = if likely {
                ANNOUNCEMENT
            } else {
                UNLIKELY_ANNOUNCEMENT
            };
            let news = async {
                tokio::select! {
                    _ = changes.enrolments() => {}
                    _ = connected.changed() => {}
                    _ = synced.changed() => {}
                }
            };
            if timeout_at(start + wait, news).await.is_err() {
                return None;
            }
        }
    }

    /// Nothing is known of the pod: it starts only where nothing can ask for the mesh.
    fn unannounced(&self, sandbox: &Sandbox) -> Answer {
        let node = self.node();
        let namespace = &sandbox.namespace;
        let connected = *node.connected.borrow();
        let enrolled = if *node.synced.borrow() {
            node.shared
                .world
                .look(|world| world.enrolled_namespace(namespace))
        } else {
            match Enrolled::read(&self.enrolled_file) {
                Ok(list) => list.enrolled.contains(namespace),
                Err(error) => {
                    return Answer::Hold {
                        reason: format!(
                            "ztunnel has not yet learnt which namespaces are in the mesh ({error}); pod {namespace}/{} is held until it has",
                            sandbox.name
                        ),
                    };
                }
            }
        };
        if !enrolled {
            return Answer::Proceed;
        }
        let why = if connected {
            "has not announced it"
        } else {
            "cannot be reached"
        };
        Answer::Hold {
            reason: format!(
                "pod {namespace}/{} is in mesh namespace {namespace} and the controller {why}; it is held until then",
                sandbox.name
            ),
        }
    }
}
