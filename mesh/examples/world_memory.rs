//! Memory of a proxy's world per pod: fills one from responses as they come, and prints what the process grew by.
//!
//! `_RJEM_MALLOC_CONF=dirty_decay_ms:0 cargo run --locked --workspace --example world_memory [pods]`: without it, pages
//! that the allocator gives back within its ten seconds count as well.

use std::fmt::Write as _;
use std::time::Instant;

use mesh::proto::discovery::{DeltaDiscoveryResponse, Resource};
use mesh::proto::workload as wds;
use mesh::world::world;
use mesh::xds::session::ProxySession;
use mesh::xds::{ADDRESS_TYPE, Encoded};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Pods of one Deployment, and so behind one Service.
const REPLICAS: usize = 5;
/// Deployments of one namespace.
const DEPLOYMENTS: usize = 20;
/// Pods of one node.
const PODS_PER_NODE: usize = 30;
/// Resources of one response.
const BATCH: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pods: usize = match std::env::args().nth(1) {
        Some(number) => number.parse()?,
        None => 100_000,
    };
    let (mut writer, seen) = world();
    let mut session = ProxySession::new([ADDRESS_TYPE]);
    // What a process has anyway, and the allocator's first chunks.
    session.on_response(response(0..1), |update| writer.apply(update));
    let empty = resident()?;
    let started = Instant::now();
    for first in (1..pods).step_by(BATCH) {
        let response = response(first..pods.min(first + BATCH));
        let reply = session.on_response(response, |update| writer.apply(update));
        if let Some(refused) = reply.refused {
            return Err(refused.into());
        }
    }
    let filled = started.elapsed();
    let full = resident()?;
    drop(session);
    let without_session = resident()?;
    let one = Instant::now();
    for pod in 0..BATCH {
        let mut session = ProxySession::new([ADDRESS_TYPE]);
        session.on_response(response(pod..pod + 1), |update| writer.apply(update));
    }
    let per_update = one.elapsed() / u32::try_from(BATCH)?;
    let mut text = String::new();
    writeln!(text, "pods                     {pods}")?;
    writeln!(text, "grown, per pod           {} B", (full - empty) / pods)?;
    writeln!(
        text,
        "of that the world itself {} B (the rest: names and versions for the next stream)",
        without_session.saturating_sub(empty) / pods
    )?;
    writeln!(
        text,
        "filled in                {filled:?}, encoding included"
    )?;
    writeln!(
        text,
        "one more update          {per_update:?}, encoding included"
    )?;
    print!("{text}");
    seen.look(|_| ());
    Ok(())
}

/// Bytes of this process that are in memory.
fn resident() -> Result<usize, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kilobytes.ok_or("no VmRSS")?.parse::<usize>()? * 1024)
}

fn response(pods: std::ops::Range<usize>) -> DeltaDiscoveryResponse {
    let mut resources = Vec::new();
    for pod in pods {
        if pod % REPLICAS == 0 {
            resources.push(resource(service(pod / REPLICAS)));
        }
        resources.push(resource(workload(pod)));
    }
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        nonce: "1".to_owned(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

fn resource((name, address): (String, wds::Address)) -> Resource {
    let encoded = Encoded::new(ADDRESS_TYPE, &address);
    Resource {
        name,
        version: encoded.version().to_string(),
        resource: encoded.any().into(),
        ..Resource::default()
    }
}

fn names(deployment: usize) -> (String, String) {
    (
        format!("team-{:05}", deployment / DEPLOYMENTS),
        format!("checkout-{deployment:06}"),
    )
}

fn hostname(deployment: usize) -> String {
    let (namespace, name) = names(deployment);
    format!("{name}.{namespace}.svc.cluster.local")
}

fn ports(target_port: u32) -> Vec<wds::Port> {
    let port = |service_port, target_port| wds::Port {
        service_port,
        target_port,
        ..wds::Port::default()
    };
    vec![port(80, target_port), port(9090, target_port)]
}

fn octets(block: u8, number: usize) -> Vec<u8> {
    let [.., a, b, c] = number.to_be_bytes();
    vec![block, a, b, c]
}

fn workload(pod: usize) -> (String, wds::Address) {
    let deployment = pod / REPLICAS;
    let (namespace, name) = names(deployment);
    let node = pod / PODS_PER_NODE;
    let pod_name = format!("{name}-7d9f8c6b5d-{pod:05x}");
    let workload = wds::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{pod_name}"),
        name: pod_name,
        namespace: namespace.clone(),
        addresses: vec![octets(10, pod).into()],
        tunnel_protocol: wds::TunnelProtocol::Hbone.into(),
        service_account: name.clone(),
        node: format!("ip-10-0-{node}.eu-central-1.compute.internal"),
        canonical_name: name.clone(),
        canonical_revision: "v1".into(),
        workload_name: name,
        cluster_id: "Kubernetes".into(),
        locality: Some(wds::Locality {
            region: "eu-central-1".into(),
            zone: format!("eu-central-1{}", ["a", "b", "c"][node % 3]),
            ..wds::Locality::default()
        }),
        services: [(
            format!("{namespace}/{}", hostname(deployment)),
            wds::PortList { ports: ports(8080) },
        )]
        .into(),
        ..wds::Workload::default()
    };
    let name = workload.uid.clone();
    let address = wds::Address {
        r#type: Some(wds::address::Type::Workload(workload)),
    };
    (name, address)
}

fn service(deployment: usize) -> (String, wds::Address) {
    let (namespace, name) = names(deployment);
    let service = wds::Service {
        name,
        namespace: namespace.clone(),
        hostname: hostname(deployment),
        addresses: vec![wds::NetworkAddress {
            address: octets(172, deployment),
            ..wds::NetworkAddress::default()
        }],
        ports: ports(0),
        ..wds::Service::default()
    };
    let name = format!("{namespace}/{}", hostname(deployment));
    let address = wds::Address {
        r#type: Some(wds::address::Type::Service(service)),
    };
    (name, address)
}
