//! STORY: a connection that is not HTTP → balance → tunnel → copy, each half-close passed on → log.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hbone::{Ended, Incoming, Meter, Refusal, Response, Tunnel};
use http::StatusCode;
use tokio::time::interval;

use crate::access_log::{self, NO_FLAGS, Opaque};
use crate::balance::{self, Asking, Chosen};
use crate::http::reply::{NO_ENDPOINT, TERMINATED, UNREACHABLE};
use crate::metrics::Tcp;
use crate::pipe::pipe;
use crate::proxy::Core;
use crate::session::Session;
use crate::upstream::Wire;

/// Endpoints that are tried for one connection.
const ENDPOINTS: usize = 3;

/// How often the byte counters of a running connection are brought up to date.
const COUNT: Duration = Duration::from_secs(5);

/// Serves one tunnel: the endpoint is connected first, so that a client learns of a failure as a refusal.
pub(crate) async fn serve(core: Rc<Core>, session: Rc<Session>, incoming: Incoming) {
    let started = Instant::now();
    let (chosen, wire) = match connect(&core, &session).await {
        Ok(both) => both,
        Err((refusal, flags, chosen)) => {
            access_log::refused(&session.client, &session.authority, &refusal);
            let upstream = chosen
                .as_ref()
                .map(|chosen| (&*chosen.workload, chosen.hop.target));
            let error = Some(refusal.reason.clone());
            Opaque {
                session: &session,
                started,
                upstream,
                received: 0,
                sent: 0,
                flags,
                error,
            }
            .log();
            core.metrics.refused_tunnel(&refusal.code);
            incoming.reject(refusal);
            return;
        }
    };
    let tunnel = match incoming.accept(Response::default()) {
        Ok(tunnel) => tunnel,
        Err(error) => {
            tracing::debug!(peer = %session.client.id, %error, "tunnel lost");
            return;
        }
    };
    let _load = core.load.take(chosen.hop.uid.clone());
    let tcp = core.metrics.opened(&session, &chosen.workload);
    let meter = Meter::default();
    let ended = counted(copy(tunnel, wire, &meter), &meter, &tcp).await;
    tcp.closed();
    let upstream: Option<(_, SocketAddr)> = Some((&*chosen.workload, chosen.hop.target));
    let (flags, error) = match ended {
        Ended::Finished => (NO_FLAGS, None),
        Ended::App(error) => (TERMINATED, Some(error.to_string())),
        Ended::Peer(error) => (TERMINATED, Some(error.to_string())),
    };
    let (received, sent) = (meter.received(), meter.sent());
    Opaque {
        session: &session,
        started,
        upstream,
        received,
        sent,
        flags,
        error,
    }
    .log();
}

type Unserved = (Refusal, &'static str, Option<Chosen>);

async fn connect(core: &Rc<Core>, session: &Session) -> Result<(Chosen, Wire), Unserved> {
    let mut avoid = Vec::new();
    let mut last = None;
    while avoid.len() < ENDPOINTS {
        let chosen = core.world.look(|world| {
            let asking = Asking {
                load: &core.load,
                avoid: &avoid,
                like: session.client.address,
                http2: false,
            };
            balance::pick(world, &session.to, &asking, &mut fastrand::Rng::new())
        });
        let Some(chosen) = chosen else { break };
        match core
            .upstream
            .connect(&chosen.hop, &session.onward(chosen.hop.target))
            .await
        {
            Ok(wire) => return Ok((chosen, wire)),
            Err(error) => {
                tracing::info!(endpoint = %chosen.hop.uid, code = error.code(), %error, "endpoint not reached");
                avoid.push(chosen.hop.uid.clone());
                last = Some((error, chosen));
            }
        }
    }
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Err(match last {
        Some((error, chosen)) => {
            let reason = format!("no endpoint of {} can be reached: {error}", session.to);
            (
                Refusal {
                    status,
                    code: error.code().into(),
                    reason,
                },
                UNREACHABLE,
                Some(chosen),
            )
        }
        None => {
            let reason = format!("{} has no healthy endpoint", session.to);
            (
                Refusal {
                    status,
                    code: "no_healthy_endpoint".into(),
                    reason,
                },
                NO_ENDPOINT,
                None,
            )
        }
    })
}

/// To the client counts as sent, from it as received.
async fn copy(client: Tunnel, endpoint: Wire, meter: &Meter) -> Ended {
    match endpoint {
        Wire::Plain(tcp) => client.relay(tcp, meter).await,
        Wire::Tunnel(endpoint) => match pipe(client.into_io(), endpoint, meter).await {
            Ok(()) => Ended::Finished,
            Err(error) => Ended::App(error),
        },
    }
}

/// Brings the counters up to date while a copy runs.
async fn counted(copy: impl Future<Output = Ended>, meter: &Meter, tcp: &Tcp) -> Ended {
    let mut copy = std::pin::pin!(copy);
    let mut ticks = interval(COUNT);
    let (mut received, mut sent) = (0, 0);
    loop {
        let ended = tokio::select! {
            ended = copy.as_mut() => Some(ended),
            _ = ticks.tick() => None,
        };
        let now = (meter.received(), meter.sent());
        tcp.moved(now.0 - received, now.1 - sent);
        (received, sent) = now;
        if let Some(ended) = ended {
            return ended;
        }
    }
}
