//! Installs, checks and removes redirection in the current network namespace.
//!
//! Call everything here inside the pod's namespace ([`PodNetns::run`](super::netns::PodNetns::run)).
//!
//! # What is promised
//!
//! * **One step.** All rules are one nftables table, `inet ambit`, and every change replaces it in one
//!   transaction: no packet ever sees half of it, and installing again is repairing.
//! * **Only new connections.** Only a TCP SYN is redirected. The NAT hooks see the first packet that
//!   connection tracking sees, and in a namespace that had no connection tracking that may be from the middle of
//!   a connection; it is not a SYN, so connections opened before enrolment live on.
//! * **Two steps out.** The kernel translates the packets of redirected connections only while there is
//!   a NAT chain. [`stop_redirecting`] empties the NAT chains and keeps them, with the marks and routes
//!   that connections with a spoofed source need; [`remove`] takes all away, for when those connections ended.
//! * **Nobody else's.** Other tables, rules and routes are not touched.
//!
//! # Order
//!
//! Enrol: listeners first, then [`install`]. Un-enrol: [`stop_redirecting`], then listeners once their
//! handshakes are done, then [`remove`] when the last connection is gone (or at once, where connections may break).
//!
//! # Which addresses
//!
//! Captured is what comes to, or leaves from, an address that the mesh knows as the pod's ([`Own`]). Aliases and the
//! addresses of other networks (Multus, a VPN) are left alone: nobody can have them from the mesh, no verdict of it fits
//! them, and ztunnel's own connection would leave by another way.
//!
//! # Who is refused
//!
//! Plaintext to a port of the pod on which nobody listens is left to the kernel, which refuses it: `connect()` fails, as it
//! does without the mesh. A pod that has the right to write rules of its own, and leads such a port to another with them,
//! does so past ztunnel.
//!
//! # The marks
//!
//! ztunnel's own sockets carry [`MARK`]; their packets are never redirected. A
//! connection from ztunnel to the application with the client's address as its source goes out through `lo`; its
//! packets come in from there with the mark, which tags the connection ([`LOOP_MARK`]). The
//! application's replies, addressed to the client, get that tag as their own mark, and a routing rule
//! sends whatever is so marked back through `lo`, to ztunnel.
//!
//! # Kubelet probes
//!
//! No rule is installed on the host. A probe comes from one of the node's addresses, arrives like any plaintext
//! connection at [`INBOUND`], and ztunnel lets through what comes from the node: the namespace's
//! [`gateways`](surroundings::gateways) and the node's addresses as the mesh knows them. A host that does rewrite its
//! probes' source (a stock CNI agent) is respected too: [`PROBE_V4`] and [`PROBE_V6`] are not captured.

mod changes;
mod expr;
mod netlink;
mod routing;
mod rules;
pub mod surroundings;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use changes::Watch;
pub use surroundings::{Families, families};

pub use mesh::ports::{INBOUND, OUTBOUND};

/// Carried by every packet of a socket that ztunnel opened in a pod's namespace, so that it is not captured.
pub const MARK: u32 = 0x539;
/// Where tunnels arrive; never redirected.
pub const HBONE: u16 = 15008;
/// Marks packets that must return to ztunnel through `lo`, and tags the connections they belong to.
pub const LOOP_MARK: u32 = 0x111;
/// The bits of a packet's mark that [`MARK`] and [`LOOP_MARK`] are compared in.
pub const MARK_MASK: u32 = 0xfff;
/// The source a stock host gives to kubelet's IPv4 probes.
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// The source a stock host gives to kubelet's IPv6 probes.
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(
    0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
);

/// What redirection a pod gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Capture IPv4.
    pub ipv4: bool,
    /// Capture IPv6.
    pub ipv6: bool,
    /// Leave plaintext connections to the pod alone (`ambient.istio.io/bypass-inbound-capture`).
    pub bypass_inbound: bool,
    /// What the mesh knows as the pod's.
    pub own: Own,
}

/// The addresses that are captured, in both directions. Where none is known, all are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own([Option<IpAddr>; MAX_OWN]);

/// Kubernetes knows one address of each family; network plugins may give more.
const MAX_OWN: usize = 8;

/// Something that is not as [`install`] leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The whole table is missing.
    NoTable,
    /// A chain is missing, or hooked elsewhere.
    Chain(String),
    /// A chain that is not ours stands in our table.
    ForeignChain(String),
    /// A chain's rules are not ours.
    Rules {
        /// The chain.
        chain: String,
        /// The first rule that differs.
        index: usize,
    },
    /// The routing rule for marked packets is missing.
    RoutingRule(Family),
    /// The route for marked packets is missing.
    Route(Family),
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why the kernel's tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No netlink socket, or it broke.
    #[error("netlink: {0}")]
    Netlink(#[source] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused {what}: {source}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The kernel sent what we cannot read.
    #[error("unreadable netlink message: {0}")]
    Unreadable(String),
}

/// Installs redirection, or repairs it, or changes it to `spec`, in one step.
pub fn install(spec: &Spec) -> Result<(), CaptureError> {
    for family in spec.families() {
        routing::add(family)?;
    }
    rules::redirect(spec).inspect_err(|_| {
        // Without rules nothing is marked, and the routes are only litter.
        if matches!(rules::is_installed(), Ok(false)) {
            let _ = remove_routes();
        }
    })
}

/// Captures no new connection from now on; those already captured live on until [`remove`].
pub fn stop_redirecting(spec: &Spec) -> Result<(), CaptureError> {
    for family in spec.families() {
        routing::add(family)?;
    }
    rules::replace(&rules::draining())
}

/// Leaves nothing of ours in the namespace. Connections that are still redirected break.
pub fn remove() -> Result<(), CaptureError> {
    rules::remove()?;
    remove_routes()?;
    // What was tracked for our sake must not be mistaken for a known connection at the next enrolment, when its
    // addresses and ports may have been used again. Where somebody else tracks connections, it is theirs.
    if !rules::any_table()?
        && !surroundings::has_iptables()
        && let Err(error) = netlink::forget_connections()
    {
        tracing::debug!(%error, "tracked connections stay until they expire");
    }
    Ok(())
}

/// Compares what is installed with what [`install`] would install. Nothing is the good answer.
pub fn verify(spec: &Spec) -> Result<Vec<Difference>, CaptureError> {
    let mut differences = rules::compare(&rules::redirecting(spec))?;
    for family in spec.families() {
        differences.extend(routing::compare(family)?);
    }
    Ok(differences)
}

/// Whether a table of ours is in the namespace, in whatever state: a predecessor may have left it.
pub fn is_installed() -> Result<bool, CaptureError> {
    rules::is_installed()
}

fn remove_routes() -> Result<(), CaptureError> {
    routing::remove(Family::V4)?;
    routing::remove(Family::V6)
}

// === impl Spec ===

impl Spec {
    /// Capture of what the namespace has.
    pub fn for_families(families: Families, own: Own, bypass_inbound: bool) -> Self {
        Self {
            ipv4: families.ipv4,
            ipv6: families.ipv6,
            bypass_inbound,
            own,
        }
    }

    fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let v4 = self.ipv4.then_some(Family::V4);
        let v6 = self.ipv6.then_some(Family::V6);
        v4.into_iter().chain(v6)
    }
}

// === impl Own ===

impl Own {
    /// These alone. More of them than there is room for are none that are known, so that each is captured.
    pub fn of(addresses: &[IpAddr]) -> Self {
        let mut own = Self::default();
        if addresses.len() <= MAX_OWN {
            for (place, address) in own.0.iter_mut().zip(addresses) {
                *place = Some(address.to_canonical());
            }
        }
        own
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().flatten().copied()
    }
}

// === impl Difference ===

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(f, "table inet {} is missing", rules::TABLE),
            Self::Chain(chain) => write!(f, "chain {chain} is missing or hooked elsewhere"),
            Self::ForeignChain(chain) => write!(f, "chain {chain} is not ours"),
            Self::Rules { chain, index } => write!(f, "chain {chain} differs from rule {index} on"),
            Self::RoutingRule(family) => write!(f, "the {family} routing rule is missing"),
            Self::Route(family) => write!(f, "the {family} route is missing"),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
