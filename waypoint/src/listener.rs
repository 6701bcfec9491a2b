//! STORY: a client's connection → who it is → its tunnels → what each is for → HTTP or opaque.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hbone::{Connection, Incoming, Peer, Response};
use mesh::workload::Workload;
use mesh::world::Snapshot;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::lookups::{Hope, NAMED_WITHIN};
use crate::proxy::{Core, Phase};
use crate::session::{Client, Session, To};
use crate::{access_log, http, opaque};
use admit::{Admitted, NotAdmitted, admit};

pub(crate) mod admit;

/// Client connections of one core: more would be a leak or an attack, and each costs memory.
const MAX_CONNECTIONS: usize = 16 * 1024;

/// A client may hear of a binding before we do; its tunnel waits this long for us to catch up.
const BINDING_KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// After a failed accept (out of descriptors) the next one waits, so that the core does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the process closes, then waits until every connection has ended.
pub(crate) async fn serve(core: Rc<Core>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut phase = core.phase();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn_local(connection(Rc::clone(&core), tcp));
                }
                Ok((_, from)) => tracing::warn!(%from, "too many connections: closed"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(core: Rc<Core>, tcp: TcpStream) {
    let from = tcp.peer_addr();
    let connection = match core.acceptor.accept(tcp).await {
        Ok(connection) => connection,
        Err(error) => {
            core.metrics.refused_connection(error.code());
            tracing::warn!(?from, code = error.code(), %error, "connection refused");
            return;
        }
    };
    tunnels(&core, connection).await;
}

/// Serves all tunnels of one connection.
async fn tunnels(core: &Rc<Core>, mut connection: Connection) {
    let mut running = JoinSet::new();
    let mut phase = core.phase();
    // Whoever connects while we drain has nowhere better to go yet: it is served until we close.
    let mut seen = *phase.borrow_and_update();
    loop {
        tokio::select! {
            next = connection.next() => match next {
                Some(Ok(incoming)) => {
                    running.spawn_local(tunnel(Rc::clone(core), incoming));
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %connection.peer().id, %error, "connection lost");
                    break;
                }
                None => break,
            },
            Some(_) = running.join_next() => {}
            Ok(now) = changed(&mut phase, seen) => {
                seen = now;
                connection.drain();
            }
        }
    }
    // Nothing can reach these any more; they see the end of their tunnels and write their logs.
    while running.join_next().await.is_some() {}
}

/// The phase, once it is another than `seen`.
async fn changed(
    phase: &mut tokio::sync::watch::Receiver<Phase>,
    seen: Phase,
) -> Result<Phase, tokio::sync::watch::error::RecvError> {
    phase.wait_for(|now| *now != seen).await.map(|now| *now)
}

async fn tunnel(core: Rc<Core>, incoming: Incoming) {
    let client = core.world.look(|world| client(world, &incoming));
    let admitted = match admitted(&core, &incoming).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            let refusal = refused.refusal();
            access_log::refused(&client, &incoming.request.target, &refusal);
            core.metrics.refused_tunnel(&refusal.code);
            incoming.reject(refusal);
            return;
        }
    };
    let session = Rc::new(Session {
        client: named(&core, &incoming, client).await,
        to: admitted.to().clone(),
        authority: incoming.request.target.clone(),
        trace: incoming.request.traceparent,
    });
    if admitted.is_http() {
        match incoming.accept(Response::default()) {
            Ok(tunnel) => http::serve(core, session, tunnel.into_io()).await,
            Err(error) => tracing::debug!(peer = %session.client.id, %error, "tunnel lost"),
        }
    } else {
        opaque::serve(core, session, incoming).await;
    }
}

/// Judges now, and again on every change for a short while where a change may help.
async fn admitted(core: &Core, incoming: &Incoming) -> Result<Admitted, NotAdmitted> {
    let deadline = Instant::now() + BINDING_KNOWN_WITHIN;
    let mut changes = core.world.changed();
    loop {
        let target = &incoming.request.target;
        let judged = core
            .world
            .look(|world| admit(world, &core.me, target, |name| core.bound.lately(name)));
        match judged {
            Ok(admitted) => {
                if let To::Service { service, .. } = admitted.to()
                    && service.waypoint.is_some()
                {
                    core.bound.seen(&service.id);
                }
                return Ok(admitted);
            }
            Err(refused) if !refused.may_change() => return Err(refused),
            Err(refused) => match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                // Too late, or nothing will ever change again.
                Err(_) | Ok(Err(_)) => return Err(refused),
            },
        }
    }
}

/// The client with its workload, if that can be known soon. Telemetry needs it, and Services whose endpoints are to be
/// near their clients.
///
/// It is asked for by the address that its connection comes from. The one that it claims may be anybody's, and is its
/// own where it is one of the same workload.
async fn named(core: &Core, incoming: &Incoming, client: Client) -> Client {
    let peer = &incoming.peer;
    let mut changes = core.world.changed();
    let deadline = Instant::now() + NAMED_WITHIN;
    let is_known = || {
        core.world
            .look(|world| workload(world, peer.addr, peer).is_some())
    };
    let Some(hope) = core.clients.met(peer, is_known()) else {
        return client;
    };
    if timeout_at(deadline, hope).await != Ok(Ok(Hope::Soon)) {
        return client;
    }
    while !is_known() {
        let Ok(Ok(())) = timeout_at(deadline, changes.changed()).await else {
            return client;
        };
    }
    core.world.look(|world| self::client(world, incoming))
}

fn client(world: &Snapshot, incoming: &Incoming) -> Client {
    let said = incoming
        .request
        .forwarded
        .as_ref()
        .map(|forwarded| forwarded.client);
    let address = said.unwrap_or(incoming.peer.addr);
    Client {
        id: incoming.peer.id.clone(),
        address,
        workload: workload(world, address, &incoming.peer).cloned(),
        baggage: incoming.request.baggage.clone(),
    }
}

/// The workload at an address, where its identity is the one that the peer proved.
fn workload<'w>(world: &'w Snapshot, at: SocketAddr, peer: &Peer) -> Option<&'w Arc<Workload>> {
    let there = world.workload_at(at.ip().to_canonical())?;
    (there.identity() == peer.id).then_some(there)
}
