//! Watches pods for the moment when one that was in the mesh no longer is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{changes, in_mesh};
use crate::apps::Namespace;

/// Pods that leave the mesh without being deleted are noticed by it.
pub(super) struct Watch {
    over: DropGuard,
    task: JoinHandle<Seen>,
}

/// What was seen of the pods.
#[derive(Default)]
pub(super) struct Seen {
    /// Those that left.
    pub(super) left: Vec<String>,
    /// Who has, or had last, each address.
    pub(super) by_address: BTreeMap<IpAddr, Occupant>,
}

/// The pod at an address.
#[derive(Default)]
pub(super) struct Occupant {
    pub(super) name: String,
    /// When it was first seen to be in the mesh.
    pub(super) inside: Option<Instant>,
    /// What its conditions said last.
    pub(super) said: String,
}

impl Watch {
    /// Watches every pod of the namespace but the one that is meant to leave.
    pub(super) fn begin(ns: &Namespace) -> Self {
        let over = CancellationToken::new();
        let task = tokio::spawn(follow(ns.api(), over.clone()));
        Self {
            over: over.drop_guard(),
            task,
        }
    }

    /// Ends the watch.
    pub(super) async fn end(self) -> Result<Seen> {
        drop(self.over);
        self.task.await.context("watching pods")
    }
}

async fn follow(pods: Api<Pod>, over: CancellationToken) -> Seen {
    let (mut inside, mut seen) = (BTreeSet::new(), Seen::default());
    let changes = watcher(pods, watcher::Config::default()).default_backoff();
    let mut pods = changes.applied_objects().boxed();
    loop {
        let pod = tokio::select! {
            pod = pods.try_next() => pod,
            () = over.cancelled() => return seen,
        };
        // A watch that failed begins anew.
        let Ok(Some(pod)) = pod else { continue };
        let name = pod.name_any();
        seen.note(&pod, &name);
        if pod.metadata.deletion_timestamp.is_some() || name == changes::BYSTANDER {
            continue;
        }
        if in_mesh(&pod) {
            inside.insert(name);
        } else if inside.remove(&name) {
            seen.left
                .push(format!("{name}: {:?}", crate::probe::conditions(&pod)));
        }
    }
}

impl Seen {
    fn note(&mut self, pod: &Pod, name: &str) {
        let ips = pod.status.iter().flat_map(|status| &status.pod_ips);
        for ip in ips.flatten().filter_map(|ip| ip.ip.parse().ok()) {
            let known = self.by_address.entry(ip).or_default();
            // Addresses come again: the newest pod has it.
            if known.name != name {
                *known = Occupant {
                    name: name.to_owned(),
                    ..Occupant::default()
                };
            }
            if known.inside.is_none() && in_mesh(pod) {
                known.inside = Some(Instant::now());
            }
            known.said = format!("{:?}", crate::probe::conditions(pod));
        }
    }
}
