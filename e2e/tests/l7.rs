//! Waypoints: routes take effect and change live, a waypoint may die or go, and no request is lost.

mod shop;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{Namespace, dynamic, label};
use e2e::echo::LoadSummary;
use e2e::probe::{PodRef, Run, eventually, has_condition, wait_gone, wait_until};
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, DynamicObject};

use shop::{AMBIENT, GATEWAY_API, SOON, START, WAYPOINT_PODS, bind, through_waypoint};

/// Services that are made and named one after another.
const NEW_BACKENDS: u32 = 100;

/// Header `x-user: beta` goes to v2, the rest by these weights.
fn route(v1: u32, v2: u32) -> String {
    format!(
        r#"
apiVersion: {GATEWAY_API}
kind: HTTPRoute
metadata: {{name: split}}
spec:
  parentRefs: [{{group: "", kind: Service, name: web, port: 80}}]
  rules:
  - matches: [{{headers: [{{name: x-user, value: beta}}]}}]
    backendRefs: [{{name: web-v2, port: 80}}]
  - backendRefs: [{{name: web-v1, port: 80, weight: {v1}}}, {{name: web-v2, port: 80, weight: {v2}}}]
"#
    )
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn routes_take_effect_and_change_live() -> Result<()> {
    in_the_shop(async |ns, client| {
        let load = client.load("http://web/", 50).await?;
        bind(ns, client).await?;
        ns.apply(&route(90, 10)).await?;
        resolved(ns).await?;
        let share = eventually("90 to 10", SOON, async || {
            share_of_v2(client, "http://web/", 90, 10).await
        });
        println!("90/10: {:.1} % went to v2", share.await?);
        beta_goes_to_v2(client).await?;

        ns.apply(&route(10, 90)).await?;
        let share = eventually("10 to 90", SOON, async || {
            share_of_v2(client, "http://web/", 10, 90).await
        });
        println!("10/90: {:.1} % went to v2", share.await?);
        beta_goes_to_v2(client).await?;

        let routes = dynamic(ns.client(), GATEWAY_API, "HTTPRoute", Some(ns.name())).await?;
        routes.delete("split", &DeleteParams::default()).await?;
        eventually("no route, both versions alike", SOON, async || {
            share_of_v2(client, "http://web/", 50, 50).await?;
            let to = versions(
                client,
                &["http://web/", "-H", "x-user: beta", "--count=100"],
            )
            .await?;
            ensure!(to.0 > 10, "of 100 {} went to v1", to.0);
            Ok(())
        })
        .await?;
        unharmed("routes that came, changed and went", load).await
    })
    .await
}

/// What is named comes before what names it: no request finds a backend that its waypoint does not know yet.
#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_hundred_new_backends_get_their_share_without_an_error() -> Result<()> {
    in_the_shop(async |ns, client| {
        bind(ns, client).await?;
        ns.apply(&route(100, 0)).await?;
        resolved(ns).await?;
        let load = client.load("http://web/", 50).await?;
        for number in 1..=NEW_BACKENDS {
            ns.apply(&new_backend(number)).await?;
        }
        // The last one has its share, so all before it had.
        let route = |object: &DynamicObject| {
            let generation = object.metadata.generation;
            let of = |one: &serde_json::Value| one["observedGeneration"].as_i64();
            let told = object.data["status"]["parents"][0]["conditions"].as_array();
            told.is_some_and(|all| !all.is_empty() && all.iter().all(|one| of(one) == generation))
        };
        let routes = dynamic(ns.client(), GATEWAY_API, "HTTPRoute", Some(ns.name())).await?;
        wait_until(routes, "split", "judged as it is now", SOON, route).await?;
        let share = eventually("10 percent to the newest", SOON, async || {
            share_of_v2(client, "http://web/", 90, 10).await
        });
        println!("the newest backend: {:.1} %", share.await?);
        unharmed("a hundred new backends", load).await
    })
    .await
}

/// A Service that was not there before, and at once a tenth of the requests for it.
fn new_backend(number: u32) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: new-{number}}}
spec:
  selector: {{app: web, version: v2}}
  ports: [{{port: 80, targetPort: 8080, appProtocol: http}}]
---
apiVersion: {GATEWAY_API}
kind: HTTPRoute
metadata: {{name: split}}
spec:
  parentRefs: [{{group: "", kind: Service, name: web, port: 80}}]
  rules:
  - backendRefs: [{{name: web-v1, port: 80, weight: 90}}, {{name: new-{number}, port: 80, weight: 10}}]
"#
    )
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_waypoint_that_dies_is_replaced_without_a_lost_request() -> Result<()> {
    in_the_shop(async |ns, client| {
        bind(ns, client).await?;
        let old = ns.pods(WAYPOINT_PODS).await?.pop().context("no waypoint")?;
        let load = client.load("http://web/", 50).await?;
        old.api()
            .delete(old.name(), &DeleteParams::default())
            .await?;
        wait_gone(old.api().clone(), old.name(), START).await?;
        let new = ns
            .pods(WAYPOINT_PODS)
            .await?
            .pop()
            .context("no replacement")?;
        ensure!(new.name() != old.name());
        new.wait_ready(START).await?;
        through_waypoint(&new, client).await?;
        unharmed("a waypoint's end", load).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn unbinding_goes_back_without_a_lost_request() -> Result<()> {
    in_the_shop(async |ns, client| {
        bind(ns, client).await?;
        ns.apply(&route(0, 100)).await?;
        eventually("all to v2", SOON, async || {
            share_of_v2(client, "http://web/", 0, 100).await
        })
        .await?;
        let load = client.load("http://web/", 50).await?;
        label(&ns.api::<Service>(), "web", "istio.io/use-waypoint", None).await?;
        eventually("the route no longer holds", SOON, async || {
            share_of_v2(client, "http://web/", 50, 50).await
        })
        .await?;
        let web = ns.api::<Service>();
        wait_until(web, "web", "unbound", SOON, |service| {
            !has_condition(service, "istio.io/WaypointBound", "True")
        })
        .await?;
        // Nothing goes through it any more, so it may leave.
        let gateways = dynamic(ns.client(), GATEWAY_API, "Gateway", Some(ns.name())).await?;
        let pod = ns.pods(WAYPOINT_PODS).await?.pop().context("no waypoint")?;
        gateways
            .delete("waypoint", &DeleteParams::default())
            .await?;
        wait_gone(pod.api().clone(), pod.name(), START).await?;
        unharmed("unbinding", load).await
    })
    .await
}

/// Two versions of a server and a client, all in the mesh.
async fn in_the_shop(work: impl AsyncFn(&Namespace, &PodRef) -> Result<()>) -> Result<()> {
    let (_cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "waypoint", &[AMBIENT], async |ns| {
        let pod = shop::open(ns).await?;
        work(ns, &pod).await
    })
    .await
}

async fn resolved(ns: &Namespace) -> Result<DynamicObject> {
    let routes = dynamic(ns.client(), GATEWAY_API, "HTTPRoute", Some(ns.name())).await?;
    wait_until(routes, "split", "accepted and resolved", SOON, |route| {
        has_condition(route, "Accepted", "True") && has_condition(route, "ResolvedRefs", "True")
    })
    .await
}

async fn beta_goes_to_v2(client: &PodRef) -> Result<()> {
    let (v1, v2) = versions(
        client,
        &["http://web/", "-H", "x-user: beta", "--count=100"],
    )
    .await?;
    ensure!((v1, v2) == (0, 100), "of the beta user's {v1} went to v1");
    Ok(())
}

/// How many percent of 500 requests go to v2; fails if that is more than 6 points from the weights.
async fn share_of_v2(client: &PodRef, url: &str, v1: u32, v2: u32) -> Result<f64> {
    let counts = versions(client, &[url, "--count=500"]).await?;
    let share = 100.0 * f64::from(counts.1) / f64::from(counts.0 + counts.1);
    let wanted = 100.0 * f64::from(v2) / f64::from(v1 + v2);
    // Without a route nobody weighs anything.
    let tolerance = if v1 == v2 { 25.0 } else { 6.0 };
    ensure!(
        (share - wanted).abs() <= tolerance,
        "{share:.1} % went to v2, not {wanted:.1} %"
    );
    Ok(share)
}

/// How many answers came from v1 and v2.
async fn versions(client: &PodRef, args: &[&str]) -> Result<(u32, u32)> {
    let mut counts = (0, 0);
    for answer in client.ask(args).await? {
        match answer.field("ServiceVersion") {
            Some("v1") => counts.0 += 1,
            Some("v2") => counts.1 += 1,
            _ => anyhow::bail!("from nobody: {answer}"),
        }
    }
    Ok(counts)
}

async fn unharmed(what: &str, load: Run<LoadSummary>) -> Result<()> {
    let load = load.stop().await?;
    println!(
        "{what}: {} requests, {} failed, slowest {:.0} ms",
        load.sent, load.failed, load.latency_max_ms
    );
    ensure!(load.failed == 0 && load.ok == load.sent, "{what}: {load:?}");
    Ok(())
}
