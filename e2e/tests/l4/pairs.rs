//! Every pair of ends: in the mesh or not, on one node or two, by every kind of address, over every kind of stream.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace, apply_objects, service};
use e2e::probe::{PodRef, eventually};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::{CHANGE, LABEL, START, wait_answers, wait_in_mesh, ztunnel};

/// What is asked for at each address: name, scheme, port of the pod, port of the Service.
const STREAMS: [(&str, &str, u16, u16); 3] = [
    ("http", "http", 8080, 80),
    ("tcp", "tcp", 9090, 9090),
    ("server-first", "tcp", 9091, 9091),
];
/// In the answers and on the wire, if it can be read there.
const MARKER: &str = "pairs-marker";

/// One echo server, and every way to it.
struct End {
    meshed: bool,
    node: &'static str,
    pod: PodRef,
    addresses: Vec<(&'static str, Address)>,
}

enum Address {
    Pod(IpAddr),
    Service(IpAddr),
    /// A headless name leads to the pod's own ports.
    Headless(String),
}

impl Address {
    fn url(&self, scheme: &str, pod: u16, service: u16) -> String {
        match self {
            Self::Pod(ip) => format!("{scheme}://{}", SocketAddr::new(*ip, pod)),
            Self::Service(ip) => format!("{scheme}://{}", SocketAddr::new(*ip, service)),
            Self::Headless(name) => format!("{scheme}://{name}:{pod}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn every_pair_talks() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "l4-in", &[LABEL], async |inside| {
        Namespace::within(&client, "l4-out", &[], async |outside| {
            let mut ends = Vec::new();
            for (ns, meshed) in [(inside, true), (outside, false)] {
                for (version, node) in [("v1", "worker-1"), ("v2", "worker-2")] {
                    ends.push(end(ns, meshed, version, node).await?);
                }
            }
            let mut clients = Vec::new();
            for (ns, meshed) in [(inside, true), (outside, false)] {
                let pod = ns
                    .run(&EchoClient::new("client").on("worker-1"), START)
                    .await?;
                if meshed {
                    wait_in_mesh(&pod).await?;
                }
                for end in &ends {
                    for (_, address) in &end.addresses {
                        wait_answers(&pod, &address.url("http", 8080, 80)).await?;
                    }
                }
                clients.push((meshed, pod));
            }
            let capture = cluster.underlay_capture(|packet| {
                packet
                    .payload
                    .windows(MARKER.len())
                    .any(|part| part == MARKER.as_bytes())
            })?;
            let wrong = table(&clients, &ends).await?;
            let captured = capture.stop();
            ensure!(
                wrong.is_empty(),
                "{} of the pairs failed:\n{}",
                wrong.len(),
                wrong.join("\n")
            );
            on_the_wire(&clients, &ends, &captured).await?;
            tunnelled(inside, &ends).await
        })
        .await
    })
    .await
}

/// Starts a server and finds every way to it.
async fn end(ns: &Namespace, meshed: bool, version: &str, node: &'static str) -> Result<End> {
    let server = EchoServer::new("echo", version).on(node);
    ns.serve(&server, START).await?;
    let headless = format!("headless-{version}");
    let selector = json!({"app": "echo", "version": version});
    apply_objects(
        ns.client(),
        Some(ns.name()),
        [service(&headless, &selector, true)],
    )
    .await?;
    let pod = ns
        .pods(&format!("app=echo,version={version}"))
        .await?
        .remove(0);
    if meshed {
        wait_in_mesh(&pod).await?;
    }
    let service = ns.api::<Service>().get(&server.name()).await?;
    let service = service
        .spec
        .and_then(|spec| spec.cluster_ips)
        .unwrap_or_default();
    let mut addresses = Vec::new();
    for ip in pod.ips().await? {
        addresses.push((
            if ip.is_ipv4() {
                "pod, IPv4"
            } else {
                "pod, IPv6"
            },
            Address::Pod(ip),
        ));
    }
    for ip in service {
        let ip: IpAddr = ip.parse().context("a ClusterIP")?;
        addresses.push((
            if ip.is_ipv4() {
                "ClusterIP, IPv4"
            } else {
                "ClusterIP, IPv6"
            },
            Address::Service(ip),
        ));
    }
    addresses.push((
        "headless",
        Address::Headless(format!("{headless}.{}.svc.cluster.local", ns.name())),
    ));
    ensure!(
        addresses.len() == 5,
        "both families, please: {}",
        addresses.len()
    );
    Ok(End {
        meshed,
        node,
        pod,
        addresses,
    })
}

/// Tries every pair, prints how it went, and returns what went wrong.
async fn table(clients: &[(bool, PodRef)], ends: &[End]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut table = format!(
        "{:<12}{:<12}{:<8}{:<18}",
        "client", "server", "node", "address"
    );
    for (stream, ..) in STREAMS {
        write!(table, "{stream:<14}")?;
    }
    for (meshed, client) in clients {
        for end in ends {
            for (kind, address) in &end.addresses {
                write!(
                    table,
                    "\n{:<12}{:<12}{:<8}{kind:<18}",
                    word(*meshed),
                    word(end.meshed),
                    if end.node == "worker-1" {
                        "same"
                    } else {
                        "other"
                    },
                )?;
                for (stream, scheme, pod, service) in STREAMS {
                    let url = address.url(scheme, pod, service);
                    let result = one(client, end, stream, &url).await;
                    write!(
                        table,
                        "{:<14}",
                        if result.is_ok() { "ok" } else { "FAILED" }
                    )?;
                    if let Err(why) = result {
                        wrong.push(format!(
                            "{} client to {} server on {}, {kind}, {stream}, {url}: {why:#}",
                            word(*meshed),
                            word(end.meshed),
                            end.node
                        ));
                    }
                }
            }
        }
    }
    println!("{table}");
    Ok(wrong)
}

fn word(meshed: bool) -> &'static str {
    if meshed { "in the mesh" } else { "outside" }
}

/// One request: the right pod answers, and it sees the client's own address.
async fn one(client: &PodRef, end: &End, stream: &str, url: &str) -> Result<()> {
    let header = format!("X-Marker:{MARKER}");
    let message = format!("--msg={MARKER}");
    let answers = match stream {
        "http" => client.ask(&[url, "-H", &header]).await?,
        "server-first" => client.ask(&[url, "--server-first", &message]).await?,
        _ => client.ask(&[url, &message]).await?,
    };
    let [answer] = &answers[..] else {
        bail!("{} answers", answers.len());
    };
    ensure!(
        answer.hostname() == Some(end.pod.name()),
        "somebody else answered: {answer}"
    );
    let seen: Option<IpAddr> = answer.field("IP").and_then(|ip| ip.parse().ok());
    if let Some(seen) = seen {
        let own = client.ips().await?;
        ensure!(
            own.contains(&seen),
            "the server saw {seen}, the client is {own:?}"
        );
    }
    Ok(())
}

/// Between two pods of the mesh nothing can be read; to everybody else, everything.
async fn on_the_wire(
    clients: &[(bool, PodRef)],
    ends: &[End],
    captured: &e2e::capture::Captured,
) -> Result<()> {
    for (meshed, client) in clients {
        let own = client.ips().await?;
        for end in ends.iter().filter(|end| end.node != "worker-1") {
            let theirs = end.pod.ips().await?;
            let between = |from: IpAddr, to: IpAddr| own.contains(&from) && theirs.contains(&to);
            let read = captured
                .packets
                .iter()
                .filter(|packet| between(packet.from.ip(), packet.to.ip()))
                .count();
            println!(
                "client {}, server {}: {read} readable packets between the nodes",
                word(*meshed),
                word(end.meshed)
            );
            ensure!(
                (read == 0) == (*meshed && end.meshed),
                "client {}, server {}: {read} readable packets",
                word(*meshed),
                word(end.meshed)
            );
        }
    }
    Ok(())
}

/// On one node there is no wire to look at: the server's ztunnel counts what came in by mutual TLS.
async fn tunnelled(inside: &Namespace, ends: &[End]) -> Result<()> {
    for end in ends.iter().filter(|end| end.meshed) {
        let ztunnel = ztunnel(inside.client(), end.node).await?;
        let wanted = end.addresses.len() * STREAMS.len();
        let client = format!(
            "source_principal=\"spiffe://cluster.local/ns/{}/sa/client\"",
            inside.name()
        );
        eventually("tunnels counted", CHANGE, async || {
            let page = ztunnel.page(15020, "/metrics").await?;
            let count: f64 = page
                .lines()
                .filter(|line| {
                    line.starts_with("istio_tcp_connections_opened_total{")
                        && line.contains("reporter=\"destination\"")
                        && line.contains("connection_security_policy=\"mutual_tls\"")
                        && line.contains(&client)
                        && line.contains(&version_of(end))
                })
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum();
            #[allow(clippy::cast_precision_loss, reason = "small")]
            let wanted = wanted as f64;
            ensure!(count >= wanted, "{count} of {wanted} on {}", end.node);
            println!(
                "{}: {count} connections of {} came by mutual TLS",
                end.node,
                inside.name()
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

fn version_of(end: &End) -> String {
    let version = if end.node == "worker-1" { "v1" } else { "v2" };
    format!("destination_version=\"{version}\"")
}
