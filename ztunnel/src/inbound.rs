//! The story of a tunnel for a pod: proven peer, judgement, the application dialled, then the answer, bytes, log.

use std::{future::Future, net::SocketAddr, rc::Rc, sync::Arc};

use hbone::{Incoming, Peer, Response, Target, Tunnel};
use mesh::{
    party::Party,
    verdict::{inbound as admit, lease::Lease},
    workload::Workload,
};
use tokio::net::TcpStream;

use crate::{
    access_log,
    failure::Failure,
    proxy::Proxy,
    sessions::{Direction, Session},
    socket,
};

/// A tunnel with the application it is for.
struct Open {
    tunnel: Tunnel,
    app: TcpStream,
    session: Box<Session>,
}

/// Serves one connection to the tunnel port, and every tunnel in it.
pub(crate) async fn serve(proxy: Rc<Proxy>, tcp: TcpStream, client: SocketAddr) {
    let local = match tcp.local_addr() {
        Ok(local) => socket::canonical(local),
        Err(error) => return tracing::debug!(%error, "a tunnel connection was gone at once"),
    };
    let too_many = hbone::Error::TooManyConnections;
    // Until a peer is proven it counts with strangers only, and of those the oldest makes room.
    let accepted = match proxy.unproven.enter() {
        Some(mut ticket) => tokio::select! {
            accepted = proxy.acceptor.accept(tcp) => accepted,
            () = ticket.pushed_out() => Err(too_many),
        },
        None => Err(too_many),
    };
    let mut connection = match accepted {
        Ok(connection) => connection,
        Err(error) => return refused(&proxy, client, local, &error),
    };
    let Some(_room) = proxy.tunnel_room() else {
        return refused(&proxy, client, local, &hbone::Error::TooManyConnections);
    };
    let mut draining = false;
    loop {
        tokio::select! {
            next = connection.next() => match next {
                Some(Ok(incoming)) => {
                    // In memory of its own, which an open tunnel does not keep.
                    let opening = Box::pin(open(proxy.clone(), incoming, local));
                    proxy.spawn(serve_tunnel(opening));
                }
                Some(Err(error)) => {
                    tracing::debug!(%client, %error, "a tunnel connection ended");
                    break;
                }
                None => break,
            },
            () = proxy.draining(), if !draining => {
                draining = true;
                connection.drain();
            }
        }
    }
}

/// Nobody was proven: there is no connection to account for, only a reason to tell.
fn refused(proxy: &Proxy, client: SocketAddr, local: SocketAddr, error: &hbone::Error) {
    proxy.shared.metrics.handshake_refused(error.code());
    let Some(pass) = access_log::handshake_line() else {
        return;
    };
    tracing::warn!(
        target: "access",
        {
            src.addr = %client,
        dst.addr = %local,
        dst.workload = &*proxy.pod().name,
        dst.namespace = &*proxy.pod().namespace,
        direction = "inbound",
        reason = error.code(),
        error = %error,
        unlogged = pass.unlogged,
        },
        "tunnel connection refused"
    );
}

/// Relays what was opened, to its end.
async fn serve_tunnel(opening: impl Future<Output = Option<Open>>) {
    if let Some(Open {
        tunnel,
        app,
        session,
    }) = opening.await
    {
        let relay = tunnel.relay(app, session.meter());
        let ending = session.ending();
        let outcome = ending.unless_revoked(relay, session.meter()).await;
        session.finish(&outcome);
    }
}

/// Answers a request; where it could not be granted, all has been said.
async fn open(proxy: Rc<Proxy>, incoming: Incoming, local: SocketAddr) -> Option<Open> {
    let record = proxy.own_record();
    let own = proxy.own_party(record.as_deref());
    let client = client_party(&proxy, &incoming);
    let (mut session, room) =
        proxy
            .sessions
            .open(Direction::Tunnel, incoming.peer.addr, client, own);
    session.info.dst = Some(local);
    session.info.tunnelled = Some(incoming.request.target.clone());
    session.info.trace = incoming.request.traceparent;
    session.info.encrypted = true;
    let app = match room {
        Ok(()) => dial_app(&proxy, &incoming, local, record, &mut session).await,
        Err(full) => Err(full),
    };
    let app = match app {
        Ok(app) => app,
        Err(failure) => {
            incoming.reject(failure.refusal());
            session.finish(&Err(failure));
            return None;
        }
    };
    let response = Response {
        baggage: session.info.destination.baggage(),
    };
    match incoming.accept(response) {
        Ok(tunnel) => {
            session.established();
            Some(Open {
                tunnel,
                app,
                session: Box::new(session),
            })
        }
        Err(error) => {
            socket::reset(app);
            session.finish(&Err(error.into()));
            None
        }
    }
}

/// Judges, and only then dials: the peer hears 200 when the application is really there.
async fn dial_app(
    proxy: &Proxy,
    incoming: &Incoming,
    local: SocketAddr,
    record: Option<Arc<Workload>>,
    session: &mut Session,
) -> Result<TcpStream, Failure> {
    let (peer, target) = (&incoming.peer, &incoming.request.target);
    let entry = proxy.shared.world.look(|world| {
        let entry = admit::tunnel(peer, target, local.ip(), proxy.pod(), world)?;
        session.stands_on(Lease::of_peer(peer), world)?;
        Ok::<_, Failure>(entry)
    })?;
    session.info.service = entry.service;
    let to = entry.admitted.to();
    if session.info.service.is_none() {
        session.info.service = forwarded_service(proxy, incoming, record.as_deref());
    }
    session.info.tunnelled = Some(Target::Addr(to));
    proxy.dial(to, entry.admitted.from()).await
}

/// Who is calling: proven, and described by the mesh where it knows the address as that identity's.
fn client_party(proxy: &Proxy, incoming: &Incoming) -> Party {
    let Peer { id, addr } = &incoming.peer;
    let known = proxy.shared.world.look(|world| {
        world
            .workload_at(addr.ip().to_canonical())
            .filter(|w| w.identity() == *id)
            .cloned()
    });
    Party::of_peer(known.as_deref(), id.clone())
}

/// For logs and metrics only: the service the client says it dialled, if this pod stands behind it.
fn forwarded_service(
    proxy: &Proxy,
    incoming: &Incoming,
    record: Option<&Workload>,
) -> Option<Arc<mesh::service::Service>> {
    let host = incoming.request.forwarded.as_ref()?.host.as_ref()?;
    let (name, _) = record?
        .services()
        .find(|(name, _)| name.hostname == *host)?;
    proxy
        .shared
        .world
        .look(|world| world.service(name).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle tunnel costs, besides its sockets.
    #[test]
    fn a_tunnel_is_small() {
        let size = size_of_val(&serve_tunnel(Box::pin(async { None })));
        assert!(size <= 256, "{size}");
    }
}
