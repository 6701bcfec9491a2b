//! The story of a connection that leaves a pod: original destination, decision, tunnel or plain, bytes, log.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use hbone::{Forwarded, Opened, PlainRelay, Request, TraceParent, Tunnel};
use mesh::{
    balance::{EndpointStats, InFlight, Place},
    names::Uid,
    party::Party,
    verdict::{
        OrigDst,
        lease::{Lease, Revoked},
        outbound::{NextHop, Route, Source, decide},
    },
    workload::Workload,
};
use tokio::net::TcpStream;

use crate::{
    failure::Failure,
    proxy::Proxy,
    sessions::{Direction, Session},
    socket,
};

/// Endpoints that one connection may try: an application's own connect rarely has more patience.
const MOST_TRIES: usize = 3;

/// The way that was opened.
enum Way {
    Tunnel(Tunnel),
    Plain(TcpStream),
}

/// Serves one captured connection to its end.
pub(crate) async fn serve(proxy: Rc<Proxy>, app: TcpStream, client: SocketAddr) {
    let record = proxy.own_record();
    let own = proxy.own_party(record.as_deref());
    let (mut session, room) =
        proxy
            .sessions
            .open(Direction::Outbound, client, own, Party::default());
    let way = match room {
        // In memory of its own, which an open connection does not keep.
        Ok(()) => Box::pin(open(&proxy, &app, client, record.as_deref(), &mut session)).await,
        Err(full) => Err(full),
    };
    let outcome = match way {
        Ok((way, _in_flight)) => {
            session.established();
            let (meter, ending) = (session.meter(), session.ending());
            match way {
                Way::Tunnel(tunnel) => {
                    let relay = tunnel.relay(app, meter);
                    ending.unless_revoked(relay, meter).await
                }
                Way::Plain(upstream) => {
                    let relay = PlainRelay::new(app, upstream, meter);
                    ending.unless_revoked(relay, meter).await
                }
            }
        }
        Err(failure) => {
            socket::reset(app);
            Err(failure)
        }
    };
    session.finish(&outcome);
}

/// Finds the destination and opens the way there, at another endpoint where the first does not answer.
async fn open(
    proxy: &Proxy,
    app: &TcpStream,
    client: SocketAddr,
    record: Option<&Workload>,
    session: &mut Session,
) -> Result<(Way, Option<InFlight>), Failure> {
    let dst = socket::original_dst(app).map_err(Failure::OriginalDestination)?;
    session.info.dst = Some(dst.0);
    let accepted = app.local_addr().map_err(Failure::OriginalDestination)?;
    let accepted = socket::canonical(accepted);
    let mut tried: Vec<Uid> = Vec::new();
    let mut last = None;
    loop {
        let source = Source {
            pod: proxy.pod(),
            record,
            client: client.ip(),
            accepted,
            place: Place {
                node: &proxy.shared.node,
                ..record.map(|r| Place::of(&r.location)).unwrap_or_default()
            },
        };
        let route = proxy
            .shared
            .world
            .look(|world| decide(source, dst, world, &tried))?;
        let endpoint = route.to.as_ref().map(|w| w.uid.clone());
        if let Some(failure) = last.take()
            && endpoint.as_ref().is_none_or(|uid| tried.contains(uid))
        {
            // The mesh knows no other.
            return Err(failure);
        }
        let in_flight = route.chosen.as_ref().map(EndpointStats::begin);
        let for_others = route.to.as_ref().is_some_and(|w| w.template.native_tunnel);
        let began = Instant::now();
        let way = try_route(proxy, client, dst, route, session).await;
        if let Some(in_flight) = &in_flight {
            note(in_flight, began, &way, for_others);
        }
        match (way, endpoint) {
            (Err(failure), Some(uid))
                if failure.may_try_another() && tried.len() + 1 < MOST_TRIES =>
            {
                tracing::debug!(%failure, "trying another endpoint");
                tried.push(uid);
                last = Some(failure);
            }
            (way, _) => return way.map(|way| (way, in_flight)),
        }
    }
}

/// Whether the endpoint was reached, for everybody else of this process. How long it took says nothing of the endpoint:
/// a new tunnel takes a handshake, and an open one none.
///
/// One that tunnels for others, as a waypoint does, refuses for what is behind it.
fn note(in_flight: &InFlight, began: Instant, way: &Result<Way, Failure>, for_others: bool) {
    match way {
        Ok(_) => in_flight.stats().reached(Instant::now()),
        Err(Failure::Tunnel(hbone::Error::Refused(_))) if for_others => {}
        Err(failure) if failure.is_unreachable() => {
            in_flight.stats().failed(began, Instant::now());
        }
        Err(_) => {}
    }
}

async fn try_route(
    proxy: &Proxy,
    client: SocketAddr,
    dst: OrigDst,
    route: Route,
    session: &mut Session,
) -> Result<Way, Failure> {
    let info = &mut session.info;
    info.destination = route.to.as_deref().map(Party::of).unwrap_or_default();
    info.service = route.service;
    match route.hop {
        NextHop::Plain(to) => {
            info.dst = Some(to);
            let upstream = proxy.dial(to, None).await?;
            // A pod is there for itself whatever the mesh knows of it.
            let other = route.to.filter(|_| !proxy.pod().owns(to.ip()));
            stand_on(proxy, session, other.as_deref(), to)?;
            Ok(Way::Plain(upstream))
        }
        NextHop::Tunnel {
            destination,
            target,
        } => {
            info.dst = Some(destination.addr);
            info.tunnelled = Some(target.clone());
            let trace = *info.trace.get_or_insert_with(TraceParent::random);
            let request = Request {
                forwarded: Some(Forwarded {
                    client,
                    host: info.service.as_ref().map(|s| s.id.hostname.clone()),
                }),
                baggage: info.source.baggage(),
                traceparent: Some(trace),
                ..Request::to(target)
            };
            if let Some(to) = &route.to {
                proxy.dialled(&to.uid);
            }
            tracing::debug!(%client, dst = %dst.0, via = %destination.addr, "opening a tunnel");
            let Opened { tunnel, peer, .. } = proxy.pool.open(&destination, &request).await?;
            info.encrypted = true;
            info.destination = std::mem::take(&mut info.destination).proven(peer);
            stand_on(proxy, session, route.to.as_deref(), destination.addr)?;
            Ok(Way::Tunnel(tunnel))
        }
    }
}

/// From here on the connection stands on the workload at its other end, where the mesh knows one.
fn stand_on(
    proxy: &Proxy,
    session: &Session,
    to: Option<&Workload>,
    at: SocketAddr,
) -> Result<(), Revoked> {
    let Some(to) = to else { return Ok(()) };
    let lease = Lease::of_endpoint(to, at.ip());
    let world = &proxy.shared.world;
    world.look(|world| session.stands_on(lease, world))
}
