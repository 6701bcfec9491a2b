//! The story of a connection that leaves a pod: original destination, decision, tunnel or plain, bytes, log.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use hbone::{Forwarded, Opened, PlainRelay, Request, TraceParent, Tunnel};
use mesh::{
    balance::{EndpointStats, InFlight, Place, Tries, Why, reach},
    names::Uid,
    party::Party,
    verdict::{
        lease::Lease,
        outbound::{NextHop, Refusal, Route, Source, decide},
    },
    workload::Workload,
};
use tokio::net::TcpStream;

use crate::{
    connection::Hop,
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

/// Whose connection it is.
struct Downstream<'a> {
    proxy: &'a Proxy,
    client: SocketAddr,
    party: &'a Party,
    trace: TraceParent,
}

/// An endpoint that was reached.
struct OpenedWay {
    way: Way,
    /// What it stands on.
    lease: Option<Lease>,
    hop: Hop,
    in_flight: Option<InFlight>,
}

/// An endpoint that was not.
struct Unopened {
    why: Failure,
    hop: Hop,
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
    let source = Source {
        pod: proxy.pod(),
        record,
        client: client.ip(),
        accepted: socket::canonical(accepted),
        place: Place {
            node: &proxy.shared.node,
            ..record.map(|r| Place::of(&r.location)).unwrap_or_default()
        },
    };
    let from = Downstream {
        proxy,
        client,
        party: &session.info.source,
        trace: TraceParent::random(),
    };
    let (mut tries, mut none) = (Tries::new(MOST_TRIES), None);
    let next = |why| {
        let route = another(&mut tries, why, |tried| {
            let world = &proxy.shared.world;
            world.look(|world| decide(source, dst, world, tried))
        });
        match route.transpose()? {
            Ok(route) => Some(attempt(&from, route)),
            Err(refusal) => {
                none = Some(refusal);
                None
            }
        }
    };
    let opened = reach(next, |failed: &Unopened| !failed.why.may_try_another()).await;
    match opened {
        Ok(opened) => {
            session.info.note(opened.hop);
            if let Some(lease) = opened.lease {
                let world = &proxy.shared.world;
                world.look(|world| session.stands_on(lease, world))?;
            }
            Ok((opened.way, opened.in_flight))
        }
        Err(Some(failed)) => {
            session.info.note(failed.hop);
            Err(failed.why)
        }
        // Nothing was tried, because there is no way to begin with.
        Err(None) => Err(none.map_or(Failure::Ended, Failure::Route)),
    }
}

/// Where the connection goes next, for this reason; nothing where the mesh knows no other endpoint.
fn another(
    tries: &mut Tries,
    why: Why,
    decide: impl FnOnce(&[Uid]) -> Result<Route, Refusal>,
) -> Result<Option<Route>, Refusal> {
    if !tries.allows(why) {
        return Ok(None);
    }
    let route = decide(tries.tried())?;
    match &route.to {
        Some(to) if tries.tried().contains(&to.uid) => return Ok(None),
        Some(to) => tries.begin(to.uid.clone(), route.chosen.clone().unwrap_or_default()),
        // What the mesh does not know is one address.
        None if why == Why::First => {}
        None => return Ok(None),
    }
    Ok(Some(route))
}

/// Goes one way; whether the endpoint was reached is told to everybody else of this process.
async fn attempt(from: &Downstream<'_>, route: Route) -> Result<OpenedWay, Unopened> {
    let in_flight = route.chosen.as_ref().map(EndpointStats::begin);
    let for_others = route.to.as_ref().is_some_and(|w| w.template.native_tunnel);
    let began = Instant::now();
    let mut hop = Hop {
        destination: route.to.as_deref().map(Party::of).unwrap_or_default(),
        service: route.service,
        ..Hop::default()
    };
    let way = try_hop(from, route.hop, route.to.as_deref(), &mut hop).await;
    if let Some(in_flight) = &in_flight {
        note(in_flight, began, &way, for_others);
    }
    match way {
        Ok((way, lease)) => Ok(OpenedWay {
            way,
            lease,
            hop,
            in_flight,
        }),
        Err(why) => Err(Unopened { why, hop }),
    }
}

/// Whether the endpoint was reached, for everybody else of this process. How long it took says nothing of the endpoint:
/// a new tunnel takes a handshake, and an open one none.
///
/// One that tunnels for others, as a waypoint does, refuses for what is behind it.
fn note<T>(in_flight: &InFlight, began: Instant, way: &Result<T, Failure>, for_others: bool) {
    match way {
        Ok(_) => in_flight.stats().reached(Instant::now()),
        Err(Failure::Tunnel(hbone::Error::Refused(_))) if for_others => {}
        Err(failure) if failure.is_unreachable() => {
            in_flight.stats().failed(began, Instant::now());
        }
        Err(_) => {}
    }
}

async fn try_hop(
    from: &Downstream<'_>,
    next: NextHop,
    to: Option<&Workload>,
    hop: &mut Hop,
) -> Result<(Way, Option<Lease>), Failure> {
    let Downstream {
        proxy,
        client,
        party,
        trace,
    } = *from;
    match next {
        NextHop::Plain(addr) => {
            hop.dst = Some(addr);
            let plain = proxy.dial(addr, None).await?;
            // A pod is there for itself whatever the mesh knows of it.
            let other = to.filter(|_| !proxy.pod().owns(addr.ip()));
            let lease = other.map(|to| Lease::of_endpoint(to, addr.ip()));
            Ok((Way::Plain(plain), lease))
        }
        NextHop::Tunnel {
            destination,
            target,
        } => {
            hop.dst = Some(destination.addr);
            hop.tunnelled = Some(target.clone());
            hop.trace = Some(trace);
            let request = Request {
                forwarded: Some(Forwarded {
                    client,
                    host: hop.service.as_ref().map(|s| s.id.hostname.clone()),
                }),
                baggage: party.baggage(),
                traceparent: Some(trace),
                ..Request::to(target)
            };
            if let Some(to) = to {
                proxy.dialled(&to.uid);
            }
            tracing::debug!(%client, via = %destination.addr, "opening a tunnel");
            let Opened { tunnel, peer, .. } = proxy.pool.open(&destination, &request).await?;
            hop.proven(peer);
            let lease = to.map(|to| Lease::of_endpoint(to, destination.addr.ip()));
            Ok((Way::Tunnel(tunnel), lease))
        }
    }
}
