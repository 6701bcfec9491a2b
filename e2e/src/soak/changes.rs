//! Pods, labels and routes that change all the time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{GATEWAY_API, MODE, Scene};
use crate::apps::{apply_objects, label};
use crate::probe::has_condition;

/// Changes per second.
pub(super) const RATE: u32 = 5;
/// The pod that goes into the mesh and out of it; nobody talks to it.
pub(super) const BYSTANDER: &str = "bystander";
/// The Service behind the waypoint.
pub(super) const ROUTED: &str = "routed";
/// Failed changes told one by one; the rest are only counted.
const TOLD: usize = 5;

/// What was changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// So many routes, labels, Services and pods together.
    pub made: usize,
    /// Pods among them, deleted to be replaced.
    pub pods: usize,
    /// What could not be changed.
    pub failed: usize,
    /// Why, the first ones.
    pub errors: Vec<String>,
}

/// Changes something at the rate, one thing after another, until the storm is over.
pub(super) async fn make(scene: &Scene<'_>, over: &CancellationToken) -> Changes {
    let mut changes = Changes::default();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RATE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0.. {
        tokio::select! {
            () = over.cancelled() => break,
            _ = pace.tick() => {}
        }
        match one(scene, number, &mut changes).await {
            Ok(()) => changes.made += 1,
            Err(error) => {
                changes.failed += 1;
                if changes.errors.len() < TOLD {
                    changes.errors.push(format!("{error:#}"));
                }
            }
        }
    }
    changes
}

async fn one(scene: &Scene<'_>, number: u32, changes: &mut Changes) -> Result<()> {
    let ns = scene.ns;
    let turn = number / RATE;
    match number % RATE {
        0 | 2 => apply_objects(ns.client(), Some(ns.name()), [route(number)])
            .await
            .map(drop),
        1 => replace_one(scene, changes).await,
        3 => {
            let mode = turn.is_multiple_of(2).then_some("none");
            label(&ns.api::<Pod>(), BYSTANDER, MODE, mode).await
        }
        _ => {
            let port = json!([{"port": 80 + turn % 7, "name": "http", "appProtocol": "http"}]);
            let other = json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "other", "labels": {"turn": turn.to_string()}},
                "spec": {"selector": {"app": "web"}, "ports": port}});
            let api = ns.api::<Service>();
            let how = PatchParams::apply("ambit-soak").force();
            api.patch("other", &how, &Patch::Apply(&other)).await?;
            Ok(())
        }
    }
}

/// Deletes a pod that comes and goes, if another of its kind serves; else changes a label of one.
async fn replace_one(scene: &Scene<'_>, changes: &mut Changes) -> Result<()> {
    let mut serving = Vec::new();
    let pods = scene.ns.pods("app=web,version=v3").await?;
    for pod in &pods {
        // One that has gone meanwhile serves nobody.
        let serves = pod
            .get()
            .await
            .is_ok_and(|pod| has_condition(&pod, "Ready", "True"));
        serving.extend(serves.then_some(pod));
    }
    if serving.len() >= 2 {
        let api = serving[0].api();
        api.delete(serving[0].name(), &DeleteParams::default())
            .await?;
        changes.pods += 1;
        return Ok(());
    }
    let pod = pods.first().context("no pod that comes and goes")?;
    let turn = changes.made.to_string();
    label(pod.api(), pod.name(), "turn", Some(&turn)).await
}

/// Shares that are never the same twice in a row.
pub(super) fn route(number: u32) -> Value {
    let backend = |version: &str, weight: u32| json!({"name": format!("web-{version}"), "port": 80, "weight": weight});
    let weight = 1 + number % 97;
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": {"name": "split"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": ROUTED, "port": 80}],
            "rules": [{"backendRefs":
                [backend("v1", weight), backend("v2", 100 - weight), backend("v3", 50)]}],
        },
    })
}
