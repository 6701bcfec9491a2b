//! Picks one endpoint of a service.

use std::net::IpAddr;

use crate::service::Service;
use crate::world::{Endpoint, Snapshot};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why a service has no endpoint to pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// No workload serves this port.
    #[error("no endpoint")]
    None,
    /// Some do, and none of them may receive traffic.
    #[error("no healthy endpoint")]
    Unhealthy,
}

impl Family {
    /// Of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.to_canonical().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    fn has(self, ip: IpAddr) -> bool {
        Self::of(ip) == self
    }
}

impl Snapshot {
    /// Any endpoint that may receive traffic, each as likely as the other; those with an address of `family` first.
    pub fn pick(
        &self,
        service: &Service,
        port: u16,
        family: Option<Family>,
    ) -> Result<Endpoint, NoEndpoint> {
        let (mut chosen, mut best, mut seen) = (None, 0, 0u64);
        let mut any = false;
        for endpoint in self.endpoints(&service.id, port) {
            any = true;
            if !endpoint.healthy && !service.publish_not_ready {
                continue;
            }
            let addresses = &endpoint.workload.addresses;
            let fits = family.is_none_or(|family| addresses.iter().any(|ip| family.has(*ip)));
            let rank = if fits { 2 } else { 1 };
            if rank > best {
                (best, seen) = (rank, 0);
            }
            if rank < best {
                continue;
            }
            // The k-th of equals takes the place with probability 1/k: one pass, and all are as likely.
            seen += 1;
            if fastrand::u64(0..seen) == 0 {
                chosen = Some(endpoint);
            }
        }
        chosen.ok_or(match any {
            true => NoEndpoint::Unhealthy,
            false => NoEndpoint::None,
        })
    }
}
