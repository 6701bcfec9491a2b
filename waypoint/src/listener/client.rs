//! DECISION: who a tunnel's client is, and how much of what the tunnel says about it is believed.
//!
//! Proved are an identity and, by the TCP connection, an address. `forwarded` is a word: it is believed where it names an
//! address of the very pod that sends it, or where the mesh knows the sender to speak for others. Of everybody else the
//! address of the connection counts, and nothing fails. `x-istio-source` is not read at all: any peer can send it.

use std::net::IpAddr;
use std::sync::Arc;

use hbone::{Incoming, Peer};
use mesh::workload::Workload;
use mesh::world::Snapshot;

use crate::session::Client;
use mesh::verdict::waypoint::SelfInfo;

/// Whose address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The connection's: nothing was said, or it is not believed.
    Connection,
    /// What was said is an address of the peer itself, with the application's port.
    Own,
    /// What was said is another client's, for whom the peer may speak.
    Relayed,
}

/// What the mesh knows of a peer, as far as its word depends on it.
#[derive(Clone, Copy, Debug, Default)]
struct Standing<'w> {
    /// All addresses of its workload.
    addresses: &'w [IpAddr],
    /// It may speak for others.
    is_proxy: bool,
}

/// The client of a tunnel, from what the mesh knows now.
pub(crate) fn client(world: &Snapshot, me: &SelfInfo, incoming: &Incoming) -> Client {
    let peer = &incoming.peer;
    let workload = workload(world, peer);
    let standing = workload.map_or(Standing::default(), |workload| Standing {
        addresses: &workload.addresses,
        is_proxy: is_proxy(me, workload),
    });
    let forwarded = incoming.request.forwarded.as_ref();
    let said = forwarded.map_or(peer.addr, |forwarded| forwarded.client);
    let address = match source(peer.addr.ip(), standing, said.ip()) {
        Source::Own | Source::Relayed => said,
        Source::Connection => {
            tracing::debug!(peer = %peer.id, from = %peer.addr, %said, "not the peer's to say");
            peer.addr
        }
    };
    Client {
        id: peer.id.clone(),
        address,
        workload: workload.cloned(),
        baggage: incoming.request.baggage.clone(),
    }
}

/// The workload that a peer is: the one at its connection's address, where its identity is the one that was proved.
pub(crate) fn workload<'w>(world: &'w Snapshot, peer: &Peer) -> Option<&'w Arc<Workload>> {
    let there = world.workload_at(peer.addr.ip().to_canonical())?;
    (there.identity() == peer.id).then_some(there)
}

fn source(connection: IpAddr, standing: Standing<'_>, said: IpAddr) -> Source {
    if said == connection || standing.addresses.contains(&said) {
        Source::Own
    } else if standing.is_proxy {
        Source::Relayed
    } else {
        Source::Connection
    }
}

/// Whether a workload that proved its identity may say in whose name it asks: a pod of this very Gateway.
///
/// Only the controller says who stands behind a Gateway's service: pods of our Deployment of it. That a workload speaks
/// the tunnel itself (`native_tunnel`) is not enough, since any pod may say so of itself by a label, and neither is the
/// Gateway's account, under which others can run. Pods of other Gateways do not ask here: waypoints go to endpoints.
/// When they shall, the controller must tell of each waypoint's service that it is one.
fn is_proxy(me: &SelfInfo, workload: &Workload) -> bool {
    workload.template.native_tunnel && workload.services().any(|(name, _)| *name == me.service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_counts_as_far_as_its_sender_is_known() {
        let ip = |last| IpAddr::from([10, 1, 0, last]);
        let (peer, second, other) = (ip(1), ip(2), ip(3));
        let stranger = Standing::default();
        let own = [peer, second];
        let pod = Standing {
            addresses: &own,
            is_proxy: false,
        };
        let proxy = Standing {
            is_proxy: true,
            ..pod
        };
        let cases = [
            (stranger, peer, Source::Own),
            (stranger, second, Source::Connection),
            (stranger, other, Source::Connection),
            (pod, peer, Source::Own),
            (pod, second, Source::Own),
            (pod, other, Source::Connection),
            (proxy, peer, Source::Own),
            (proxy, second, Source::Own),
            (proxy, other, Source::Relayed),
        ];
        for (standing, said, expected) in cases {
            assert_eq!(
                source(peer, standing, said),
                expected,
                "{standing:?} {said}"
            );
        }
    }
}
