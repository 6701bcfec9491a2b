//! When a request stops being HTTP: a WebSocket, bytes both ways after a 101.

use std::cell::Cell;
use std::rc::Rc;

use hbone::Meter;
use http::{HeaderMap, HeaderValue, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh::balance::InFlight;

use crate::access_log::Record;
use crate::flags::TERMINATED;
use crate::leases::{Held, unless_revoked};
use crate::pipe::pipe;

/// Writes the headers that ask for, or grant, another protocol.
pub(crate) fn write(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Copies until both directions have ended; the request is over then.
pub(crate) fn splice(
    client: OnUpgrade,
    endpoint: OnUpgrade,
    mut record: Record,
    (load, mut lease): (InFlight, Held),
    received: Rc<Cell<u64>>,
) {
    tokio::task::spawn_local(async move {
        let _load = load;
        let (client, endpoint) = match tokio::try_join!(client, endpoint) {
            Ok(both) => both,
            Err(error) => {
                record.failed(TERMINATED, &error);
                return;
            }
        };
        let meter = Meter::new();
        let copying = pipe(TokioIo::new(client), TokioIo::new(endpoint), &meter);
        let moved = || meter.received() + meter.sent();
        let copied = unless_revoked(copying, &mut lease, || (), moved).await;
        received.set(received.get() + meter.received());
        record.sent(meter.sent());
        match copied {
            Ok(Ok(())) => record.complete(),
            Ok(Err(error)) => record.failed(TERMINATED, &error),
            Err(revoked) => record.failed(TERMINATED, &revoked),
        }
    });
}
