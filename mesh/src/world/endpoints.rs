//! The workloads behind each service, and the choice of one of them.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::claims::Owners;
use super::{ByUid, Snapshot};
use crate::balance::{
    self, Ask, Choice, Client, How, Member, NoEndpoint, Place, PortSets, Reach, Readiness, Reused,
    Sets,
};
use crate::names::{ServiceName, Uid};
use crate::service::Service;
use crate::workload::{Standing, Workload};

/// A workload as one port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Where it serves that port.
    pub target: u16,
    /// It may receive traffic for that service.
    pub healthy: bool,
}

/// The workloads behind one service.
#[derive(Clone, Debug, Default)]
pub(super) struct Behind {
    workloads: imbl::OrdSet<ByUid>,
    /// Of exactly these workloads.
    sets: Arc<Sets>,
}

impl Snapshot {
    /// All workloads of our network that serve a port of a service, in a stable order, healthy or not.
    pub fn endpoints(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> impl Iterator<Item = Endpoint> + use<'_> {
        let owners = self.owners.get(&self.local);
        self.serving(service, port)
            .map(move |(workload, target)| Endpoint {
                target,
                healthy: workload.healthy,
                workload: Arc::clone(meant(workload, owners)),
            })
    }

    /// The endpoint for one who asks: as near and as healthy as the service wants it, and of those one with little to do.
    /// What the caller has tried is chosen again only where there is no other.
    pub fn pick(
        &self,
        service: &Service,
        port: u16,
        ask: &Ask<'_>,
        roll: &mut fastrand::Rng,
    ) -> Result<Choice, NoEndpoint> {
        let behind = self.behind.get(&service.id).ok_or(NoEndpoint::None)?;
        let ask = Ask {
            readiness: match service.publish_not_ready {
                true => Readiness::Any,
                false => ask.readiness,
            },
            ..*ask
        };
        let build = |before: Reused<'_>| self.members(behind, &service.id, port, before);
        behind.sets.with(port, build, |sets| {
            // A waypoint may not know yet, or not at all while its controller is away, where a client is.
            let everywhere;
            let reach = if ask.place == Place::default() {
                everywhere = Reach::default();
                &everywhere
            } else {
                &service.reach
            };
            let now = Instant::now();
            let picked = match service.affinity.zip(ask.client) {
                None => balance::pick(sets, reach, &ask, now, How::TwoAtRandom(roll)),
                Some((timeout, address)) => {
                    let client = Client {
                        service: service.id.clone(),
                        port,
                        address,
                    };
                    self.stay(sets, reach, &ask, client, now..now + timeout)
                }
            };
            let member = picked.ok_or_else(|| none(sets, service, ask.readiness))?;
            self.choice(member, &ask)
        })
    }

    /// The endpoint that a client has, or from now on has until the end of `kept`.
    fn stay<'a>(
        &self,
        sets: &'a PortSets,
        reach: &Reach,
        ask: &Ask<'_>,
        client: Client,
        kept: Range<Instant>,
    ) -> Option<&'a Member> {
        let (now, address) = (kept.start, client.address);
        let had = self.sticky.endpoint(&client, now);
        let again = had
            .as_ref()
            .and_then(|uid| balance::again(sets, reach, ask, now, uid));
        let member =
            again.or_else(|| balance::pick(sets, reach, ask, now, How::Hashed(address)))?;
        // Whoever cannot be reached for a moment has its clients back afterwards.
        let stays = had.filter(|uid| sets.all().find(uid, ask.readiness).is_some());
        let uid = stays.as_ref().unwrap_or(&member.workload.uid);
        self.sticky.keep(client, uid, now, kept.end);
        Some(member)
    }

    fn choice(&self, member: &Member, ask: &Ask<'_>) -> Result<Choice, NoEndpoint> {
        let of_family = ask.family.and_then(|family| member.address(family));
        if let Some(ip) = of_family.filter(|_| !member.said) {
            return Ok(Choice {
                workload: Arc::clone(&member.workload),
                address: SocketAddr::new(ip, member.target),
                stats: Arc::clone(&member.stats),
            });
        }
        // Not kept in the set: whose an address is changes without the service.
        let workload = meant(&member.workload, self.owners.get(&self.local));
        let mut addresses = workload.addresses.iter();
        let first = addresses.clone().next();
        let like = ask
            .family
            .and_then(|family| addresses.find(|ip| family.has(**ip)));
        let ip = like.or(first).ok_or(NoEndpoint::None)?;
        Ok(Choice {
            address: SocketAddr::new(*ip, member.target),
            workload: Arc::clone(workload),
            stats: Arc::clone(&member.stats),
        })
    }

    fn members(
        &self,
        behind: &Behind,
        service: &ServiceName,
        port: u16,
        mut before: Reused<'_>,
    ) -> Vec<Arc<Member>> {
        let member = |ByUid(workload): &ByUid| {
            before.take(workload).or_else(|| {
                let target = self.serves(workload, service, port)?;
                // One without an address is nowhere.
                workload.addresses.first()?;
                let stats = self.stats.of(&workload.uid, target);
                Some(Arc::new(Member::new(workload, target, stats)))
            })
        };
        let mut members = Vec::with_capacity(behind.workloads.len());
        members.extend(behind.workloads.iter().filter_map(member));
        members
    }

    /// Those of our network, with the port where each serves it.
    fn serving(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> impl Iterator<Item = (&Arc<Workload>, u16)> + use<'_> {
        let behind = self.behind.get_key_value(service);
        behind.into_iter().flat_map(move |(name, behind)| {
            behind.workloads.iter().filter_map(move |ByUid(workload)| {
                let target = self.serves(workload, name, port)?;
                Some((workload, target))
            })
        })
    }

    /// Where a workload of our network serves a port.
    fn serves(&self, workload: &Workload, service: &ServiceName, port: u16) -> Option<u16> {
        let here = self.is_local(&workload.location.network);
        workload.target(service, port).filter(|_| here)
    }
}

/// Who is meant by an endpoint: what only says that it is at a pod's address is that pod, with its identity and tunnel.
fn meant<'a>(said: &'a Arc<Workload>, owners: Option<&'a Owners>) -> &'a Arc<Workload> {
    if said.standing() != Standing::Said {
        return said;
    }
    let mut addresses = said.addresses.iter();
    let pod = owners.and_then(|owners| addresses.find_map(|ip| owners.pod(*ip)));
    pod.unwrap_or(said)
}

fn none(sets: &PortSets, service: &Service, readiness: Readiness) -> NoEndpoint {
    let all = sets.all();
    match (all.len(readiness), all.len(Readiness::Any)) {
        (0, _) if all.awaits_some() => NoEndpoint::Awaited,
        (_, 0) => NoEndpoint::None,
        (0, _) => NoEndpoint::Unhealthy,
        _ if service.reach.is_everywhere() => NoEndpoint::Unhealthy,
        _ => NoEndpoint::TooFar,
    }
}

// === impl Behind ===

impl Behind {
    pub(super) fn insert(&mut self, workload: &Arc<Workload>) {
        self.workloads.insert(ByUid(Arc::clone(workload)));
        self.changed();
    }

    pub(super) fn remove(&mut self, uid: &Uid) {
        self.workloads.remove(uid);
        self.changed();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }

    fn changed(&mut self) {
        match Arc::get_mut(&mut self.sets) {
            // Nobody reads what only this snapshot has, and this one is being written.
            Some(own) => *own = own.next(),
            None => self.sets = Arc::new(self.sets.next()),
        }
    }
}
