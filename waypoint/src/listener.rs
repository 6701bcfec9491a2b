//! STORY: a client's connection → who it is → its tunnels → what each is for → HTTP or opaque.

use std::rc::Rc;
use std::time::Duration;

use hbone::{Connection, Incoming, Refusal, Response};
use mesh::verdict::lease::Lease;
use mesh::verdict::waypoint::{Admitted, NotAdmitted, To, admit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::budget::{Account, Place, Resource};
use crate::cut::Cut;
use crate::limits::TURNED_AWAY;
use crate::lookups::{Hope, NAMED_WITHIN};
use crate::proxy::{Core, Phase};
use crate::session::{Client, Session};
use crate::{access_log, http, opaque};
use client::{client, workload};

mod client;

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
                Ok((tcp, _)) => {
                    connections.spawn_local(connection(Rc::clone(&core), tcp));
                }
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

/// Proves whose a connection is, and serves it. Until then, and when it is turned away, it counts with strangers only.
async fn connection(core: Rc<Core>, tcp: TcpStream) {
    let from = tcp.peer_addr();
    let Some(mut ticket) = core.unproven.enter() else {
        let code = "handshakes_full";
        core.metrics.refused_connection(code);
        let error = "too many have not proved themselves, and all have just come";
        return access_log::refused_connection(from.ok(), code, error);
    };
    let accepted = tokio::select! {
        accepted = core.acceptor.accept(tcp) => accepted,
        () = ticket.pushed_out() => {
            let code = "handshake_pushed_out";
            core.metrics.refused_connection(code);
            let error = "too many have not proved themselves, and this one is the oldest";
            access_log::refused_connection(from.ok(), code, error);
            return;
        }
    };
    let connection = match accepted {
        Ok(connection) => connection,
        Err(error) => {
            core.metrics.refused_connection(error.code());
            access_log::refused_connection(from.ok(), error.code(), &error);
            return;
        }
    };
    let account = core.budgets.account(&connection.peer().id);
    match account.take(Resource::Connections) {
        Ok(_place) => {
            drop(ticket);
            tunnels(&core, &account, connection).await;
        }
        Err(exhausted) => {
            let refusal = exhausted.refusal();
            core.metrics.refused_connection(&refusal.code);
            access_log::refused_connection(from.ok(), &refusal.code, &refusal.reason);
            tokio::select! {
                () = turn_away(&core, connection, &refusal) => {}
                () = ticket.pushed_out() => {}
            }
        }
    }
}

/// Tells a client why it is not served, as an answer to the tunnels that it asks for at once.
async fn turn_away(core: &Core, mut connection: Connection, refusal: &Refusal) {
    let told = async {
        while let Some(Ok(incoming)) = connection.next().await {
            refuse(core, incoming, refusal.clone());
        }
    };
    // Whoever asks later finds it closed.
    let _ = timeout(TURNED_AWAY, told).await;
}

/// Refuses a tunnel, logged and counted.
fn refuse(core: &Core, incoming: Incoming, refusal: Refusal) {
    let client = core.world.look(|world| client(world, &core.me, &incoming));
    access_log::refused(&client, &incoming.request.target, &refusal);
    core.metrics.refused_tunnel(&refusal.code);
    incoming.reject(refusal);
}

/// Serves all tunnels of one connection.
async fn tunnels(core: &Rc<Core>, account: &Rc<Account>, mut connection: Connection) {
    let mut running = JoinSet::new();
    let cut = Cut::default();
    let lease = Lease::of_peer(connection.peer());
    // Of somebody who is just coming there is nothing to hold against.
    let Ok(mut lease) = core
        .world
        .look(|world| core.leases.hold(lease, None, world))
    else {
        return;
    };
    let mut phase = core.phase();
    // Whoever connects while we drain has nowhere better to go yet: it is served until we close.
    let mut seen = *phase.borrow_and_update();
    loop {
        tokio::select! {
            next = connection.next() => match next {
                Some(Ok(incoming)) => match account.take(Resource::Tunnels) {
                    Ok(place) => {
                        running.spawn_local(tunnel(Rc::clone(core), place, cut.clone(), incoming));
                    }
                    Err(exhausted) => refuse(core, incoming, exhausted.refusal()),
                },
                Some(Err(error)) => {
                    cut.failed(&error);
                    tracing::debug!(peer = %connection.peer().id, %error, "connection lost");
                    break;
                }
                None => break,
            },
            Some(_) = running.join_next() => {}
            revoked = lease.ended() => {
                tracing::info!(peer = %connection.peer().id, reason = revoked.code(), "client cut off: {revoked}");
                cut.revoked(&revoked);
                break;
            }
            Ok(now) = changed(&mut phase, seen) => {
                seen = now;
                connection.drain();
            }
        }
    }
    if cut.reason().is_some() {
        // Its tunnels are reset.
        drop(connection);
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

async fn tunnel(core: Rc<Core>, place: Place, cut: Cut, incoming: Incoming) {
    let admitted = match admitted(&core, &incoming).await {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(&core, incoming, refused.refusal()),
    };
    let client = core.world.look(|world| client(world, &core.me, &incoming));
    let session = Rc::new(Session {
        client: named(&core, &incoming, client).await,
        to: admitted.to().clone(),
        authority: incoming.request.target.clone(),
        trace: incoming.request.traceparent,
        cut,
        place,
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

/// The client with its workload, if that can be known soon. Telemetry needs it, a claim to another address of the same
/// workload, and Services whose endpoints are to be near their clients.
///
/// It is asked for by the address that its connection comes from: the one that it claims may be anybody's.
async fn named(core: &Core, incoming: &Incoming, client: Client) -> Client {
    let peer = &incoming.peer;
    let mut changes = core.world.changed();
    let deadline = Instant::now() + NAMED_WITHIN;
    let is_known = || core.world.look(|world| workload(world, peer).is_some());
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
    core.world
        .look(|world| self::client(world, &core.me, incoming))
}
