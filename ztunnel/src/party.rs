//! One end of a connection, in the words that logs, metrics and baggage share.

use std::sync::Arc;

use hbone::{Baggage, SpiffeId};
use mesh::workload::{Workload, WorkloadType};

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

    /// What a proven peer says of itself, where the mesh does not know its address.
    pub fn from_baggage(baggage: &Baggage) -> Self {
        Self {
            namespace: baggage.namespace.clone(),
            workload: baggage.workload_name.clone(),
            app: baggage.service_name.clone(),
            version: baggage.service_version.clone(),
            cluster: baggage.cluster.clone(),
            region: baggage.region.clone(),
            zone: baggage.zone.clone(),
            ..Self::default()
        }
    }

    /// The same party with its identity proven.
    #[must_use]
    pub fn proven(mut self, identity: SpiffeId) -> Self {
        if self.namespace.is_none() {
            self.namespace = identity.service_account().map(|(ns, _)| ns.into());
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
