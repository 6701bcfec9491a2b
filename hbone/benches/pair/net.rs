//! Networks of our own, as a cluster has them: two pods on two nodes, veth pairs between them, redirection
//! in the pods as the mesh installs it, and routing with connection tracking on the nodes.
//!
//! What a TCP connection costs decides what a tunnel may cost beside a relay. On bare loopback it
//! costs half of what it costs there, where NAT and connection tracking see every packet.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Uid;

use crate::Result;

const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const TW_REUSE: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";
const TIME_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";

/// Whom clients call.
const APP: &str = "10.77.2.2:8080";

/// The rules of a pod: new connections to the captured port go to the near end, and NAT, marks and
/// connection tracking see all others too, without changing them.
const POD: &str = "
table inet bench {
  chain mark_in { type filter hook prerouting priority -150; meta mark and 0xfff == 0x539 ct mark set 0x111; }
  chain mark_out { type route hook output priority -150; ct mark 0x111 meta mark set ct mark; }
  chain nat_in { type nat hook prerouting priority -100; tcp flags & (syn|ack) == syn tcp dport != 15008 redirect to :15006; }
  chain nat_out { type nat hook output priority -100; tcp flags & (syn|ack) == syn tcp dport CAPTURED redirect to :15001; }
}";

/// The rules of a node: what is known passes, what is new is looked at for a service's address.
const NODE: &str = "
table inet bench {
  chain service { type nat hook prerouting priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat ip to 10.77.0.9:6443; }
  chain forward { type filter hook forward priority 0; ct state established,related accept; ct state invalid drop; }
}";

/// Where the measured processes live.
pub(crate) enum Net {
    /// Two pods on two nodes.
    Pods { pods: [File; 2], nodes: [File; 2] },
    /// One loopback, our own or, without root, the host's.
    Loopback { own: bool },
}

/// What a process is told of its network.
pub(crate) struct Place {
    /// The namespace to enter, if it is not the parent's.
    pub(crate) namespace: Option<String>,
    /// What it binds, if it listens.
    pub(crate) bind: &'static str,
}

// === impl Net ===

impl Net {
    /// Makes it. `BENCH_NET=loopback` asks for the plain one.
    pub(crate) fn make() -> Result<Self> {
        let plain = std::env::var("BENCH_NET").is_ok_and(|net| net == "loopback");
        if !Uid::effective().is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return Ok(Self::Loopback { own: false });
        }
        prepare()?;
        if plain {
            return Ok(Self::Loopback { own: true });
        }
        let namespace = |rules: &str| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            prepare()?;
            nft(rules)?;
            Ok(File::open("/proc/self/ns/net")?)
        };
        let nodes = [namespace(NODE)?, namespace(NODE)?];
        // The far end's own connections are not captured: nobody calls its port 9.
        let pods = [
            namespace(&POD.replace("CAPTURED", "8080"))?,
            namespace(&POD.replace("CAPTURED", "9"))?,
        ];
        let [near_node, far_node] = &nodes;
        link(
            (near_node, "eth0", "10.77.0.1/24"),
            (far_node, "eth0", "10.77.0.2/24"),
        )?;
        link(
            (near_node, "pod0", "10.77.1.1/24"),
            (&pods[0], "eth0", "10.77.1.2/24"),
        )?;
        link(
            (far_node, "pod0", "10.77.2.1/24"),
            (&pods[1], "eth0", "10.77.2.2/24"),
        )?;
        route(near_node, "10.77.2.0/24 via 10.77.0.2")?;
        route(far_node, "10.77.1.0/24 via 10.77.0.1")?;
        route(&pods[0], "default via 10.77.1.1")?;
        route(&pods[1], "default via 10.77.2.1")?;
        Ok(Self::Pods { pods, nodes })
    }

    /// Where a role lives.
    pub(crate) fn place(&self, role: &str) -> Place {
        let (near, far) = match self {
            Self::Pods {
                pods: [near, far], ..
            } => (Some(path(near)), Some(path(far))),
            Self::Loopback { .. } => {
                return Place {
                    namespace: None,
                    bind: "127.0.0.1:0",
                };
            }
        };
        let (namespace, bind) = match role {
            "near" => (near, "127.0.0.1:15001"),
            "far" => (far, "10.77.2.2:15008"),
            "app" => (far, APP),
            "direct-app" => (far, "10.77.2.2:8079"),
            "direct-load" => (far, ""),
            _ => (near, ""),
        };
        Place { namespace, bind }
    }

    /// Whom a client calls to reach the application through a near end that listens at `near`.
    pub(crate) fn front(&self, near: &str) -> String {
        match self {
            Self::Pods { .. } => APP.to_owned(),
            Self::Loopback { .. } => near.to_owned(),
        }
    }

    /// In words.
    pub(crate) fn told(&self) -> &'static str {
        match self {
            Self::Pods { .. } => {
                "two pods on two nodes, all network namespaces: redirection, NAT and connection tracking in the pods, \
                 routing and connection tracking on the nodes"
            }
            Self::Loopback { own: true } => "bare loopback in a network namespace of its own",
            Self::Loopback { own: false } => "the host's loopback, for want of root",
        }
    }

    /// The congestion controls to measure under: BBR and a loss-based one, as far as there are.
    pub(crate) fn controls(&self) -> Result<Vec<String>> {
        if let Self::Loopback { own: false } = self {
            return Ok(vec![fs::read_to_string(CONGESTION)?.trim().to_owned()]);
        }
        if let Ok(names) = std::env::var("BENCH_CC") {
            return Ok(names.split([',', ' ']).map(str::to_owned).collect());
        }
        // A namespace may choose among these only.
        let allowed = fs::read_to_string(ALLOWED)?;
        let has = |name: &&str| allowed.split_whitespace().any(|one| one == *name);
        let paced = ["bbr"].into_iter().find(has);
        let loss_based = ["cubic", "reno"].into_iter().find(has);
        Ok(paced
            .into_iter()
            .chain(loss_based)
            .map(str::to_owned)
            .collect())
    }

    /// Sets the congestion control of everything that is started from now on.
    pub(crate) fn control(&self, name: &str) -> Result<()> {
        let write = || fs::write(CONGESTION, name).map_err(|e| format!("{name}: {e}"));
        match self {
            Self::Loopback { own: false } => {}
            Self::Loopback { own: true } => write()?,
            Self::Pods { pods, nodes } => {
                for namespace in pods.iter().chain(nodes) {
                    setns(namespace, CloneFlags::CLONE_NEWNET)?;
                    write()?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a process is in the network it was told of; enters it.
pub(crate) fn enter(namespace: &str) -> Result<()> {
    Ok(setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?)
}

/// What every namespace of ours needs.
fn prepare() -> Result<()> {
    ip("link set lo up")?;
    // 20 000 connections from one address to one port need that many.
    fs::write(PORTS, "16000 65535")?;
    fs::write(FORWARD, "1")?;
    // Connections that were closed a moment ago hold no port: else a dial searches them all.
    fs::write(TW_REUSE, "1")?;
    // Closed connections of earlier rounds shall not fill the table. Absent without the module.
    let _ = fs::write(TIME_WAIT, "1");
    Ok(())
}

/// A veth pair between two namespaces: name and address at each end.
fn link(one: (&File, &str, &str), other: (&File, &str, &str)) -> Result<()> {
    setns(one.0, CloneFlags::CLONE_NEWNET)?;
    let peer = format!("peer name {} netns {}", other.1, path(other.0));
    ip(&format!("link add {} type veth {peer}", one.1))?;
    for (namespace, name, address) in [one, other] {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        ip(&format!("addr add {address} dev {name}"))?;
        ip(&format!("link set {name} up"))?;
    }
    Ok(())
}

fn route(namespace: &File, route: &str) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    ip(&format!("route add {route}"))
}

fn nft(rules: &str) -> Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    match nft.wait()?.success() {
        true => Ok(()),
        false => Err("nft refused its rules".into()),
    }
}

fn ip(arguments: &str) -> Result<()> {
    match Command::new("ip")
        .args(arguments.split(' '))
        .status()?
        .success()
    {
        true => Ok(()),
        false => Err(format!("ip {arguments} failed").into()),
    }
}

/// How another process names a file of ours.
fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}
