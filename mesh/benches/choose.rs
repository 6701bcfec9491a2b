//! What a choice of an endpoint costs, from 10 to 10 000 endpoints, and what a change of one of them costs whoever chooses
//! next. `make bench-choose`; `BENCH_QUICK=1` shows that it runs, and its figures mean nothing.
#![allow(clippy::disallowed_methods, reason = "a bench prints")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh::balance::{Ask, Family, Place};
use mesh::names::ServiceName;
use mesh::proto::workload as wds;
use mesh::world::{World, WorldWriter, world};
use mesh::xds::{ADDRESS_TYPE, Update};
use prost::Message;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SIZES: [usize; 3] = [10, 1_000, 10_000];
const PODS_PER_NODE: usize = 30;
const NODES_PER_ZONE: usize = 40;

/// A choice among 10 000 may cost so many times one among 10: what is read is in no cache any more.
const FLAT: u32 = 4;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let rounds = match std::env::var_os("BENCH_QUICK") {
        Some(_) => 10,
        None => 1_000,
    };
    println!(
        "{:>9} {:>11} {:>9} {:>9} {:>9} {:>11} {:>11} {:>9}",
        "endpoints",
        "walk of all",
        "choice",
        "same zone",
        "same node",
        "half failed",
        "first again",
        "a change"
    );
    let mut choices = Vec::new();
    for size in SIZES {
        let row = measure(size, rounds)?;
        choices.push(row.choice);
        println!(
            "{size:>9} {:>11?} {:>9?} {:>9?} {:>9?} {:>11?} {:>11?} {:>9?}",
            row.walk, row.choice, row.zone, row.node, row.failed, row.rebuilt, row.changed
        );
    }
    let (few, many) = (choices[0], choices[SIZES.len() - 1]);
    let verdict = if many <= few * FLAT { "flat" } else { "MISS" };
    println!("{verdict}: {many:?} among 10 000, {few:?} among 10 (wanted: at most {FLAT} times)");
    Ok(())
}

struct Row {
    /// Every endpoint looked at, each as likely.
    walk: Duration,
    choice: Duration,
    zone: Duration,
    node: Duration,
    failed: Duration,
    /// The first choice after a change, which builds the set.
    rebuilt: Duration,
    /// The change itself.
    changed: Duration,
}

fn measure(size: usize, rounds: u32) -> Result<Row, Failure> {
    use wds::load_balancing::Scope::{Network, Node, Region, Zone};
    let (mut writer, world) = world();
    let cart = name();
    let all = (0..size).map(|at| pod(at, false));
    tell(&mut writer, all.collect())?;
    tell(&mut writer, vec![service(&[])])?;
    let choices = rounds * 100;
    let walk = each(rounds.div_ceil(10), || walk(&world, &cart));
    let choice = each(choices, || choose(&world, &cart));
    let (mut rebuilt, mut changed) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        let update = vec![pod(0, round % 2 == 0)];
        let before = Instant::now();
        tell(&mut writer, update)?;
        let told = Instant::now();
        choose(&world, &cart);
        changed += told - before;
        rebuilt += told.elapsed();
    }
    tell(&mut writer, vec![service(&[Network, Region, Zone])])?;
    let zone = each(choices, || choose(&world, &cart));
    tell(&mut writer, vec![service(&[Network, Region, Zone, Node])])?;
    let node = each(choices, || choose(&world, &cart));
    tell(&mut writer, vec![service(&[])])?;
    fail_half(&world, size)?;
    Ok(Row {
        walk,
        choice,
        zone,
        node,
        failed: each(choices, || choose(&world, &cart)),
        rebuilt: rebuilt / rounds,
        changed: changed / rounds,
    })
}

/// The mean of some rounds, after some to warm up.
fn each(rounds: u32, mut f: impl FnMut()) -> Duration {
    (0..rounds.div_ceil(10)).for_each(|_| f());
    let started = Instant::now();
    (0..rounds).for_each(|_| f());
    started.elapsed() / rounds
}

/// As it was before there were sets.
fn walk(world: &World, name: &ServiceName) {
    let mut chosen = None;
    world.look(|world| {
        for (seen, endpoint) in (1u64..).zip(world.endpoints(name, 80)) {
            if endpoint.healthy && fastrand::u64(0..seen) == 0 {
                chosen = Some(endpoint);
            }
        }
    });
    black_box(chosen);
}

fn choose(world: &World, name: &ServiceName) {
    let ask = Ask {
        family: Some(Family::V4),
        place: Place {
            node: "node-0",
            zone: "zone-0",
            region: "region",
        },
        ..Ask::default()
    };
    let chosen = world.look(|world| {
        let service = world.service(name)?;
        let choice = world.pick(service, 80, &ask, &mut fastrand::Rng::new());
        choice.ok()
    });
    black_box(chosen.map(|choice| choice.stats.begin()));
}

fn fail_half(world: &World, size: usize) -> Result<(), Failure> {
    // Beyond what the bench takes: those that fail again are avoided for longer.
    let later = Instant::now() + Duration::from_secs(3600);
    let mut roll = fastrand::Rng::with_seed(7);
    for _ in 0..size {
        let failed = world.look(|world| {
            let service = world.service(&name())?;
            world.pick(service, 80, &Ask::default(), &mut roll).ok()
        });
        let failed = failed.ok_or("no endpoint")?;
        if roll.bool() {
            failed.stats.failed(later, later);
        }
    }
    Ok(())
}

fn name() -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
    }
}

fn tell(writer: &mut WorldWriter, updated: Vec<(String, Bytes)>) -> Result<(), Failure> {
    let update = Update {
        type_url: ADDRESS_TYPE,
        updated,
        removed: vec![],
    };
    Ok(writer.apply(&update)?)
}

fn pod(at: usize, meshed: bool) -> (String, Bytes) {
    let (node, [_, _, high, low]) = (at / PODS_PER_NODE, (at as u32).to_be_bytes());
    let uid = format!("Kubernetes//Pod/shop/cart-5d8f7c9b6-{at:05}");
    let port = wds::Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    };
    let mut workload = wds::Workload {
        uid: uid.clone(),
        name: format!("cart-5d8f7c9b6-{at:05}"),
        namespace: "shop".into(),
        addresses: vec![vec![10, 1, high, low].into()],
        node: format!("node-{node}"),
        locality: Some(wds::Locality {
            region: "region".into(),
            zone: format!("zone-{}", node / NODES_PER_ZONE),
            ..Default::default()
        }),
        services: [(name().to_string(), wds::PortList { ports: vec![port] })].into(),
        ..Default::default()
    };
    if meshed {
        workload.set_tunnel_protocol(wds::TunnelProtocol::Hbone);
    }
    (uid, encoded(wds::address::Type::Workload(workload)))
}

fn service(near: &[wds::load_balancing::Scope]) -> (String, Bytes) {
    let balancing = wds::LoadBalancing {
        routing_preference: near.iter().map(|scope| i32::from(*scope)).collect(),
        mode: wds::load_balancing::Mode::Failover.into(),
        ..Default::default()
    };
    let service = wds::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: name().hostname.to_string(),
        ports: vec![wds::Port {
            service_port: 80,
            target_port: 8080,
            ..Default::default()
        }],
        load_balancing: Some(balancing),
        ..Default::default()
    };
    (
        name().to_string(),
        encoded(wds::address::Type::Service(service)),
    )
}

fn encoded(r#type: wds::address::Type) -> Bytes {
    let address = wds::Address {
        r#type: Some(r#type),
    };
    address.encode_to_vec().into()
}
