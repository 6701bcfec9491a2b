//! The story of plaintext that arrives at a pod: the same judgement as for tunnels, with nobody proven.
//!
//! Nothing of the mesh is a lease of it: its peer has proven nothing that could go, and it is let in because the pod takes
//! plaintext. It stands on the pod's enrolment only, with which all of the pod's connections end.

use std::{net::SocketAddr, rc::Rc};

use hbone::relay_plain;
use mesh::{party::Party, verdict::inbound as admit};
use tokio::net::TcpStream;

use crate::{
    failure::Failure,
    proxy::Proxy,
    sessions::{Direction, Session},
    socket,
};

/// Serves one captured plaintext connection to its end.
pub(crate) async fn serve(proxy: Rc<Proxy>, client: TcpStream, peer: SocketAddr) {
    let record = proxy.own_record();
    let own = proxy.own_party(record.as_deref());
    let source = proxy
        .shared
        .world
        .look(|world| world.workload_at(peer.ip()).map(|w| Party::of(w)))
        .unwrap_or_default();
    let (mut session, room) = proxy.sessions.open(Direction::Plaintext, peer, source, own);
    let app = match room {
        Ok(()) => dial_app(&proxy, &client, peer, &mut session).await,
        Err(full) => Err(full),
    };
    let outcome = match app {
        Ok(app) => {
            session.established();
            Failure::of(relay_plain(app, client, session.meter()).await)
        }
        Err(failure) => {
            socket::reset(client);
            Err(failure)
        }
    };
    session.finish(&outcome);
}

async fn dial_app(
    proxy: &Proxy,
    client: &TcpStream,
    peer: SocketAddr,
    session: &mut Session,
) -> Result<TcpStream, Failure> {
    let dst = socket::original_dst(client).map_err(Failure::OriginalDestination)?;
    session.info.dst = Some(dst.0);
    let admitted = admit::plaintext(peer.ip(), dst, proxy.pod())?;
    proxy.dial(admitted.to(), admitted.from()).await
}
