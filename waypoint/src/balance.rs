//! Which endpoint takes a request, and how it is reached.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hbone::{Destination, Expect};
use mesh::balance::{Ask, EndpointStats, Family, NoEndpoint, Place, Readiness, Tries, Why};
use mesh::names::Uid;
use mesh::verdict::waypoint::To;
use mesh::workload::{Tunnel, Workload};
use mesh::world::Snapshot;

use crate::session::Client;
use crate::upstream::{Hop, Unreachable};

/// What the choice depends on besides the endpoints.
pub(crate) struct Asking<'a> {
    pub(crate) client: &'a Client,
    /// Workloads that were tried already.
    pub(crate) avoid: &'a [Uid],
    pub(crate) http2: bool,
}

/// The endpoint that takes a request.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) workload: Arc<Workload>,
    pub(crate) hop: Hop,
    pub(crate) stats: Arc<EndpointStats>,
}

/// Picks an endpoint of `to` that was not tried.
pub(crate) fn pick(
    world: &Snapshot,
    to: &To,
    asking: &Asking<'_>,
    roll: &mut fastrand::Rng,
) -> Result<Chosen, NoEndpoint> {
    let Client {
        address: like,
        workload: client,
        id,
        ..
    } = asking.client;
    let (workload, target, stats) = match to {
        To::Service { service, port } => {
            // Its name may have come after its tunnel.
            let named = || {
                let there = world.workload_at(like.ip().to_canonical())?;
                (there.identity() == *id).then_some(there)
            };
            let known = client.as_ref().or_else(named);
            let ask = Ask {
                family: Some(Family::of(like.ip())),
                client: Some(like.ip()),
                // The client's, not ours: that a waypoint is in between changes nothing of what a Service means.
                place: known
                    .map(|client| Place::of(&client.location))
                    .unwrap_or_default(),
                tried: asking.avoid,
                readiness: Readiness::Ready,
            };
            let choice = world.pick(service, *port, &ask, roll)?;
            (choice.workload, choice.address, choice.stats)
        }
        // The pod itself was asked for: healthy or not.
        To::Workload { workload, port } => {
            let workload = world.workload(&workload.uid).ok_or(NoEndpoint::None)?;
            let same = |ip: &&std::net::IpAddr| ip.is_ipv4() == like.is_ipv4();
            let ip = workload.addresses.iter().find(same);
            let ip = ip.or(workload.addresses.first());
            let ip = ip.ok_or(NoEndpoint::None)?;
            let at = SocketAddr::new(*ip, *port);
            (Arc::clone(workload), at, Arc::default())
        }
    };
    if asking.avoid.contains(&workload.uid) {
        return Err(NoEndpoint::Unhealthy);
    }
    let tunnel = match workload.protocol {
        Tunnel::Awaited => return Err(NoEndpoint::Awaited),
        Tunnel::None => None,
        Tunnel::Hbone => Some(Destination {
            addr: SocketAddr::new(target.ip(), hbone::PORT),
            expect: Expect::one(workload.identity()),
            workload: Arc::from(workload.uid.as_str()),
        }),
    };
    let hop = Hop {
        target,
        uid: workload.uid.clone(),
        workload: Arc::clone(&workload),
        service: to.service().map(|service| service.id.clone()),
        tunnel,
        http2: asking.http2,
    };
    Ok(Chosen {
        workload,
        hop,
        stats,
    })
}

/// The next endpoint to be tried, and why there is none.
pub(crate) fn another(
    tries: &mut Tries,
    why: Why,
    pick: impl FnOnce(&Tries) -> Result<Chosen, NoEndpoint>,
) -> Result<Chosen, NoEndpoint> {
    if !tries.allows(why) {
        return Err(NoEndpoint::Unhealthy);
    }
    let chosen = pick(tries)?;
    tries.begin(chosen.hop.uid.clone(), Arc::clone(&chosen.stats));
    Ok(chosen)
}

/// Tells everybody of this process that an endpoint was not reached, where the reason is the endpoint's.
pub(crate) fn not_reached(chosen: &Chosen, began: Instant, error: &Unreachable) {
    if error.is_endpoints() {
        chosen.stats.failed(began, Instant::now());
    }
    tracing::info!(endpoint = %chosen.hop.uid, code = error.code(), %error, "endpoint not reached");
}
