//! Out of the mesh: everything as it was, and nobody's connection broken.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Service;

use super::enrol::IN_MESH;
use super::stage::{DATAPLANE_MODE, Stage};
use super::story::Story;
use super::waypoint::{USE_WAYPOINT, YAML};
use super::wire;
use crate::apps::{delete_yaml, label};
use crate::probe::conditions;

/// Until every pod is out of the mesh.
const SOON: Duration = Duration::from_secs(20);

pub(super) async fn tell(story: &mut Story, stage: &mut Stage) -> Result<()> {
    let begun = Instant::now();
    let services = stage.demo.api::<Service>();
    label(&services, "echo", USE_WAYPOINT, None).await?;
    delete_yaml(stage.demo.client(), Some(stage.demo.name()), YAML).await?;
    stage.demo.label(DATAPLANE_MODE, None).await?;
    let waits = stage.members().map(|pod| {
        pod.wait("out of the mesh", SOON, |pod| {
            conditions(pod).iter().all(|[kind, ..]| kind != IN_MESH)
        })
    });
    let pods = try_join_all(waits).await?.len();
    let took = begun.elapsed().as_secs_f32();
    let seen = wire::readable(stage).await?;
    story.line(format!(
        "all {pods} pods are out after {took:.1} s; `x-secret: {}` is readable again, in {} packets",
        seen.marker, seen.readable
    ));
    let same = stage.untouched().await?;
    for (since, summary) in stage.release().await? {
        let (seconds, rounds) = (summary.ran_ms / 1000, summary.rounds);
        let slowest = summary.slowest_ms;
        story.line(format!(
            "connection opened {since}: {rounds} round trips in {seconds} s, broken: no, slowest {slowest:.0} ms"
        ));
    }
    story.line(format!(
        "{same} of {same} containers are those of the beginning, never restarted"
    ));
    Ok(())
}
