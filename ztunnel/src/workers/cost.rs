//! What it costs to judge open connections again while the mesh changes: a figure, not a test. `make bench-leases`.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Barrier, mpsc},
    thread,
};

use hbone::{Identity, Peer, TrustDomain, credentials};
use mesh::{
    party::Party,
    pod::Pod,
    proto::workload as wds,
    verdict::lease::Lease,
    world::{World, WorldWriter, world},
    xds::{ADDRESS_TYPE, Update},
};
use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::registry::Registry;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};

use super::*;
use crate::{
    metrics::Metrics,
    netns::PodNetns,
    sessions::{Direction, Session},
};

/// A full node of a large machine.
const PODS: usize = 110;
const WORKERS: usize = 16;
/// Open connections of one pod on one of the threads: half come, half go.
const CONNECTIONS: usize = 10;
const WORKLOADS: u32 = 1000;
const CHANGES_PER_SECOND: u32 = 100;
const SECONDS: u32 = 10;

#[test]
#[ignore = "prints a figure"]
#[allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a figure, of changes at a steady pace"
)]
fn what_a_nodes_dispatchers_cost() {
    let (mut writer, world) = world();
    let all: Vec<_> = (0..WORKLOADS).map(|number| told(number, 0)).collect();
    tell(&mut writer, all);
    let ready = Arc::new(Barrier::new(WORKERS + 1));
    let (say, costs) = mpsc::channel();
    for _ in 0..WORKERS {
        let (ready, world, say) = (ready.clone(), world.clone(), say.clone());
        thread::spawn(move || {
            let mut builder = Builder::new_current_thread();
            let runtime = builder.enable_all().build_local(LocalOptions::default());
            let runtime = runtime.unwrap();
            let (cost, changes) = runtime.block_on(dispatch(world, &ready));
            say.send((cost, changes)).unwrap();
        });
    }
    drop(say);
    ready.wait();
    let began = Instant::now();
    for change in 1..=CHANGES_PER_SECOND * SECONDS {
        tell(&mut writer, vec![told(change % WORKLOADS, change)]);
        let next = began + Duration::from_secs(1) / CHANGES_PER_SECOND * change;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // The dispatchers end with who writes.
    drop(writer);
    let costs: Vec<_> = costs.iter().collect();
    let total: Duration = costs.iter().map(|(cost, _)| *cost).sum();
    let changes: usize = costs.iter().map(|(_, changes)| *changes).sum();
    let each = total / u32::try_from(changes).unwrap();
    let share = total.as_secs_f64() / f64::from(SECONDS) * 100.0;
    println!(
        "{PODS} pods, {WORKERS} workers, {CONNECTIONS} connections each, {CHANGES_PER_SECOND} changes/s of {WORKLOADS} workloads: \
         {share:.2} % of one core in all, {each:?} per change and worker ({changes} taken)"
    );
}

/// One worker: its CPU time for all changes, and how many those were.
async fn dispatch(world: World, ready: &Barrier) -> (Duration, usize) {
    let ca = Ca::new();
    let mut registry = Registry::default();
    let shared = Arc::new(Shared {
        world: world.clone(),
        metrics: Metrics::register(&mut registry),
        trust_domain: TrustDomain::default(),
        cluster: "Kubernetes".into(),
        node: "node".into(),
    });
    let proxies: Vec<_> = (0..PODS).map(|_| ca.proxy(&shared)).collect();
    let mut open = Vec::new();
    for (at, proxy) in proxies.iter().enumerate() {
        for connection in 0..CONNECTIONS {
            let number = u32::try_from(at * CONNECTIONS + connection).unwrap() % WORKLOADS;
            open.push(connect(proxy, &world, number, connection % 2 == 0));
        }
    }
    let mut changes = world.changes().unwrap();
    ready.wait();
    drop((world, shared));
    let (before, mut taken) = (cpu(), 0);
    while let Some(changed) = changes.next().await {
        proxies.iter().for_each(|proxy| proxy.changed(&changed));
        taken += 1;
    }
    let cost = cpu() - before;
    assert!(open.iter().all(|session| session.info.dst.is_none()));
    (cost, taken)
}

/// An open connection with a workload: from it, or to it.
fn connect(proxy: &Proxy, world: &World, number: u32, comes: bool) -> Session {
    let src = (address(number), 1).into();
    let direction = match comes {
        true => Direction::Tunnel,
        false => Direction::Outbound,
    };
    let (session, room) = proxy
        .sessions
        .open(direction, src, Party::default(), Party::default());
    room.unwrap();
    world.look(|world| {
        let there = world.workload_at(address(number)).unwrap();
        let peer = Peer {
            id: there.identity(),
            addr: src,
        };
        let lease = match comes {
            true => Lease::of_peer(&peer),
            false => Lease::of_endpoint(there, address(number)),
        };
        session.stands_on(lease, world).unwrap();
    });
    session
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap())
    });
    user + system
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0001 + number).into()
}

/// A workload that is who it was, in another revision.
fn told(number: u32, revision: u32) -> (String, bytes::Bytes) {
    let IpAddr::V4(ip) = address(number) else {
        unreachable!()
    };
    let workload = wds::Workload {
        uid: format!("Kubernetes//Pod/shop/pod-{number}"),
        name: format!("pod-{number}"),
        namespace: "shop".into(),
        addresses: vec![ip.octets().to_vec().into()],
        service_account: format!("account-{}", number % 50),
        canonical_revision: revision.to_string(),
        cluster_id: "Kubernetes".into(),
        ..wds::Workload::default()
    };
    let address = wds::Address {
        r#type: Some(wds::address::Type::Workload(workload.clone())),
    };
    (workload.uid, address.encode_to_vec().into())
}

fn tell(writer: &mut WorldWriter, updated: Vec<(String, bytes::Bytes)>) {
    let update = Update {
        type_url: ADDRESS_TYPE,
        updated,
        removed: vec![],
    };
    writer.apply(&update).unwrap();
}

/// Signs one certificate for all.
struct Ca {
    chain: String,
    key: String,
    root: String,
}

impl Ca {
    fn new() -> Self {
        let (key, root_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = root.self_signed(&root_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(root, root_key);
        let mut leaf = CertificateParams::default();
        let id = "spiffe://cluster.local/ns/shop/sa/account-0";
        leaf.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        Self {
            chain: leaf.signed_by(&key, &issuer).unwrap().pem(),
            key: key.serialize_pem(),
            root: pem,
        }
    }

    fn proxy(&self, shared: &Arc<Shared>) -> Rc<Proxy> {
        let identity = Identity::from_pem(&self.chain, &self.key, &self.root).unwrap();
        let (_, credentials) = credentials(identity);
        let pod = Pod {
            uid: "00000000-0000-4000-8000-000000000001".into(),
            name: "pod".into(),
            namespace: "shop".into(),
            addresses: vec![],
            identity: credentials.id(),
            workload: mesh::names::Uid::pod("Kubernetes", "shop", "pod"),
        };
        let serving = Serving::new(pod, PodNetns::current().unwrap(), credentials);
        Proxy::new(Arc::new(serving), shared.clone(), WORKERS)
    }
}
