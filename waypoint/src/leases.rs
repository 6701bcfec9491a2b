//! What this core's connections stand on, by the one thing by whose change each is judged again.
//!
//! A waypoint is told what it needs, and not the whole mesh, so that it is not told of somebody any more does not say that
//! he is gone. Clients are told on demand and within bounds: of them absence ends nothing, and a client's own node ends its
//! tunnels when the pod goes. An endpoint leaves what is told with its Service, or after it has left its Service: it is gone
//! only where it was behind a Service that is bound here, and still is. Of any other, the tunnel's pings tell.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh::names::ServiceName;
use mesh::verdict::lease::{Input, Lease, Revoked};
use mesh::verdict::waypoint::{SelfInfo, is_bound};
use mesh::workload::Workload;
use mesh::world::{Changed, Snapshot, World};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// The leases of one core. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    me: Rc<SelfInfo>,
    registry: Rc<RefCell<Registry>>,
}

#[derive(Debug, Default)]
struct Registry {
    next: usize,
    leases: HashMap<usize, Entry>,
    standing_on: BTreeSet<(Input, usize)>,
}

#[derive(Debug)]
struct Entry {
    lease: Lease,
    behind: Option<Behind>,
    tell: Option<oneshot::Sender<Revoked>>,
}

/// An endpoint, and the Service that it was chosen for.
#[derive(Clone, Debug)]
pub(crate) struct Behind {
    pub(crate) service: ServiceName,
    /// As it was told last.
    pub(crate) workload: Arc<Workload>,
}

/// One connection's lease; given up when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    leases: Leases,
    key: usize,
    input: Input,
    told: Option<oneshot::Receiver<Revoked>>,
}

/// What somebody who reads slowly gets to read the last bytes of who has gone, as a node gives it, too.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// A connection on which nothing moves for so long has lost its far side.
const STILL: Duration = Duration::from_millis(500);

/// Runs what uses a connection for as long as its lease holds, and a little longer where somebody has gone and left
/// behind what he had said: while that moves. `told` is called when the lease ends. What is dropped then resets both of its ends.
pub(crate) async fn unless_revoked<T>(
    running: impl Future<Output = T>,
    lease: &mut Held,
    told: impl FnOnce(),
    moved: impl Fn() -> u64,
) -> Result<T, Revoked> {
    let mut running = pin!(running);
    let revoked = tokio::select! {
        ended = running.as_mut() => return Ok(ended),
        revoked = lease.ended() => revoked,
    };
    told();
    let deadline = Instant::now() + LAST_BYTES;
    while revoked.is_gone() && Instant::now() < deadline {
        let before = moved();
        if let Ok(ended) = timeout(STILL, running.as_mut()).await {
            return Ok(ended);
        }
        if moved() == before {
            break;
        }
    }
    Err(revoked)
}

// === impl Leases ===

impl Leases {
    pub(crate) fn new(me: SelfInfo) -> Self {
        Self {
            me: Rc::new(me),
            registry: Rc::default(),
        }
    }

    /// From here on a connection stands on this, which must hold now.
    pub(crate) fn hold(
        &self,
        mut lease: Lease,
        behind: Option<Behind>,
        world: &Snapshot,
    ) -> Result<Held, Revoked> {
        lease.judge(world)?;
        let (tell, told) = oneshot::channel();
        let input = lease.input();
        let mut registry = self.registry.borrow_mut();
        let key = registry.next;
        registry.next += 1;
        registry.standing_on.insert((input.clone(), key));
        let entry = Entry {
            lease,
            behind,
            tell: Some(tell),
        };
        registry.leases.insert(key, entry);
        Ok(Held {
            leases: self.clone(),
            key,
            input,
            told: Some(told),
        })
    }

    /// Judges again whatever stands on something that changes, for as long as anything can change.
    pub(crate) async fn follow(self, world: World) {
        let Some(mut changes) = world.changes() else {
            return;
        };
        while let Some(changed) = changes.next().await {
            world.look(|world| self.judge(&changed, world));
        }
    }

    fn judge(&self, changed: &Changed, world: &Snapshot) {
        let mut registry = self.registry.borrow_mut();
        let Registry {
            leases,
            standing_on,
            ..
        } = &mut *registry;
        let touched: Vec<usize> = if changed.is_everything() {
            leases.keys().copied().collect()
        } else {
            let workloads = changed.workloads().cloned().map(Input::Workload);
            let inputs = workloads.chain(changed.addresses().map(Input::Address));
            let standing = inputs.flat_map(|input| {
                let all = (input.clone(), 0)..=(input, usize::MAX);
                standing_on.range(all).map(|(_, key)| *key)
            });
            standing.collect()
        };
        for key in touched {
            let Some(entry) = leases.get_mut(&key) else {
                continue;
            };
            if let Err(revoked) = entry.judge(world, &self.me) {
                // Who does not wait for it any more need not be told.
                drop(entry.tell.take().map(|tell| tell.send(revoked)));
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    fn judge(&mut self, world: &Snapshot, me: &SelfInfo) -> Result<(), Revoked> {
        let judged = self.lease.judge(world);
        match (&judged, &mut self.behind) {
            (Ok(()), Some(behind)) => {
                let there = world.workload(&behind.workload.uid);
                behind.workload = there.cloned().unwrap_or_else(|| behind.workload.clone());
                judged
            }
            (Err(Revoked::EndpointGone(_)), Some(behind)) if behind.still(world, me) => judged,
            (Err(Revoked::PeerGone { .. } | Revoked::EndpointGone(_)), _) => Ok(()),
            _ => judged,
        }
    }
}

// === impl Behind ===

impl Behind {
    /// Whether the endpoint would still be told if it were there.
    fn still(&self, world: &Snapshot, me: &SelfInfo) -> bool {
        let mut services = self.workload.services();
        services.any(|(name, _)| *name == self.service) && is_bound(world, me, &self.service)
    }
}

// === impl Held ===

impl Held {
    /// Waits for the lease's end.
    ///
    /// Cancel safe; told once.
    pub(crate) async fn ended(&mut self) -> Revoked {
        if let Some(told) = &mut self.told {
            let revoked = told.await;
            self.told = None;
            if let Ok(revoked) = revoked {
                return revoked;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut registry = self.leases.registry.borrow_mut();
        registry.leases.remove(&self.key);
        registry.standing_on.remove(&(self.input.clone(), self.key));
    }
}
