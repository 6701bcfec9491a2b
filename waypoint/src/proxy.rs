//! One core's share of the waypoint: what all of its connections have in common.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hbone::{Acceptor, Credentials, ServerLimits};
use mesh::names::ServiceName;
use mesh::unproven::Unproven;
use mesh::verdict::waypoint::SelfInfo;
use mesh::world::World;
use tokio::sync::watch;

use crate::budget::Budgets;
use crate::leases::Leases;
use crate::limits::Limits;
use crate::lookups::{Clients, Lookups};
use crate::metrics::{Metrics, Recorder};
use crate::upstream::Upstream;

/// After a service was unbound, tunnels of clients that have not heard of it are still taken.
const UNBOUND_GRACE: Duration = Duration::from_secs(10);

/// Services remembered as bound; beyond it the memory starts anew, which costs only the grace.
const MAX_REMEMBERED: usize = 4096;

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// Clients are asked to go elsewhere; who still comes is served.
    Draining,
    /// No new connections; what runs may finish.
    Closing,
}

/// What every core of the process needs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Who this waypoint is.
    pub me: SelfInfo,
    /// The mesh as the controller tells it.
    pub world: World,
    /// This waypoint's own certificate.
    pub credentials: Credentials,
    /// Whom clients are looked up with.
    pub lookups: Lookups,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How far the process is on its way out.
    pub phase: watch::Receiver<Phase>,
}

/// One core's share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) me: SelfInfo,
    pub(crate) world: World,
    pub(crate) acceptor: Acceptor,
    pub(crate) upstream: Upstream,
    pub(crate) metrics: Recorder,
    pub(crate) bound: Bound,
    pub(crate) clients: Clients,
    pub(crate) limits: Limits,
    pub(crate) budgets: Budgets,
    pub(crate) unproven: Unproven,
    pub(crate) leases: Leases,
    phase: watch::Receiver<Phase>,
}

/// Which services were bound to this waypoint, and since when one was found to be no longer.
#[derive(Debug, Default)]
pub(crate) struct Bound(RefCell<HashMap<ServiceName, Option<Instant>>>);

// === impl Core ===

impl Core {
    pub(crate) fn new(shared: Shared, limits: Limits) -> Self {
        let Shared {
            me,
            world,
            credentials,
            lookups,
            metrics,
            phase,
        } = shared;
        let trust = [me.trust_domain.clone()];
        let leases = Leases::new(me.clone());
        Self {
            acceptor: Acceptor::new(credentials.clone(), trust, ServerLimits::default()),
            upstream: Upstream::new(credentials, world.clone(), leases.clone()),
            leases,
            metrics: Recorder::new(metrics),
            bound: Bound::default(),
            clients: Clients::new(lookups),
            budgets: Budgets::new(&limits),
            unproven: Unproven::new(limits.handshakes),
            limits,
            me,
            world,
            phase,
        }
    }

    /// A watch of its own on the way out.
    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }

    /// Whether clients are asked to go elsewhere.
    pub(crate) fn is_leaving(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }
}

// === impl Bound ===

impl Bound {
    /// It is bound now.
    pub(crate) fn seen(&self, service: &ServiceName) {
        let mut all = self.0.borrow_mut();
        if all.len() >= MAX_REMEMBERED {
            all.clear();
        }
        all.insert(service.clone(), None);
    }

    /// Whether it was bound until just now; to be asked only about a service that no longer is.
    pub(crate) fn lately(&self, service: &ServiceName) -> bool {
        let mut all = self.0.borrow_mut();
        let Some(unbound) = all.get_mut(service) else {
            return false;
        };
        unbound.get_or_insert_with(Instant::now).elapsed() < UNBOUND_GRACE
    }
}
