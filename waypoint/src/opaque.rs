//! STORY: a connection that is not HTTP → balance → tunnel → copy, each half-close passed on → log.

use std::rc::Rc;
use std::time::{Duration, Instant};

use hbone::{Ended, Incoming, Meter, Refusal, Response, Tunnel};
use http::StatusCode;
use mesh::balance::{InFlight, NoEndpoint, Tries, reach};
use tokio::time::interval;

use crate::access_log::Opaque;
use crate::balance::{self, Asking, Chosen};
use crate::cut::{Cut, Noted};
use crate::flags::{CLIENT_GONE, NO_ENDPOINT, TERMINATED, UNREACHABLE};
use crate::leases::unless_revoked;
use crate::metrics::Tcp;
use crate::pipe::pipe;
use crate::proxy::Core;
use crate::session::Session;
use crate::upstream::{Connected, Unreachable, Wire};

/// Endpoints that are tried for one connection.
const ENDPOINTS: usize = 3;

/// How often the byte counters of a running connection are brought up to date.
const COUNT: Duration = Duration::from_secs(5);

/// Serves one tunnel: the endpoint is connected first, so that a client learns of a failure as a refusal.
pub(crate) async fn serve(core: Rc<Core>, session: Rc<Session>, incoming: Incoming) {
    let mut record = Opaque::begin(&session);
    let (chosen, Connected { wire, mut lease }, _load) =
        match connect(&core, &session, &mut record).await {
            Ok(connected) => connected,
            Err(refusal) => {
                core.metrics.refused_tunnel(&refusal.code);
                incoming.reject(refusal);
                return;
            }
        };
    let tunnel = match incoming.accept(Response::default()) {
        Ok(tunnel) => tunnel,
        Err(error) => return record.failed(CLIENT_GONE, &error),
    };
    let tcp = core.metrics.opened(&session, &chosen.workload);
    let copying = copy(tunnel, wire, session.cut.clone(), &record.meter);
    let moved = || record.meter.received() + record.meter.sent();
    let leased = unless_revoked(copying, &mut lease, || (), moved);
    let ended = counted(leased, &record.meter, &tcp).await;
    tcp.closed();
    match ended {
        Ok(Ended::Finished) => {}
        Ok(Ended::App(error)) => record.failed(TERMINATED, &error),
        Ok(Ended::Peer(error)) => record.failed(TERMINATED, &error),
        Err(revoked) => {
            let reason = format!("{}: {revoked}", revoked.code());
            record.failed(TERMINATED, &reason);
        }
    }
}

/// Connects to an endpoint, and tells everybody of this process what came of it.
async fn open(
    core: &Rc<Core>,
    session: &Session,
    chosen: Chosen,
) -> Result<(Chosen, Connected, InFlight), Unreachable> {
    let head = session.onward(chosen.hop.target);
    let load = chosen.stats.begin();
    let began = Instant::now();
    match core.upstream.connect(&chosen.hop, &head).await {
        Ok(connected) => {
            chosen.stats.reached(Instant::now());
            Ok((chosen, connected, load))
        }
        Err(error) => {
            balance::not_reached(&chosen, began, &error);
            Err(error)
        }
    }
}

/// Chooses an endpoint and connects to it; another may do better.
async fn connect(
    core: &Rc<Core>,
    session: &Session,
    record: &mut Opaque<'_>,
) -> Result<(Chosen, Connected, InFlight), Refusal> {
    let (mut tries, mut none) = (Tries::new(ENDPOINTS), NoEndpoint::None);
    let next = |why| {
        let asking = |tries: &Tries| {
            let asking = Asking {
                client: &session.client,
                avoid: tries.tried(),
                http2: false,
            };
            let mut roll = fastrand::Rng::new();
            core.world
                .look(|world| balance::pick(world, &session.to, &asking, &mut roll))
        };
        let chosen = balance::another(&mut tries, why, asking)
            .map_err(|reason| none = reason)
            .ok()?;
        record.upstream(&chosen);
        Some(open(core, session, chosen))
    };
    let last = match reach(next, |_: &Unreachable| false).await {
        Ok(found) => {
            record.upstream(&found.0);
            return Ok(found);
        }
        Err(last) => last,
    };
    let (flags, code, reason) = match last {
        Some(error) => {
            let reason = format!("no endpoint of {} can be reached: {error}", session.to);
            (UNREACHABLE, error.code(), reason)
        }
        None => {
            let reason = format!("{} has {none}", session.to);
            (NO_ENDPOINT, "no_healthy_endpoint", reason)
        }
    };
    record.failed(flags, &reason);
    Err(Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: code.into(),
        reason,
    })
}

/// To the client counts as sent, from it as received.
async fn copy(client: Tunnel, endpoint: Wire, cut: Cut, meter: &Meter) -> Ended {
    match endpoint {
        Wire::Plain(tcp) => {
            let ended = client.relay(tcp, meter).await;
            if let Ended::Peer(error) = &ended {
                cut.failed(error);
            }
            ended
        }
        Wire::Tunnel(endpoint) => {
            let client = Noted::new(client.into_io(), cut);
            match pipe(client, endpoint, meter).await {
                Ok(()) => Ended::Finished,
                Err(error) => Ended::App(error),
            }
        }
    }
}

/// Brings the counters up to date while a copy runs.
async fn counted<T>(copy: impl Future<Output = T>, meter: &Meter, tcp: &Tcp) -> T {
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
