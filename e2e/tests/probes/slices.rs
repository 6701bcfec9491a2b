//! A tenant lists somebody else's pod among his endpoints: it stays that pod, with its identity and its tunnel.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{Namespace, apply_objects};
use e2e::cluster::Cluster;
use e2e::mesh::serving;
use e2e::probe::{PodRef, eventually};
use k8s_openapi::api::core::v1::Service;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::callers::ztunnel_of;
use super::shop::{self, AMBIENT, SOON, START};

/// Requests between two looks: a claim that wins now and then is found.
const REQUESTS: &str = "--count=20";

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn a_foreign_slice_takes_no_pod_out_of_the_mesh() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "shop", &[AMBIENT], async |ns| {
        let client = shop::open(ns).await?;
        let db = ns
            .pods("app=web,version=v2")
            .await?
            .pop()
            .context("no server")?;
        let ip = db.ips().await?.into_iter().next().context("no address")?;
        let direct = format!("http://{ip}:8080/");
        in_tunnels(&cluster, &client, &db, &direct).await?;
        Namespace::within(ns.client(), "evil", &[], async |evil| {
            apply_objects(evil.client(), Some(evil.name()), claim("mine", ip)).await?;
            in_tunnels(&cluster, &client, &db, &direct).await?;
            // Slices are judged in order: what is said of this one was said after the one before.
            let web = ns.api::<Service>().get("web").await?;
            let vip = web
                .spec
                .and_then(|spec| spec.cluster_ip)
                .context("no VIP")?;
            let vip: IpAddr = vip.parse()?;
            apply_objects(evil.client(), Some(evil.name()), claim("vips", vip)).await?;
            told(evil, "vips-1", vip).await?;
            in_tunnels(&cluster, &client, &db, &direct).await?;

            // A Service that lists it means that pod: its identity, and its tunnel.
            let service = evil.api::<Service>().get("mine").await?;
            let vip = service
                .spec
                .and_then(|spec| spec.cluster_ip)
                .context("no VIP")?;
            in_tunnels(&cluster, &client, &db, &format!("http://{vip}/")).await?;

            // The order in which a proxy that starts learns of both changes nothing.
            let ztunnel = ztunnel_of(&client).await?;
            ztunnel
                .api()
                .delete(ztunnel.name(), &DeleteParams::default())
                .await?;
            eventually("another ztunnel", START, async || {
                let now = ztunnel_of(&client).await?;
                ensure!(now.name() != ztunnel.name(), "still the old one");
                Ok(())
            })
            .await?;
            serving(ns.client()).await?;
            eventually("an answer", SOON, async || client.ask_once(&direct).await).await?;
            in_tunnels(&cluster, &client, &db, &direct).await
        })
        .await
    })
    .await
}

/// A Service without selector, and a slice of it with this address.
fn claim(name: &str, ip: IpAddr) -> [Value; 2] {
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip.to_string()], "conditions": {"ready": true}}]}),
    ]
}

/// Who claims another Service's address is told which address is not his. (One who lists a pod means the pod, and claims nothing.)
async fn told(evil: &Namespace, slice: &str, ip: IpAddr) -> Result<()> {
    let event = evil.wait_event(slice, &ip.to_string(), SOON).await?;
    println!("told: {event}");
    ensure!(event.contains("AddressTaken"), "{event}");
    Ok(())
}

/// All of what is asked is answered by the pod and travels in tunnels; nothing can be read on the way.
async fn in_tunnels(cluster: &Cluster, client: &PodRef, server: &PodRef, url: &str) -> Result<()> {
    let marker = format!("marker-{}-end", std::process::id());
    let ends = [client.ips().await?, server.ips().await?].concat();
    let capture = cluster.underlay_capture(move |packet| {
        ends.contains(&packet.from.ip()) && ends.contains(&packet.to.ip())
    })?;
    let header = format!("X-Marker:{marker}");
    let answers = client.ask(&[url, REQUESTS, "-H", &header]).await?;
    let seen = capture.stop();
    let from = answers
        .iter()
        .filter(|one| one.hostname() == Some(server.name()))
        .count();
    ensure!(
        from == answers.len() && from > 0,
        "{from} of {} from the pod",
        answers.len()
    );
    let readable = seen.containing(marker.as_bytes()).len();
    ensure!(readable == 0, "{url}: {readable} packets are readable");
    let elsewhere = seen
        .packets
        .iter()
        .filter(|packet| ![packet.from.port(), packet.to.port()].contains(&15008))
        .count();
    ensure!(
        elsewhere == 0,
        "{url}: {elsewhere} packets to or from another port than 15008"
    );
    Ok(())
}
