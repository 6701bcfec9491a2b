//! One end of a connection, in the words that logs, metrics and baggage share.

use std::sync::Arc;

use hbone::{Baggage, SpiffeId};

use crate::workload::{Workload, WorkloadType};

/// Who is at one end of a connection, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Party {
    /// The pod's name.
    pub name: Option<Arc<str>>,
    /// The pod's namespace.
    pub namespace: Option<Arc<str>>,
    /// The proven (or, for the far end of an outgoing tunnel, demanded) identity.
    pub identity: Option<SpiffeId>,
    /// What owns the pod: the Deployment's name, say.
    pub workload: Option<Arc<str>>,
    /// The kind of that owner, as baggage spells it.
    pub kind: Option<&'static str>,
    /// The canonical service name (`app`).
    pub app: Option<Arc<str>>,
    /// The canonical revision (`version`).
    pub version: Option<Arc<str>>,
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The node's region.
    pub region: Option<Arc<str>>,
    /// The node's zone.
    pub zone: Option<Arc<str>>,
}

impl Party {
    /// What the mesh says of a workload; its identity is claimed here only if the caller has proven it.
    pub fn of(workload: &Workload) -> Self {
        let (template, location) = (&workload.template, &workload.location);
        Self {
            name: some(&workload.name().into()),
            namespace: some(&template.namespace),
            identity: None,
            workload: some(&template.workload_name),
            kind: Some(kind(template.workload_type)),
            app: some(&template.canonical_name),
            version: some(&template.canonical_revision),
            cluster: some(&location.cluster),
            region: some(&location.region),
            zone: some(&location.zone),
        }
    }

    /// A proven peer: what the mesh knows of the workload with its identity at its address, if there is one, and else what
    /// the certificate says. What a peer says of itself in baggage is no label: each word would be a series of its own.
    #[must_use]
    pub fn of_peer(known: Option<&Workload>, identity: SpiffeId) -> Self {
        known.map(Self::of).unwrap_or_default().proven(identity)
    }

    /// The same party with its identity proven, which says the namespace, too.
    #[must_use]
    pub fn proven(mut self, identity: SpiffeId) -> Self {
        if let Some((namespace, _)) = identity.service_account() {
            self.namespace = Some(namespace.into());
        }
        self.identity = Some(identity);
        self
    }

    /// What this party says of itself to the other end of a tunnel.
    pub fn baggage(&self) -> Baggage {
        Baggage {
            cluster: self.cluster.clone(),
            namespace: self.namespace.clone(),
            workload_name: self.workload.clone(),
            workload_type: self.kind.map(Arc::from),
            service_name: self.app.clone(),
            service_version: self.version.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
        }
    }
}

fn some(text: &Arc<str>) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.clone())
}

fn kind(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Job => "job",
        WorkloadType::Pod => "pod",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Sample, id};

    #[test]
    fn a_peers_namespace_is_the_certificates() {
        let says = |w: &mut crate::proto::workload::Workload| {
            w.namespace = "kube-system".into();
            w.workload_name = "cart".into();
        };
        let world = Sample::default().pod("a", "10.0.0.1", says).world();
        let known = world.look(|world| world.workload_at([10, 0, 0, 1].into()).cloned());
        assert!(known.is_some());
        for known in [None, known.as_deref()] {
            let party = Party::of_peer(known, id("a"));
            assert_eq!(party.namespace.as_deref(), Some("ns"));
            assert_eq!(party.workload.is_some(), known.is_some());
            assert_eq!(party.identity, Some(id("a")));
        }
    }
}
