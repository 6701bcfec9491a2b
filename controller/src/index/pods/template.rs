//! What the pods of one owner have in common: a Deployment's thousand pods say it once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use mesh::proto::workload::WorkloadType;

use super::super::common::Common;
use super::super::labels::Labels;
use super::super::names::MIRROR;
use super::super::owners::Controller;

/// What is the same on every pod that its owner made, as far as it is one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::index) struct Template {
    pub(super) labels: Labels,
    /// Of the mirror of a static pod (its kubelet made it, with whatever labels, in whatever namespace): the UID under
    /// which the kubelet and the container runtime know the static pod itself. Nothing else has this template.
    pub(super) mirror: Option<Arc<str>>,
    /// Absent in a mirror of a static pod.
    pub(super) service_account: Option<Arc<str>>,
    /// TCP ports that have a name, in the order of their names.
    ports: Box<[(Arc<str>, u16)]>,
    pub(super) owner: (WorkloadType, Arc<str>),
    pub(super) controller: Option<Controller>,
}

// === impl Template ===

impl Template {
    pub(super) fn parse(object: &core::Pod) -> Self {
        let labels = Labels::of(object.metadata.labels.as_ref());
        let spec = object.spec.as_ref();
        let annotations = object.metadata.annotations.as_ref();
        let mirror = annotations.and_then(|all| all.get(MIRROR));
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        Self {
            mirror: mirror.map(|uid| uid.as_str().into()),
            service_account: account.filter(|name| !name.is_empty()).map(Into::into),
            ports: spec.map(ports).unwrap_or_default(),
            owner: owner(&object.metadata, &labels),
            controller: Controller::of(&object.metadata),
            labels,
        }
    }

    /// The number of a port that has a name.
    pub(super) fn port(&self, name: &str) -> Option<u16> {
        let at = self.ports.binary_search_by(|(one, _)| (**one).cmp(name));
        Some(self.ports[at.ok()?].1)
    }

    /// Takes its texts from those that are known.
    pub(in crate::index) fn share(&mut self, common: &mut Common) {
        self.labels.share(common);
        for (name, _) in &mut self.ports {
            common.text(name);
        }
        for text in self.service_account.iter_mut().chain([&mut self.owner.1]) {
            common.text(text);
        }
    }
}

/// Of several ports of one name the last counts.
fn ports(spec: &core::PodSpec) -> Box<[(Arc<str>, u16)]> {
    let side = spec.init_containers.iter().flatten();
    let main = spec.containers.iter();
    let all = side
        .chain(main)
        .flat_map(|container| container.ports.iter().flatten());
    let named: BTreeMap<Arc<str>, u16> = all
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.as_deref()?.into(), number))
        })
        .collect();
    named.into_iter().collect()
}

/// What made the pod: the Deployment behind its ReplicaSet, the CronJob behind its Job, or itself.
fn owner(meta: &kube::core::ObjectMeta, labels: &Labels) -> (WorkloadType, Arc<str>) {
    let own = meta.name.as_deref().unwrap_or_default();
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return (WorkloadType::Pod, own.into());
    };
    let name = owner.name.as_str();
    let strip = |suffix: &str| name.strip_suffix(suffix)?.strip_suffix('-');
    match owner.kind.as_str() {
        "ReplicaSet" => match labels.get("pod-template-hash").and_then(|hash| strip(hash)) {
            Some(deployment) => (WorkloadType::Deployment, deployment.into()),
            None => (WorkloadType::Pod, name.into()),
        },
        "Job" => match name.rsplit_once('-') {
            // A CronJob's Jobs end in the minute they are for.
            Some((cron, minute))
                if minute.len() >= 8 && minute.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (WorkloadType::Cronjob, cron.into())
            }
            _ => (WorkloadType::Job, name.into()),
        },
        _ => (WorkloadType::Pod, name.into()),
    }
}
