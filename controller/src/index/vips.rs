//! DECISION: at which addresses beside its cluster IPs is a Service reached, as at those?
//!
//! kube-proxy answers a pod that dials `status.loadBalancer` addresses and `spec.externalIPs` itself, with the Service's
//! endpoints. The mesh does the same, so that the public name of a Service is no way around its waypoint and mutual TLS.
//! Whose such an address is goes by rank: pods, nodes, cluster IPs, load balancers, external IPs. An address of a load
//! balancer may be a node's, whose other ports proxies leave alone; an external IP, which a tenant writes, may not. Among
//! equals, who shares no TCP port shares the address; of others the older Service has it, then the lesser key.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::State;
use super::addresses::{Owner, parse};
use super::changes::{Notice, Target};
use super::kinds::Kind;
use super::names::Key;
use super::services::Service;

/// The addresses that a Service names beside its cluster IPs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FurtherVips {
    claims: Vec<Claim>,
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

/// Events on one Service.
const MAX_NOTICES: usize = 10;

// === impl FurtherVips ===

impl FurtherVips {
    /// Those that kube-proxy would answer, too: of a family in which the Service has a cluster IP.
    pub(super) fn parse(object: &core::Service, cluster_ips: &[IpAddr]) -> Self {
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
        let created = object.metadata.creation_timestamp.as_ref();
        Self {
            claims: claims.collect(),
            created: created.map_or(0, |time| time.0.as_millisecond()),
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.claims.iter().map(|claim| claim.address)
    }

    fn by(&self, address: IpAddr) -> Option<By> {
        let mut claims = self.claims.iter();
        let claim = claims.find(|claim| claim.address == address)?;
        Some(claim.by)
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

// === impl State ===

impl State {
    /// The further addresses that are a Service's.
    pub(super) fn further_vips(&self, key: &Key, service: &Service) -> Vec<IpAddr> {
        let claims = service.further.claims.iter();
        let won = claims.filter(|claim| self.goes_before(key, service, claim).is_none());
        won.map(|claim| claim.address).collect()
    }

    /// What people are told on a Service that names addresses of others.
    pub(super) fn further_vip_notices(&self, key: &Key) -> Vec<Notice> {
        let Some(service) = self.tables.services.get(key) else {
            return Vec::new();
        };
        let lost = service.further.claims.iter().filter_map(|claim| {
            let owner = self.goes_before(key, service, claim)?;
            let address = claim.address;
            Some(Notice {
                target: Target::new(Kind::Service, key),
                uid: service.uid.clone(),
                warning: true,
                reason: "AddressTaken".to_owned(),
                note: format!(
                    "address {address} is that of {owner}: in the mesh it does not lead to this Service"
                ),
            })
        });
        lost.take(MAX_NOTICES).collect()
    }

    /// Marks what depends on a Service's addresses, if what decides whose they are has changed.
    pub(super) fn touch_claims(&mut self, before: Option<&Service>, now: Option<&Service>) {
        let claims = |service: &Service| (service.vips.clone(), service.further.clone());
        let ports = |service: &Service| service.ports.clone();
        if before.map(claims) == now.map(claims) && before.map(ports) == now.map(ports) {
            return;
        }
        for one in [before, now].into_iter().flatten() {
            for address in one.vips.iter().copied().chain(one.further.addresses()) {
                self.touch_address(address);
            }
        }
    }

    /// Who has a better right to an address that a Service names.
    fn goes_before(&self, key: &Key, service: &Service, claim: &Claim) -> Option<Owner> {
        let address = claim.address;
        match self.owner(address) {
            Some(Owner::Node(node)) if claim.by == By::Author => return Some(Owner::Node(node)),
            Some(Owner::Pod(pod)) => return Some(Owner::Pod(pod)),
            // A node's address may be a cluster IP as well.
            _ => {}
        }
        if let Some(other) = self.service_at(address) {
            return Some(Owner::Service(other));
        }
        let mine = (claim.by, service.further.created, key);
        let mut others = self.tables.services.lookup().naming(address);
        let better = others.find(|other| {
            let Some(object) = self.tables.services.get(other) else {
                return false;
            };
            let by = object.further.by(address);
            by.is_some_and(|by| (by, object.further.created, *other) < mine)
                && shares_port(object, service)
        });
        better.cloned().map(Owner::Service)
    }
}

fn shares_port(one: &Service, other: &Service) -> bool {
    let mut ports = one.ports.iter();
    ports.any(|port| other.port(port.port).is_some())
}
