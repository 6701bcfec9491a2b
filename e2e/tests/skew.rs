//! Programs of the previous build beside today's: proxies under a newer controller, and a controller under newer proxies.

mod shop;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, Namespace};
use e2e::cluster::Cluster;
use e2e::images::previous;
use e2e::mesh::{SYSTEM_NAMESPACE, kubectl, serving, set_image, waypoints_run};
use e2e::probe::{PodRef, eventually, has_condition, wait_available};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;

use shop::{AMBIENT, SOON, START, WAYPOINT_PODS};

/// A pod that is new to a mesh of two versions.
const IN: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "needs the previous build: make skew"]
async fn the_previous_build_serves_with_this_one() -> Result<()> {
    let commit = std::env::var("AMBIT_PREVIOUS").context("which commit? `make skew` says")?;
    let previous = tokio::task::spawn_blocking(move || previous::build(&commit)).await??;
    let (cluster, client) = e2e::mesh::installed().await?;
    previous.bring(&cluster)?;
    let worked = Namespace::within(&client, "skew", &[AMBIENT], async |ns| {
        e2e::mesh::grant(&cluster, &previous)?;
        let asks = shop::open(ns).await?;
        let load = asks.load("http://web/", 50).await?;
        previous_proxies(&cluster, ns, &asks).await?;
        previous_controller(&cluster, ns, &asks).await?;
        let load = load.stop().await?;
        println!(
            "two builds at once: {} requests, {} failed, slowest {:.0} ms",
            load.sent, load.failed, load.latency_max_ms
        );
        ensure!(load.failed == 0 && load.ok == load.sent, "{load:?}");
        Ok(())
    })
    .await;
    // Whatever failed, what comes after this finds today's build.
    e2e::mesh::revoke(&cluster, &previous)?;
    e2e::mesh::install(&cluster).await?;
    worked
}

async fn previous_proxies(cluster: &Cluster, ns: &Namespace, asks: &PodRef) -> Result<()> {
    let tag = previous::TAG;
    waypoints_run(cluster, &format!("ambit/waypoint:{tag}"))?;
    let image = format!("ztunnel=ambit/ztunnel:{tag}");
    set_image(cluster, "daemonset/ztunnel", &image)?;
    serving(ns.client()).await?;
    shop::bind(ns, asks).await?;
    works(ns, asks, "previous proxies", &format!("waypoint:{tag}")).await
}

/// With the proxies of today, which are brought back first.
async fn previous_controller(cluster: &Cluster, ns: &Namespace, asks: &PodRef) -> Result<()> {
    waypoints_run(cluster, "ambit/waypoint:local")?;
    serving(ns.client()).await?;
    eventually("waypoints of today", START, async || {
        all_run(ns, "waypoint:local").await
    })
    .await?;
    wait_available(ns.api::<Deployment>(), "waypoint", START).await?;
    set_image(cluster, "daemonset/ztunnel", "ztunnel=ambit/ztunnel:local")?;
    serving(ns.client()).await?;
    let image = format!("controller=ambit/controller:{}", previous::TAG);
    set_image(cluster, "deployment/ambit-controller", &image)?;
    // There was one of it.
    let scale = ["scale", "deployment/ambit-controller", "--replicas=1"];
    kubectl(cluster, &[&["-n", SYSTEM_NAMESPACE][..], &scale].concat())?;
    serving(ns.client()).await?;
    works(ns, asks, "the previous controller", "waypoint:local").await
}

/// Do all waypoints run this image?
async fn all_run(ns: &Namespace, image: &str) -> Result<()> {
    for pod in ns.pods(WAYPOINT_PODS).await? {
        let spec = pod.get().await?.spec.unwrap_or_default();
        let runs = spec.containers.first().and_then(|one| one.image.clone());
        ensure!(
            runs.as_ref().is_some_and(|runs| runs.ends_with(image)),
            "{} runs {runs:?}",
            pod.name()
        );
    }
    Ok(())
}

/// What is changed takes effect, what is new gets in, and it is the waypoint of that build that serves.
async fn works(ns: &Namespace, asks: &PodRef, what: &str, image: &str) -> Result<()> {
    for version in ["v1", "v2", "v1"] {
        ns.apply(&shop::all_to_version(version)).await?;
        eventually(what, SOON, async || {
            let answers = asks.ask(&["http://web/", "--count=20"]).await?;
            let others = answers
                .iter()
                .any(|one| one.field("ServiceVersion") != Some(version));
            ensure!(!others, "not all from {version}");
            Ok(())
        })
        .await?;
    }
    let name = format!("late-{}", image.replace([':', '/'], "-"));
    let late = ns.run(&EchoClient::new(&name), START).await?;
    late.wait("in the mesh", IN, |pod: &Pod| {
        has_condition(pod, "ambit.mesh/InMesh", "True")
    })
    .await?;
    eventually("an answer", SOON, async || {
        late.ask_once("http://web/").await
    })
    .await?;
    all_run(ns, image).await?;
    println!("{what}: routes take effect, a new pod gets in");
    Ok(())
}
