//! A small mesh in one process: nodes with a real data plane, pods as network namespaces on one bridge, and a
//! controller that writes the nodes' worlds directly.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    thread,
};

use hbone::{SpiffeId, TrustDomain};
use mesh::{
    proto::{
        node::{Capture, EnrolledNamespace, Enrolment},
        workload as wds,
    },
    xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, Update},
};
use parking_lot::Mutex;
use prost::Message;
use ztunnel::netns::PodNetns;

use super::{
    ca::Ca,
    log,
    net::{connect, ip, listen, namespace},
    node::{Outcome, TestNode},
    replica::Replica,
};

pub(crate) const ECHO: u16 = 8080;
pub(crate) const SERVER_FIRST: u16 = 7000;
pub(crate) const SERVICE: u16 = 80;
pub(crate) const SERVICE_FIRST: u16 = 81;
/// What a server-first server says.
pub(crate) const GREETING: &[u8] = b"220 hello\n";

/// The mesh: what a controller would know.
pub(crate) struct Fabric {
    pub(crate) ca: Ca,
    bridge: PodNetns,
    nodes: Vec<TestNode>,
    state: Mutex<State>,
}

/// By type and name.
pub(crate) type Resources = BTreeMap<(&'static str, String), Vec<u8>>;

#[derive(Default)]
struct State {
    pods: Vec<PodState>,
    /// What each node was told last.
    told: Vec<Resources>,
}

#[derive(Clone)]
struct PodState {
    pod: TestPod,
    labelled: bool,
    hbone: bool,
    announced: bool,
    /// The node is not told of its own pod any more.
    unmentioned: bool,
    /// The service account that the others are told.
    believed: String,
}

/// One pod: a namespace with an echo server and a server-first server.
#[derive(Clone)]
pub(crate) struct TestPod {
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) number: usize,
    pub(crate) ns: PodNetns,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    pub(crate) vip4: IpAddr,
    pub(crate) vip6: IpAddr,
}

pub(crate) const NAMESPACE: &str = "shop";

impl Fabric {
    /// Two nodes and no pods.
    pub(crate) fn new() -> Self {
        log::keep();
        let bridge = namespace();
        ip(&bridge, "link set lo up");
        ip(&bridge, "link add br0 type bridge");
        ip(&bridge, "link set br0 up");
        ip(&bridge, "addr add 10.9.0.1/24 dev br0");
        ip(&bridge, "addr add fd09::1/64 dev br0 nodad");
        let ca = Ca::new();
        let nodes = vec![TestNode::new(&ca), TestNode::new(&ca)];
        let state = State {
            told: vec![BTreeMap::new(); nodes.len()],
            ..State::default()
        };
        let fabric = Self {
            ca,
            bridge,
            nodes,
            state: Mutex::new(state),
        };
        fabric.publish();
        fabric
    }

    pub(crate) fn node(&self, index: usize) -> &TestNode {
        &self.nodes[index]
    }

    pub(crate) fn bridge(&self) -> &PodNetns {
        &self.bridge
    }

    /// A running pod that the controller knows; not in the mesh.
    pub(crate) fn pod(&self, name: &str, node: usize) -> TestPod {
        let pod = self.start_pod(name, node);
        self.announce(&pod);
        pod
    }

    /// A running pod in the mesh.
    pub(crate) fn meshed(&self, name: &str, node: usize) -> TestPod {
        let pod = self.pod(name, node);
        self.enrol(&pod);
        pod
    }

    /// A pod that nobody has told the nodes of.
    pub(crate) fn start_pod(&self, name: &str, node: usize) -> TestPod {
        let mut state = self.state.lock();
        let number = state.pods.len() + 10;
        let pod = TestPod {
            name: name.to_owned(),
            node,
            number,
            ns: namespace(),
            v4: format!("10.9.0.{number}").parse().unwrap(),
            v6: format!("fd09::{number}").parse().unwrap(),
            vip4: format!("10.96.0.{number}").parse().unwrap(),
            vip6: format!("fd96::{number}").parse().unwrap(),
        };
        self.wire(&pod, number);
        self.nodes[node].add_process(&pod, number);
        serve_echo(&pod.ns);
        serve_first(&pod.ns);
        state.pods.push(PodState {
            pod: pod.clone(),
            labelled: false,
            hbone: false,
            announced: false,
            unmentioned: false,
            believed: name.to_owned(),
        });
        pod
    }

    fn wire(&self, pod: &TestPod, number: usize) {
        let file = self
            .bridge
            .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        ip(&pod.ns, "link set lo up");
        ip(
            &pod.ns,
            &format!("link add eth0 type veth peer name p{number} netns {path}"),
        );
        ip(&self.bridge, &format!("link set p{number} master br0 up"));
        ip(&pod.ns, "link set eth0 up");
        ip(&pod.ns, &format!("addr add {}/24 dev eth0", pod.v4));
        ip(&pod.ns, &format!("addr add {}/64 dev eth0 nodad", pod.v6));
        ip(&pod.ns, "route add default via 10.9.0.1");
        ip(&pod.ns, "-6 route add default via fd09::1");
    }

    pub(crate) fn announce(&self, pod: &TestPod) {
        self.change(pod, |state| state.announced = true);
    }

    /// The pod is deleted: its address is told to nobody any more.
    pub(crate) fn delete(&self, pod: &TestPod) {
        self.change(pod, |state| state.announced = false);
    }

    /// From now on the controller believes the pod to be `other`'s service account.
    pub(crate) fn mistake(&self, pod: &TestPod, other: &TestPod) {
        self.change(pod, |state| state.believed = other.name.clone());
    }

    /// Asks for the mesh, waits until the node has obeyed, and then tells the others, as a controller does.
    pub(crate) fn enrol(&self, pod: &TestPod) {
        self.change(pod, |state| state.labelled = true);
        self.nodes[pod.node].wait_for(pod, Outcome::Enrolled);
        self.change(pod, |state| state.hbone = true);
    }

    /// Asks for the mesh and does not wait.
    pub(crate) fn label(&self, pod: &TestPod) {
        self.change(pod, |state| state.labelled = true);
    }

    /// Tells everybody, and waits until the node has obeyed.
    pub(crate) fn take_out(&self, pod: &TestPod) {
        self.change(pod, |state| (state.labelled, state.hbone) = (false, false));
        self.nodes[pod.node].wait_for(pod, Outcome::Removed);
    }

    /// The controller says no word of a pod to its node any more, or does again.
    pub(crate) fn mention(&self, pod: &TestPod, mentioned: bool) {
        self.change(pod, |state| state.unmentioned = !mentioned);
    }

    /// A replica of the controller that knows all, as far as node `index` may see it, but for one pod.
    pub(crate) fn replica(&self, index: usize, unknown: Option<&TestPod>) -> Replica {
        let state = self.state.lock();
        let mut resources = resources(&state.pods, index);
        if let Some(pod) = unknown {
            resources.remove(&(ENROLMENT_TYPE, pod.uid()));
            resources.remove(&(ADDRESS_TYPE, pod.workload_uid()));
        }
        Replica::new(&resources)
    }

    fn change(&self, pod: &TestPod, f: impl FnOnce(&mut PodState)) {
        {
            let mut state = self.state.lock();
            f(state
                .pods
                .iter_mut()
                .find(|p| p.pod.name == pod.name)
                .unwrap());
        }
        self.publish();
    }

    /// Tells every node what is new to it.
    fn publish(&self) {
        let mut state = self.state.lock();
        for (index, node) in self.nodes.iter().enumerate() {
            let now = resources(&state.pods, index);
            let before = std::mem::replace(&mut state.told[index], now.clone());
            for type_url in [ADDRESS_TYPE, ENROLMENT_TYPE, ENROLLED_NAMESPACE_TYPE] {
                let updated: Vec<(String, bytes::Bytes)> = now
                    .iter()
                    .filter(|((t, _), _)| *t == type_url)
                    .filter(|(key, value)| before.get(*key) != Some(value))
                    .map(|((_, name), value)| (name.clone(), value.clone().into()))
                    .collect();
                let removed: Vec<String> = before
                    .keys()
                    .filter(|key| key.0 == type_url && !now.contains_key(*key))
                    .map(|(_, name)| name.clone())
                    .collect();
                let update = Update {
                    type_url,
                    updated,
                    removed,
                };
                node.tell(&update);
            }
        }
    }
}

fn resources(pods: &[PodState], node: usize) -> Resources {
    let mut all = BTreeMap::new();
    let namespace = EnrolledNamespace {
        name: NAMESPACE.into(),
    };
    all.insert(
        (ENROLLED_NAMESPACE_TYPE, NAMESPACE.to_owned()),
        namespace.encode_to_vec(),
    );
    for state in pods.iter().filter(|p| p.announced) {
        let pod = &state.pod;
        let workload = wds::Address {
            r#type: Some(wds::address::Type::Workload(workload(state))),
        };
        all.insert((ADDRESS_TYPE, pod.workload_uid()), workload.encode_to_vec());
        let service = wds::Address {
            r#type: Some(wds::address::Type::Service(service(pod))),
        };
        all.insert((ADDRESS_TYPE, pod.service_name()), service.encode_to_vec());
        if pod.node == node && !state.unmentioned {
            let capture = if state.labelled {
                Capture::In
            } else {
                Capture::Out
            };
            let enrolment = Enrolment {
                uid: pod.uid(),
                name: pod.name.clone(),
                namespace: NAMESPACE.into(),
                service_account: pod.name.clone(),
                addresses: vec![octets(pod.v4), octets(pod.v6)],
                capture: capture.into(),
                bypass_inbound: false,
            };
            all.insert((ENROLMENT_TYPE, pod.uid()), enrolment.encode_to_vec());
        }
    }
    all
}

fn workload(state: &PodState) -> wds::Workload {
    let pod = &state.pod;
    let protocol = if state.hbone {
        wds::TunnelProtocol::Hbone
    } else {
        wds::TunnelProtocol::None
    };
    let ports =
        [(SERVICE, ECHO), (SERVICE_FIRST, SERVER_FIRST)].map(|(service, target)| wds::Port {
            service_port: service.into(),
            target_port: target.into(),
            ..wds::Port::default()
        });
    wds::Workload {
        uid: pod.workload_uid(),
        name: pod.name.clone(),
        namespace: NAMESPACE.into(),
        addresses: vec![octets(pod.v4), octets(pod.v6)],
        tunnel_protocol: protocol.into(),
        service_account: state.believed.clone(),
        node: format!("node-{}", pod.node),
        canonical_name: pod.name.clone(),
        canonical_revision: "v1".into(),
        workload_name: pod.name.clone(),
        cluster_id: "Kubernetes".into(),
        services: [(
            pod.service_name(),
            wds::PortList {
                ports: ports.to_vec(),
            },
        )]
        .into(),
        ..wds::Workload::default()
    }
}

fn service(pod: &TestPod) -> wds::Service {
    let address = |ip| wds::NetworkAddress {
        address: octets(ip).to_vec(),
        ..wds::NetworkAddress::default()
    };
    let ports =
        [(SERVICE, ECHO), (SERVICE_FIRST, SERVER_FIRST)].map(|(service, target)| wds::Port {
            service_port: service.into(),
            target_port: target.into(),
            ..wds::Port::default()
        });
    wds::Service {
        name: pod.name.clone(),
        namespace: NAMESPACE.into(),
        hostname: pod.hostname(),
        addresses: vec![address(pod.vip4), address(pod.vip6)],
        ports: ports.to_vec(),
        ..wds::Service::default()
    }
}

fn octets(ip: IpAddr) -> bytes::Bytes {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}

// === impl TestPod ===

impl TestPod {
    pub(crate) fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    fn workload_uid(&self) -> String {
        format!("Kubernetes//Pod/{NAMESPACE}/{}", self.name)
    }

    pub(crate) fn hostname(&self) -> String {
        format!("{}.{NAMESPACE}.svc.cluster.local", self.name)
    }

    fn service_name(&self) -> String {
        format!("{NAMESPACE}/{}", self.hostname())
    }

    pub(crate) fn identity(&self) -> SpiffeId {
        SpiffeId::for_service_account(&TrustDomain::default(), NAMESPACE, &self.name).unwrap()
    }

    pub(crate) fn addr(&self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(if v6 { self.v6 } else { self.v4 }, port)
    }

    pub(crate) fn vip(&self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(if v6 { self.vip6 } else { self.vip4 }, port)
    }

    /// One request on a fresh connection; returns whom the server saw.
    pub(crate) fn ask(&self, to: SocketAddr) -> std::io::Result<IpAddr> {
        let mut stream = connect(&self.ns, to)?;
        exchange(&mut stream)
    }

    /// A fresh connection to a server that speaks first.
    pub(crate) fn listen_to(&self, to: SocketAddr) -> std::io::Result<Vec<u8>> {
        let mut stream = connect(&self.ns, to)?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        Ok(said)
    }
}

/// Sends a line and reads back whom the server sees, and the line.
pub(crate) fn exchange(stream: &mut TcpStream) -> std::io::Result<IpAddr> {
    stream.write_all(b"ping\n")?;
    let line = read_line(stream)?;
    let (peer, said) = line
        .split_once(' ')
        .ok_or(std::io::ErrorKind::InvalidData)?;
    assert_eq!(said, "ping");
    Ok(peer
        .parse::<IpAddr>()
        .map_err(std::io::Error::other)?
        .to_canonical())
}

fn read_line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if byte[0] == b'\n' {
            return String::from_utf8(line).map_err(std::io::Error::other);
        }
        line.push(byte[0]);
    }
}

/// Answers every line with the client's address and the line.
fn serve_echo(ns: &PodNetns) {
    let listener = listen(ns, ECHO);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                while let Ok(line) = read_line(&mut stream) {
                    if stream
                        .write_all(format!("{peer} {line}\n").as_bytes())
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
}

/// Speaks first, and closes.
fn serve_first(ns: &PodNetns) {
    let listener = listen(ns, SERVER_FIRST);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(GREETING);
        }
    });
}
