//! DECISION: at which addresses beside its cluster IPs is a Service reached, as at those?
//!
//! kube-proxy answers a pod that dials `status.loadBalancer` addresses and `spec.externalIPs` itself, with the Service's
//! endpoints. The mesh does the same, so that the public name of a Service is no way around its waypoint and mutual TLS.
//! Whose such an address is goes by rank: cluster IPs, pods, nodes, load balancers, external IPs. An address of a load
//! balancer may be a node's, whose other ports proxies leave alone; an external IP, which a tenant writes, may not. Among
//! equals, who shares no TCP port shares the address; of others the older Service has it, then the lesser key.
//! Every proxy remembers each address, and its author decides how many there are: a Service and a namespace have a bound.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::State;
use super::addresses::{Owner, parse};
use super::changes::{Notice, Target};
use super::kinds::Kind;
use super::names::Key;
use super::services::{Service, ServicePort};
use super::tables::SecondaryIndex;

/// The addresses that a Service names beside its cluster IPs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FurtherVips {
    /// The load balancer's first.
    claims: Vec<Claim>,
    /// How many it names beyond its bound.
    beyond: usize,
    /// Its TCP ports in ascending order.
    ports: Vec<u16>,
    /// When the Service was made, in milliseconds.
    created: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    address: IpAddr,
    by: By,
}

/// Who gave a Service the address; the better claim is the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// Whoever provides load balancers.
    Balancer,
    /// Whoever wrote the Service.
    Author,
}

/// The Services that name an address, the best claim first.
#[derive(Debug, Default)]
pub(super) struct Claimants(HashMap<IpAddr, BTreeSet<Claimant>>);

/// A Service that names an address; the better claim is the lesser.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    by: By,
    created: i64,
    service: Key,
}

/// Addresses that one Service has beside its cluster IPs.
const MAX_OF_SERVICE: usize = 16;
/// Those that all Services of a namespace have.
pub(super) const MAX_OF_NAMESPACE: usize = 256;
/// Events on one Service.
const MAX_NOTICES: usize = 10;

// === impl FurtherVips ===

impl FurtherVips {
    /// Those that kube-proxy would answer, too: of a family in which the Service has a cluster IP.
    pub(super) fn parse(
        object: &core::Service,
        cluster_ips: &[IpAddr],
        ports: &[ServicePort],
    ) -> Self {
        let balancer = balancer(object).map(|address| (address, By::Balancer));
        let author = object
            .spec
            .iter()
            .flat_map(|spec| spec.external_ips.iter().flatten())
            .map(|address| (address.as_str(), By::Author));
        let mut seen: BTreeSet<IpAddr> = cluster_ips.iter().copied().collect();
        let has_family = |address: IpAddr| {
            let mut own = cluster_ips.iter();
            own.any(|own| own.is_ipv4() == address.is_ipv4())
        };
        let claims = balancer.chain(author).filter_map(|(address, by)| {
            let address = parse(address).filter(|ip| has_family(*ip))?;
            seen.insert(address).then_some(Claim { address, by })
        });
        let mut claims = claims.fuse();
        let within: Vec<Claim> = claims.by_ref().take(MAX_OF_SERVICE).collect();
        let beyond = claims.count();
        let ports: BTreeSet<u16> = ports.iter().map(|port| port.port).collect();
        let created = object.metadata.creation_timestamp.as_ref();
        Self {
            claims: within,
            beyond,
            ports: ports.into_iter().collect(),
            created: created.map_or(0, |time| time.0.as_millisecond()),
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.claims.iter().map(|claim| claim.address)
    }

    /// How many addresses it names, within its bound.
    pub(super) fn count(&self) -> usize {
        self.claims.len()
    }

    fn shares_port(&self, other: &Self) -> bool {
        let mut ports = self.ports.iter();
        ports.any(|port| other.ports.binary_search(port).is_ok())
    }

    fn claimant(&self, key: &Key, claim: &Claim) -> Claimant {
        Claimant {
            by: claim.by,
            created: self.created,
            service: key.clone(),
        }
    }
}

/// The addresses of a load balancer that kube-proxy answers in its place: not those of one that must be passed through
/// itself (`ipMode: Proxy`), and none where only some sources are let in, which the mesh does not judge.
fn balancer(object: &core::Service) -> impl Iterator<Item = &str> {
    let spec = object.spec.as_ref();
    let answered = spec.is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_source_ranges.iter().flatten().count() == 0
    });
    let status = object.status.as_ref().filter(|_| answered);
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_deref());
    ingress
        .unwrap_or_default()
        .iter()
        .filter(|one| one.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|one| one.ip.as_deref())
}

// === impl Claimants ===

impl Claimants {
    /// The Services that name an address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        self.ranked(address).map(|claimant| &claimant.service)
    }

    fn ranked(&self, address: IpAddr) -> impl Iterator<Item = &Claimant> {
        self.0.get(&address).into_iter().flatten()
    }
}

impl SecondaryIndex<Service> for Claimants {
    fn add(&mut self, key: &Key, service: &Service) {
        for claim in &service.further.claims {
            let claimants = self.0.entry(claim.address).or_default();
            claimants.insert(service.further.claimant(key, claim));
        }
    }

    fn remove(&mut self, key: &Key, service: &Service) {
        for claim in &service.further.claims {
            let Some(claimants) = self.0.get_mut(&claim.address) else {
                continue;
            };
            claimants.remove(&service.further.claimant(key, claim));
            if claimants.is_empty() {
                self.0.remove(&claim.address);
            }
        }
    }
}

// === impl State ===

impl State {
    /// The addresses that a Service names, within its namespace's bound.
    fn claims<'a>(&self, key: &Key, service: &'a Service) -> impl Iterator<Item = &'a Claim> {
        let allowance = self.tables.services.lookup().shares.allowance(key);
        service.further.claims.iter().take(allowance)
    }

    /// The further addresses that are a Service's.
    pub(super) fn further_vips(&self, key: &Key, service: &Service) -> Vec<IpAddr> {
        let won = self
            .claims(key, service)
            .filter(|claim| self.goes_before(key, service, claim).is_none());
        won.map(|claim| claim.address).collect()
    }

    /// What people are told on a Service that names addresses of others.
    pub(super) fn further_vip_notices(&self, key: &Key) -> Vec<Notice> {
        let Some(service) = self.tables.services.get(key) else {
            return Vec::new();
        };
        let notice = |reason: &str, note: String| Notice {
            target: Target::new(Kind::Service, key),
            uid: service.uid.clone(),
            warning: true,
            reason: reason.to_owned(),
            note,
        };
        let further = &service.further;
        let beyond = further.beyond + further.count() - self.claims(key, service).count();
        let too_many = (beyond > 0).then(|| {
            let note = format!(
                "beside its cluster IPs a Service has at most {MAX_OF_SERVICE} addresses in the mesh, and the Services of a namespace {MAX_OF_NAMESPACE}: {beyond} of this Service do not lead to it there"
            );
            notice("TooManyAddresses", note)
        });
        let lost = self.claims(key, service).filter_map(|claim| {
            let owner = self.goes_before(key, service, claim)?;
            let address = claim.address;
            let note = format!(
                "address {address} is that of {owner}: in the mesh it does not lead to this Service"
            );
            Some(notice("AddressTaken", note))
        });
        too_many.into_iter().chain(lost).take(MAX_NOTICES).collect()
    }

    /// Marks what depends on a Service's addresses, if what decides whose they are has changed.
    pub(super) fn touch_claims(
        &mut self,
        key: &Key,
        before: Option<&Service>,
        now: Option<&Service>,
    ) {
        let claims = |service: Option<&Service>| {
            service.map(|service| (service.vips.clone(), service.further.clone()))
        };
        if claims(before) == claims(now) {
            return;
        }
        let count = |service: Option<&Service>| service.map_or(0, |one| one.further.count());
        let shares = &self.tables.services.lookup().shares;
        let contested = shares.contested(key, count(before), count(now));
        let others = contested.iter();
        let others = others.filter_map(|other| self.tables.services.get(other));
        let further = others.flat_map(|other| other.further.addresses());
        // Many Services may name one address, and each address is told to all who name it.
        let mut touched: BTreeSet<IpAddr> = further.collect();
        for one in [before, now].into_iter().flatten() {
            touched.extend(one.vips.iter().copied().chain(one.further.addresses()));
        }
        for address in touched {
            self.touch_address(address);
        }
        // One that names none any more is not found by its addresses.
        self.tables.services.mark_each(contested);
    }

    /// Who has a better right to an address that a Service names.
    fn goes_before(&self, key: &Key, service: &Service, claim: &Claim) -> Option<Owner> {
        let address = claim.address;
        match self.owner(address) {
            Some(Owner::Node(node)) if claim.by == By::Author => return Some(Owner::Node(node)),
            Some(owner @ (Owner::Pod(_) | Owner::Service(_))) => return Some(owner),
            _ => {}
        }
        let mine = service.further.claimant(key, claim);
        let ranked = self.tables.services.lookup().claimants.ranked(address);
        let mut others = ranked
            .take_while(|other| **other < mine)
            .map(|other| &other.service);
        let better = others.find(|other| {
            let Some(object) = self.tables.services.get(other) else {
                return false;
            };
            // Most of many are beyond their namespace's bound, which is known at once.
            let mut claims = self.claims(other, object);
            claims.any(|one| one.address == address) && object.further.shares_port(&service.further)
        });
        better.cloned().map(Owner::Service)
    }
}
