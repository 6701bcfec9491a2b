//! The claims on addresses, best first: in whichever order they are heard, the same one wins.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::names::{ServiceName, Uid};
use crate::service::Service;
use crate::workload::{Standing, Tunnel, Workload};

/// Who claims addresses of one network.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    workloads: Claims<Workload>,
    services: Claims<Service>,
}

/// Something that claims addresses.
trait Claimant {
    /// Less is better. No two claimants have the same, so that the order they come in decides nothing.
    type Rank<'a>: Ord
    where
        Self: 'a;

    /// Where an address stands in its list.
    fn place(&self, ip: IpAddr) -> usize;

    /// The rank of its claim on an address that stands at `place` in its list.
    fn rank(&self, place: usize) -> Self::Rank<'_>;
}

/// The claims on each address.
struct Claims<T> {
    owners: imbl::OrdMap<Octets, Arc<T>>,
    /// All claims, best first, on the few addresses that have several.
    contested: imbl::OrdMap<Octets, imbl::OrdSet<Claim<T>>>,
}

struct Claim<T> {
    by: Arc<T>,
    /// Where the address stands in its list.
    place: usize,
}

/// An address in 16 bytes: there are as many as pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Octets([u8; 16]);

// === impl Owners ===

impl Owners {
    /// The workload with this address; nobody where it is a node's.
    pub(super) fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let owner = self.workloads.owner(ip)?;
        (owner.standing() != Standing::Host).then_some(owner)
    }

    /// The pod with this address.
    pub(super) fn pod(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let owner = self.workloads.owner(ip)?;
        (owner.standing() == Standing::Pod).then_some(owner)
    }

    /// The service with this address and port.
    ///
    /// A pod's address is no service's. A port that no service has is for the service to refuse to whom the address
    /// belongs whole. The other ports of a node, and of what a service only shares, are not the mesh's.
    pub(super) fn service(&self, at: SocketAddr) -> Option<&Arc<Service>> {
        let owner = self.workloads.owner(at.ip()).map(|owner| owner.standing());
        if owner == Some(Standing::Pod) {
            return None;
        }
        let with_port = |service: &&Arc<Service>| service.port(at.port()).is_some();
        let claims = || self.services.all(at.ip());
        claims().find(with_port).or_else(|| match owner {
            Some(Standing::Host) => None,
            _ => claims().find(|service| service.has_whole(at.ip())),
        })
    }

    pub(super) fn put_workload(&mut self, workload: &Arc<Workload>) {
        for ip in &workload.addresses {
            self.workloads.put(*ip, workload);
        }
    }

    pub(super) fn remove_workload(&mut self, workload: &Arc<Workload>) {
        for ip in &workload.addresses {
            self.workloads.remove(*ip, workload);
        }
    }

    pub(super) fn put_vip(&mut self, vip: IpAddr, service: &Arc<Service>) {
        self.services.put(vip, service);
    }

    pub(super) fn remove_vip(&mut self, vip: IpAddr, service: &Arc<Service>) {
        self.services.remove(vip, service);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workloads.owners.is_empty() && self.services.owners.is_empty()
    }
}

// === impl Claims ===

impl<T: Claimant> Claims<T> {
    fn owner(&self, ip: IpAddr) -> Option<&Arc<T>> {
        self.owners.get(&Octets::from(ip))
    }

    /// All who claim an address, best first.
    fn all(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<T>> {
        let key = Octets::from(ip);
        let contested = self.contested.get(&key);
        let alone = match contested {
            Some(_) => None,
            None => self.owners.get(&key),
        };
        let contested = contested.into_iter().flatten().map(|claim| &claim.by);
        alone.into_iter().chain(contested)
    }

    fn put(&mut self, ip: IpAddr, by: &Arc<T>) {
        let key = Octets::from(ip);
        let Some(owner) = self.owners.get(&key) else {
            self.owners.insert(key, Arc::clone(by));
            return;
        };
        let mut all = match self.contested.get(&key) {
            Some(all) => all.clone(),
            None => imbl::OrdSet::unit(Claim::new(ip, owner)),
        };
        all.insert(Claim::new(ip, by));
        self.settle(key, all);
    }

    /// Takes back what was [`put`](Self::put).
    fn remove(&mut self, ip: IpAddr, by: &Arc<T>) {
        let key = Octets::from(ip);
        match self.contested.get(&key) {
            Some(all) => {
                let mut all = all.clone();
                all.remove(&Claim::new(ip, by));
                self.settle(key, all);
            }
            None => drop(self.owners.remove(&key)),
        }
    }

    fn settle(&mut self, key: Octets, all: imbl::OrdSet<Claim<T>>) {
        match all.get_min() {
            Some(best) => self.owners.insert(key, Arc::clone(&best.by)),
            None => self.owners.remove(&key),
        };
        match all.len() {
            0 | 1 => self.contested.remove(&key),
            _ => self.contested.insert(key, all),
        };
    }
}

impl<T> Clone for Claims<T> {
    fn clone(&self) -> Self {
        Self {
            owners: self.owners.clone(),
            contested: self.contested.clone(),
        }
    }
}

impl<T> fmt::Debug for Claims<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("addresses", &self.owners.len())
            .field("contested", &self.contested.len())
            .finish()
    }
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self {
            owners: imbl::OrdMap::new(),
            contested: imbl::OrdMap::new(),
        }
    }
}

// === impl Claimant ===

impl Claimant for Workload {
    type Rank<'a> = (Standing, bool, bool, &'a Uid);

    fn place(&self, _ip: IpAddr) -> usize {
        0
    }

    /// A pod before all others; in the mesh before out of it, so that no claim turns a tunnel into plaintext; then
    /// whoever may receive traffic, as one of two pods that had an address one after the other.
    fn rank(&self, _place: usize) -> Self::Rank<'_> {
        (
            self.standing(),
            self.protocol != Tunnel::Hbone,
            !self.healthy,
            &self.uid,
        )
    }
}

impl Claimant for Service {
    type Rank<'a> = (bool, usize, &'a ServiceName);

    fn place(&self, ip: IpAddr) -> usize {
        let vips = self.vips.iter();
        vips.take_while(|(_, vip)| *vip != ip).count()
    }

    /// What the cluster has given before what somebody wrote: a Kubernetes Service before an entry, and its cluster
    /// IPs, which stand first, before its other addresses.
    fn rank(&self, place: usize) -> Self::Rank<'_> {
        (!self.is_kubernetes(), place, &self.id)
    }
}

// === impl Claim ===

impl<T> Claim<T> {
    fn new(ip: IpAddr, by: &Arc<T>) -> Self
    where
        T: Claimant,
    {
        Self {
            by: Arc::clone(by),
            place: by.place(ip),
        }
    }
}

impl<T> Clone for Claim<T> {
    fn clone(&self) -> Self {
        Self {
            by: Arc::clone(&self.by),
            place: self.place,
        }
    }
}

impl<T: Claimant> PartialEq for Claim<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Claimant> Eq for Claim<T> {}

impl<T: Claimant> PartialOrd for Claim<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Claimant> Ord for Claim<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.by.rank(self.place).cmp(&other.by.rank(other.place))
    }
}

// === impl Octets ===

impl From<IpAddr> for Octets {
    /// IPv4 and the same address as IPv6 are one.
    fn from(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }
}
