//! A waypoint: requests go by what they say.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DynamicObject};

use super::stage::Stage;
use super::story::Story;
use crate::apps::{dynamic, label};
use crate::probe::{self, has_condition, wait_until};

/// The waypoint and the route, as a user writes them.
pub(super) const YAML: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
    - matches: [{headers: [{name: x-user, value: beta}]}]
      backendRefs: [{name: echo-v2, port: 80}]
    - backendRefs:
        - {name: echo-v1, port: 80, weight: 90}
        - {name: echo-v2, port: 80, weight: 10}
";
/// The label that sends a service's traffic through a waypoint.
pub(super) const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Until the waypoint serves.
const SOON: Duration = Duration::from_secs(30);
/// Requests of a beta user.
const BETA: u32 = 20;
/// Requests of others, and how many of them v2 may get: 10 %, and five standard deviations either side.
const OTHERS: u32 = 300;
const TENTH: std::ops::RangeInclusive<usize> = 5..=56;

pub(super) async fn tell(story: &mut Story, stage: &mut Stage) -> Result<()> {
    stage.demo.apply(YAML).await?;
    let services = stage.demo.api::<Service>();
    label(&services, "echo", USE_WAYPOINT, Some("waypoint")).await?;
    let (client, space) = (stage.demo.client(), stage.demo.name());
    let gateways: Api<DynamicObject> = dynamic(
        client,
        "gateway.networking.k8s.io/v1",
        "Gateway",
        Some(space),
    )
    .await?;
    wait_until(gateways, "waypoint", "programmed", SOON, |gateway| {
        has_condition(gateway, "Programmed", "True")
    })
    .await?;
    wait_until(services, "echo", "bound to the waypoint", SOON, |echo| {
        has_condition(echo, "istio.io/WaypointBound", "True")
    })
    .await?;
    let (v1, v2) = probe::eventually("`x-user: beta` goes to v2", SOON, async || {
        let (v1, v2) = counts(stage, BETA, &["-H", "x-user:beta"]).await?;
        ensure!(v1 == 0, "v1 got {v1} of {BETA}");
        Ok((v1, v2))
    })
    .await?;
    story.line(format!(
        "{BETA} requests with `x-user: beta`: v1 {v1}, v2 {v2}"
    ));
    let (v1, v2) = counts(stage, OTHERS, &[]).await?;
    ensure!(
        TENTH.contains(&v2),
        "of {OTHERS} requests to be split 90/10, v1 got {v1} and v2 {v2}"
    );
    story.line(format!(
        "{OTHERS} requests without, to be split 90/10: v1 {v1}, v2 {v2}"
    ));
    stage
        .hold("with the waypoint", "tcp://echo-v2:9090")
        .await?;
    let held = stage.held().await? - 1;
    story.line(format!(
        "connections opened before: {held} of {held} live; one more is opened"
    ));
    Ok(())
}

/// How many requests to the service each version answered; fails unless all are answered well.
async fn counts(stage: &Stage, count: u32, more: &[&str]) -> Result<(usize, usize)> {
    let (count_flag, asked) = (format!("--count={count}"), usize::try_from(count)?);
    let flags = [count_flag.as_str(), "--timeout=30s", "http://echo/"];
    let answers = stage.client.ask(&[more, &flags].concat()).await?;
    let of = |version| {
        let answered = answers.iter().filter(|answer| answer.status == 200);
        answered
            .filter(|answer| answer.field("ServiceVersion") == Some(version))
            .count()
    };
    let (v1, v2) = (of("v1"), of("v2"));
    let statuses: std::collections::BTreeSet<u16> =
        answers.iter().map(|answer| answer.status).collect();
    ensure!(
        v1 + v2 == asked,
        "{asked} asked, v1 answered {v1}, v2 {v2}; statuses {statuses:?}"
    );
    Ok((v1, v2))
}
