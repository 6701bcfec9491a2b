//! How long a peer counts as proved: until the last certificate runs out with which it has proved itself.
//!
//! Certificates live for a day, and applications' connections for longer. A tunnel cannot prove itself anew, so its client
//! opens another beside it in time, with the certificates of then: whoever is that identity at that address stays so, and
//! the old tunnel lives on. Who shows no newer certificate is cut off when the last one has run out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::{Peer, SpiffeId};

/// What one peer has proved, for one connection with it.
pub(crate) struct Standing {
    all: Arc<Standings>,
    peer: Proved,
    until: Arc<AtomicU64>,
}

/// Of all peers that have a connection with one identity of ours. Locked when one begins or ends.
#[derive(Default)]
pub(crate) struct Standings(Mutex<HashMap<Proved, Arc<AtomicU64>>>);

/// An identity at an address.
type Proved = (IpAddr, SpiffeId);

// === impl Standing ===

impl Standing {
    /// A peer has just proved itself with a certificate that runs out then.
    pub(crate) fn of(all: &Arc<Standings>, peer: &Peer, not_after: SystemTime) -> Self {
        let peer = (peer.addr.ip().to_canonical(), peer.id.clone());
        let until = all.0.lock().entry(peer.clone()).or_default().clone();
        until.fetch_max(seconds(not_after), Ordering::Relaxed);
        Self {
            all: all.clone(),
            peer,
            until,
        }
    }

    /// When the last certificate runs out that it has shown.
    pub(crate) fn until(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.until.load(Ordering::Relaxed))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        // The table's and this one.
        if Arc::strong_count(&self.until) <= 2 {
            all.remove(&self.peer);
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_proof_counts_for_all_connections_of_a_peer_and_for_nobody_else() {
        let peer = |last: u8| Peer {
            id: "spiffe://cluster.local/ns/shop/sa/standing"
                .parse()
                .unwrap(),
            addr: ([10, 255, 0, last], 1).into(),
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let all = Arc::default();
        let of = |last, seconds| Standing::of(&all, &peer(last), at(seconds));
        let (old, other, new) = (of(1, 10), of(2, 10), of(1, 20));
        assert_eq!((old.until(), other.until()), (at(20), at(10)));
        // An older certificate takes nothing back.
        let older = of(1, 5);
        assert_eq!(older.until(), at(20));
        drop((old, new, older));
        // Nothing is remembered of who has left.
        assert_eq!(of(1, 10).until(), at(10));
        assert_eq!(all.0.lock().len(), 1);
    }
}
