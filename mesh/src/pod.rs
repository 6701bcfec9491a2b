//! One pod that is in the mesh, as its node's proxy knows it from its enrolment.

use std::net::IpAddr;
use std::sync::Arc;

use hbone::{InvalidSpiffeId, SpiffeId, TrustDomain};

use crate::enrolment::{Enrolment, PodUid};
use crate::names::Uid;

/// One pod that is in the mesh, as its node knows it; the control plane's record may come later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its Kubernetes UID.
    pub uid: PodUid,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who it is in the mesh.
    pub identity: SpiffeId,
    /// The uid under which the mesh announces it.
    pub workload: Uid,
}

impl Pod {
    /// The pod of an enrolment, with the addresses that its network plugin gave it, where they are known.
    pub fn new(
        enrolment: &Enrolment,
        given: &[IpAddr],
        trust_domain: &TrustDomain,
        cluster: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        let mut addresses: Vec<IpAddr> = enrolment.addresses.clone();
        addresses.extend(given);
        // Two who tell of the same addresses in another order tell of the same pod.
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Self {
            uid: enrolment.uid.clone(),
            name: enrolment.name.clone(),
            namespace: enrolment.namespace.clone(),
            addresses,
            identity: SpiffeId::for_service_account(
                trust_domain,
                &enrolment.namespace,
                &enrolment.service_account,
            )?,
            workload: Uid::pod(cluster, &enrolment.namespace, &enrolment.name),
        })
    }

    /// Whether an address is this pod's.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}
