//! Which endpoint each client of a service with session affinity has: as kube-proxy keeps it, for a while after it last came.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;

use crate::names::{ServiceName, Uid};

/// Clients that are remembered, of some hundred bytes each: a node has some hundreds of pods, a waypoint may have all of
/// a mesh as its clients. Beyond it all are forgotten, and nearly all come to the same endpoint again, since the first
/// choice for a client is a hash of it.
const MOST_CLIENTS: usize = 1 << 16;

/// A client of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    pub(crate) address: IpAddr,
}

/// The clients that this process remembers.
#[derive(Debug, Default)]
pub(crate) struct Sticky(Mutex<HashMap<Client, Kept>>);

#[derive(Debug)]
struct Kept {
    endpoint: Uid,
    until: Instant,
}

impl Sticky {
    /// The endpoint that a client has.
    pub(crate) fn endpoint(&self, client: &Client, now: Instant) -> Option<Uid> {
        let all = self.0.lock();
        let kept = all.get(client).filter(|kept| now < kept.until)?;
        Some(kept.endpoint.clone())
    }

    /// It has this one until then.
    pub(crate) fn keep(&self, client: Client, endpoint: &Uid, now: Instant, until: Instant) {
        let mut all = self.0.lock();
        if all.len() >= MOST_CLIENTS {
            all.retain(|_, kept| now < kept.until);
            // Not again for a while.
            if all.len() > MOST_CLIENTS / 2 {
                all.clear();
            }
        }
        let endpoint = endpoint.clone();
        all.insert(client, Kept { endpoint, until });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clients_are_remembered_until_they_stay_away_and_never_too_many() {
        let sticky = Sticky::default();
        let client = |at: u32| Client {
            service: "ns/shop.ns.svc.cluster.local".parse().expect("a name"),
            port: 80,
            address: IpAddr::from(at.to_be_bytes()),
        };
        let now = Instant::now();
        let until = now + Duration::from_secs(10);
        let uid = Uid::from("a");
        sticky.keep(client(0), &uid, now, until);
        assert_eq!(sticky.endpoint(&client(0), now), Some(uid.clone()));
        assert_eq!(sticky.endpoint(&client(1), now), None);
        assert_eq!(sticky.endpoint(&client(0), until), None);
        let most = u32::try_from(MOST_CLIENTS).expect("few");
        for at in 0..2 * most {
            sticky.keep(client(at), &uid, now, until);
        }
        assert!(sticky.0.lock().len() <= MOST_CLIENTS);
    }
}
