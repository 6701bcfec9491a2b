//! Watches pods for the moment when one that was in the mesh no longer is.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{changes, in_mesh};
use crate::apps::Namespace;

/// Pods that leave the mesh without being deleted are noticed by it.
pub(super) struct Watch {
    over: DropGuard,
    task: JoinHandle<Vec<String>>,
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

    /// Ends the watch; who left.
    pub(super) async fn end(self) -> Result<Vec<String>> {
        drop(self.over);
        self.task.await.context("watching pods")
    }
}

async fn follow(pods: Api<Pod>, over: CancellationToken) -> Vec<String> {
    let (mut inside, mut left) = (BTreeSet::new(), Vec::new());
    let changes = watcher(pods, watcher::Config::default()).default_backoff();
    let mut pods = changes.applied_objects().boxed();
    loop {
        let pod = tokio::select! {
            pod = pods.try_next() => pod,
            () = over.cancelled() => return left,
        };
        // A watch that failed begins anew.
        let Ok(Some(pod)) = pod else { continue };
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() || name == changes::BYSTANDER {
            continue;
        }
        if in_mesh(&pod) {
            inside.insert(name);
        } else if inside.remove(&name) {
            left.push(format!("{name}: {:?}", crate::probe::conditions(&pod)));
        }
    }
}
