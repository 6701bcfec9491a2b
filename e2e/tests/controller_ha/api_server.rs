//! An API server that hangs, whole or for writes only: proxies are served on, and nobody waits for somebody else's object.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{Namespace, apply_objects, dynamic};
use e2e::cluster::Cluster;
use e2e::echo::Answer;
use e2e::probe::{PodRef, eventually, has_condition, wait_available, wait_until};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams};
use serde_json::json;
use tokio::time::Instant;

use super::shop::{self, AMBIENT, GATEWAY_API, SOON, START, all_to_version, waypoint};
use super::{some_are_ready, unharmed, written};

/// How long the API server hangs. This is the disturbance itself, not a wait for something.
const FROZEN: Duration = Duration::from_secs(60);
/// How often traffic is looked at meanwhile.
const LOOKS: u32 = 4;
/// Objects whose status cannot be written: more than any number of writes at once.
const SILENCED: usize = 40;
/// How long a silenced write hangs: what the API server allows a webhook.
const SILENCE_SECONDS: u32 = 30;
/// What others' hung writes may cost: less than one of them takes to fail.
const MEANWHILE: Duration = Duration::from_secs(10);
/// Nobody answers here, in the API server's network.
const SILENT_PORT: u16 = 9444;

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn traffic_and_routes_go_on_while_the_api_server_hangs() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "frozen", &[AMBIENT], async |ns| {
        let pod = shop::open(ns).await?;
        shop::bind(ns, &pod).await?;
        let load = pod.load("http://web/", 50).await?;
        ns.apply(&all_to_version("v1")).await?;
        eventually("all to v1", SOON, async || all_to(&pod, "v1").await).await?;
        let web = ns.api::<Service>().get("web").await?;
        let url = format!(
            "http://{}/",
            web.spec.and_then(|s| s.cluster_ip).context("no VIP")?
        );

        // A waypoint that rolls, and a route that has just been edited, when it begins to hang.
        let args = ["-n", ns.name(), "rollout", "restart", "deployment/waypoint"];
        e2e::mesh::kubectl(&cluster, &args)?;
        ns.apply(&all_to_version("v2")).await?;
        let seen = seen_from_the_node(&cluster, &pod).await?;
        // Else, when it hears nothing of the nodes for a minute, it takes all pods for unready, mesh or no mesh.
        cluster
            .control_plane
            .stop("kube-controller-manager")
            .await?;
        cluster.freeze_api_server(true)?;
        let looked = hangs(&seen, &url).await;
        cluster.freeze_api_server(false)?;
        cluster
            .control_plane
            .start_again("kube-controller-manager")?;
        looked?;

        some_are_ready(ns.client()).await?;
        wait_available(ns.api::<Deployment>(), "waypoint", START).await?;
        ns.apply(&all_to_version("v1")).await?;
        eventually("all to v1 again", SOON, async || all_to(&pod, "v1").await).await?;
        written(ns.client(), SOON).await?;
        unharmed("an API server that hung for a minute", load).await
    })
    .await
}

/// The edit takes effect and stays, and requests are answered, all the while.
async fn hangs(seen: &FromNode<'_>, url: &str) -> Result<()> {
    let began = Instant::now();
    eventually("all to v2, from the watch's last event", SOON, async || {
        seen.all_to(url, "v2")
    })
    .await?;
    println!(
        "the edit took effect {:.1} s into the hang",
        began.elapsed().as_secs_f32()
    );
    for look in 1..=LOOKS {
        tokio::time::sleep_until(began + FROZEN * look / LOOKS).await;
        seen.all_to(url, "v2")?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn writes_that_hang_hold_nobody_else_up() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "silent", &[AMBIENT], async |ns| {
        let pod = shop::open(ns).await?;
        shop::bind(ns, &pod).await?;
        ns.apply(&all_to_version("v1")).await?;
        eventually("all to v1", SOON, async || all_to(&pod, "v1").await).await?;
        let load = pod.load("http://web/", 50).await?;
        // Nobody accepts: the API server waits for TLS until its patience with the webhook is over.
        let silence = cluster.control_plane.listen(SILENT_PORT)?;
        let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
        let name = format!("silence-{}", ns.name());
        let worked = silenced(ns, &pod, &name).await;
        let how = DeleteParams::default();
        hooks
            .delete(&name, &how)
            .await
            .context("deleting the webhook")?;
        drop(silence);
        worked?;
        unharmed("writes that hang", load).await
    })
    .await
}

async fn silenced(ns: &Namespace, pod: &PodRef, name: &str) -> Result<()> {
    let client = ns.client();
    apply_objects(client, None, [webhook(ns.name(), name)]).await?;
    let unbound = (0..SILENCED).map(|number| {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("silent-{number}"),
                "labels": {"istio.io/use-waypoint": "nowhere"}},
            "spec": {"ports": [{"port": 80}]}})
    });
    apply_objects(client, Some(ns.name()), unbound).await?;
    apply_objects(client, Some(ns.name()), [waypoint("second")]).await?;

    // Others' status, and a route that everybody waits for.
    let began = Instant::now();
    written(client, MEANWHILE)
        .await
        .context("another namespace's status")?;
    println!(
        "another namespace's status: {:.1} s",
        began.elapsed().as_secs_f32()
    );
    let began = Instant::now();
    ns.apply(&all_to_version("v2")).await?;
    eventually("all to v2", MEANWHILE, async || all_to(pod, "v2").await).await?;
    println!("a route's edit: {:.1} s", began.elapsed().as_secs_f32());
    // The writes hang indeed: nothing of them is there.
    let service = ns.api::<Service>().get("silent-0").await?;
    ensure!(
        !has_condition(&service, "istio.io/WaypointBound", "False"),
        "the webhook does not hold anything up"
    );
    // Routes are of another kind than what hangs, and of the same namespace.
    let routes = dynamic(client, GATEWAY_API, "HTTPRoute", Some(ns.name())).await?;
    wait_until(routes, "split", "accepted", SOON, |route| {
        has_condition(route, "Accepted", "True")
    })
    .await
    .map(drop)
}

fn webhook(namespace: &str, name: &str) -> serde_json::Value {
    let rule = |group: &str, resource: &str| {
        json!({"apiGroups": [group], "apiVersions": ["v1"], "resources": [resource],
            "operations": ["CREATE", "UPDATE"]})
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "silence.e2e.ambit.mesh",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Ignore",
            "timeoutSeconds": SILENCE_SECONDS,
            "clientConfig": {"url": format!("https://127.0.0.1:{SILENT_PORT}/")},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "rules": [rule("", "services/status"), rule("apps", "deployments")],
        }],
    })
}

async fn all_to(pod: &PodRef, version: &str) -> Result<()> {
    only(&pod.ask(&["http://web/", "--count=20"]).await?, version)
}

fn only(answers: &[Answer], version: &str) -> Result<()> {
    let others = answers
        .iter()
        .filter(|one| one.field("ServiceVersion") != Some(version))
        .count();
    let all = answers.len();
    ensure!(
        others == 0 && all == 20,
        "{others} of {all} not from {version}"
    );
    Ok(())
}

/// A pod's network, reached from its node: the API server is not asked.
struct FromNode<'a> {
    cluster: &'a Cluster,
    node: String,
    netns: String,
}

async fn seen_from_the_node<'a>(cluster: &'a Cluster, pod: &PodRef) -> Result<FromNode<'a>> {
    let node = pod.get().await?.spec.and_then(|spec| spec.node_name);
    let node = node.context("a pod without node")?;
    let ip = pod
        .ips()
        .await?
        .first()
        .context("a pod without address")?
        .to_string();
    let find = r#"for n in /run/netns/*; do
  if nsenter --net="$n" ip -o addr 2>/dev/null | grep -qF " $1/"; then echo "$n"; fi
done"#;
    let found = cluster.node_exec(&node, &["sh", "-c", find, "find", &ip])?;
    let netns = found
        .lines()
        .next()
        .with_context(|| format!("no network with {ip} on {node}"))?;
    Ok(FromNode {
        cluster,
        node,
        netns: netns.to_owned(),
    })
}

impl FromNode<'_> {
    /// Do 20 requests go to this version, and nowhere else?
    fn all_to(&self, url: &str, version: &str) -> Result<()> {
        let netns = format!("--net={}", self.netns);
        let client = env!("CARGO_BIN_EXE_ambit-echo");
        let argv = ["nsenter", &netns, client, "client", url, "--count=20"];
        only(
            &Answer::parse_all(&self.cluster.node_exec(&self.node, &argv)?),
            version,
        )
    }
}
