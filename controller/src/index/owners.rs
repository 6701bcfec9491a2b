//! What stands between a Gateway and its pods, or in the place of what is made for it: Deployments, ReplicaSets and
//! ServiceAccounts, by their owners. Only metadata are watched.

use std::sync::Arc;

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core};
use kube::core::{ObjectMeta, PartialObjectMeta};

use super::kinds::{ApiKind, WatchScope, Watched};
use super::names::{Key, MANAGED, MANAGED_BY_US};
use super::pods::Pod;
use super::{Settings, State};

/// The owner that manages an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Controller {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// Who an object is, and whose.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned {
    uid: Arc<str>,
    controller: Option<Controller>,
    /// It has our label.
    managed: bool,
}

/// What matters of a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deployment(Owned);

/// What matters of a ReplicaSet of a waypoint's Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplicaSet(Owned);

/// What matters of a ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceAccount(Owned);

// === impl Controller ===

impl Controller {
    pub(super) fn of(meta: &ObjectMeta) -> Option<Self> {
        let owners = meta.owner_references.as_deref().unwrap_or_default();
        let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
        Some(Self {
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        })
    }

    fn is(&self, kind: &str, name: &str, uid: &str) -> bool {
        self.kind == kind && self.name == name && self.uid == uid
    }
}

// === impl Owned ===

impl Owned {
    fn parse(meta: &ObjectMeta) -> Self {
        let label = meta.labels.as_ref().and_then(|labels| labels.get(MANAGED));
        Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            controller: Controller::of(meta),
            managed: label.is_some_and(|value| value == MANAGED_BY_US),
        }
    }

    fn owned_by(&self, kind: &str, name: &str, uid: &str) -> bool {
        let controller = self.controller.as_ref();
        controller.is_some_and(|controller| controller.is(kind, name, uid))
    }
}

// === impl Deployment ===

impl Watched for Deployment {
    type Object = PartialObjectMeta<apps::Deployment>;
    const API: ApiKind = ApiKind::of_group("apps", "Deployment", "deployments").metadata();

    fn parse(object: &Self::Object) -> Option<Self> {
        Some(Self(Owned::parse(&object.metadata)))
    }

    fn touch(state: &mut State, key: &Key, _before: Option<&Self>, _now: Option<&Self>) {
        state.touch_instances(key);
    }
}

// === impl ReplicaSet ===

impl Watched for ReplicaSet {
    type Object = PartialObjectMeta<apps::ReplicaSet>;
    const API: ApiKind = ApiKind::of_group("apps", "ReplicaSet", "replicasets").metadata();

    /// A ReplicaSet has the labels of its Deployment's template.
    fn scope(_settings: &Settings) -> WatchScope {
        WatchScope {
            labels: Some(format!("{MANAGED}={MANAGED_BY_US}")),
            ..WatchScope::default()
        }
    }

    fn parse(object: &Self::Object) -> Option<Self> {
        Some(Self(Owned::parse(&object.metadata)))
    }

    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>) {
        let deployments = [before, now].into_iter().flatten();
        let deployments = deployments.filter_map(|one| one.0.controller.as_ref());
        let gateways: Vec<Key> = deployments
            .map(|deployment| Key::new(&key.namespace, &deployment.name))
            .collect();
        for gateway in gateways {
            state.touch_instances(&gateway);
        }
    }
}

// === impl ServiceAccount ===

impl Watched for ServiceAccount {
    type Object = PartialObjectMeta<core::ServiceAccount>;
    const API: ApiKind = ApiKind::core("ServiceAccount", "serviceaccounts").metadata();

    fn parse(object: &Self::Object) -> Option<Self> {
        Some(Self(Owned::parse(&object.metadata)))
    }

    fn touch(state: &mut State, key: &Key, _before: Option<&Self>, _now: Option<&Self>) {
        if state.tables.gateways.get(key).is_some() {
            state.tables.gateways.mark(key.clone());
        }
    }
}

// === impl State ===

impl State {
    /// The kind of an object that has a Gateway's name and was not made for it.
    pub(super) fn taken(&self, gateway: &Key, uid: &str) -> Option<&'static str> {
        let foreign = |owned: &Owned| !owned.owned_by("Gateway", &gateway.name, uid);
        let tables = &self.tables;
        if let Some(service) = tables.services.get(gateway)
            && !service
                .controller
                .as_ref()
                .is_some_and(|owner| owner.is("Gateway", &gateway.name, uid))
        {
            return Some("Service");
        }
        if tables
            .deployments
            .get(gateway)
            .is_some_and(|one| foreign(&one.0))
        {
            return Some("Deployment");
        }
        if tables
            .service_accounts
            .get(gateway)
            .is_some_and(|one| foreign(&one.0))
        {
            return Some("ServiceAccount");
        }
        None
    }

    /// The kinds of what was made for a Gateway and has lost our label since. By that label alone the admission policy knows
    /// what we may write.
    pub(super) fn unlabelled(&self, gateway: &Key, uid: &str) -> Vec<&'static str> {
        let tables = &self.tables;
        let lost = |owned: &Owned| !owned.managed && owned.owned_by("Gateway", &gateway.name, uid);
        let deployment = tables.deployments.get(gateway);
        let service = tables.services.get(gateway);
        let service = service.filter(|service| !service.made_by_us());
        let owner = service.and_then(|service| service.controller.as_ref());
        let account = tables.service_accounts.get(gateway);
        let kinds = [
            ("Deployment", deployment.is_some_and(|one| lost(&one.0))),
            (
                "Service",
                owner.is_some_and(|owner| owner.is("Gateway", &gateway.name, uid)),
            ),
            ("ServiceAccount", account.is_some_and(|one| lost(&one.0))),
        ];
        let lost = kinds.into_iter().filter(|(_, lost)| *lost);
        lost.map(|(kind, _)| kind).collect()
    }

    /// The Gateway whose waypoint this pod is: the pod's ReplicaSet is of our Deployment, the Deployment of a Gateway that is
    /// ours, each by UID, and the pod runs under the account that has the Gateway's name.
    pub(super) fn waypoint_of(&self, key: &Key, pod: &Pod) -> Option<Key> {
        let gateway = Key::new(&key.namespace, pod.names_gateway()?);
        let gateway_uid = self.our_gateways.get(&gateway)?;
        pod.identity()
            .filter(|account| ***account == *gateway.name)?;
        let by = pod.controller()?;
        let set = self.tables.replica_sets.named(&key.namespace, &by.name)?;
        let deployment = self.tables.deployments.get(&gateway)?;
        let chain = by.is("ReplicaSet", &by.name, &set.0.uid)
            && set
                .0
                .owned_by("Deployment", &gateway.name, &deployment.0.uid)
            && deployment.0.owned_by("Gateway", &gateway.name, gateway_uid);
        chain.then_some(gateway)
    }

    /// Whether something that we made for the Gateway with this UID is there.
    pub(super) fn made_for(&self, gateway: &Key, uid: &str) -> bool {
        let deployment = self.tables.deployments.get(gateway);
        let account = self.tables.service_accounts.get(gateway);
        let service = self.tables.services.get(gateway);
        let service = service.filter(|service| service.made_by_us());
        let owner = service.and_then(|service| service.controller.as_ref());
        owner.is_some_and(|owner| owner.is("Gateway", &gateway.name, uid))
            || deployment.is_some_and(|one| one.0.owned_by("Gateway", &gateway.name, uid))
            || account.is_some_and(|one| one.0.owned_by("Gateway", &gateway.name, uid))
    }

    /// Marks a Gateway, and the pods that say they are its waypoint. Where there is no Gateway, nobody is its waypoint.
    fn touch_instances(&mut self, gateway: &Key) {
        if self.tables.gateways.get(gateway).is_some() {
            self.tables.gateways.mark(gateway.clone());
            self.mark_instances(gateway);
        }
    }

    /// Marks the pods that look at whether a Gateway is ours: those that say they are its waypoint, and those that its
    /// Service selects.
    pub(super) fn touch_instance_pods(&mut self, gateway: &Key) {
        self.mark_instances(gateway);
        let service = self.tables.services.get(gateway);
        if let Some(service) = service.filter(|service| service.made_by_us()) {
            let pods = self.pods_behind(&gateway.namespace, [Some(service), None]);
            self.tables.pods.mark_each(pods);
        }
    }

    /// Marks the pods that say they are a Gateway's waypoint.
    fn mark_instances(&mut self, gateway: &Key) {
        let pods = self.tables.pods.lookup().instances(gateway);
        let pods: Vec<Key> = pods.cloned().collect();
        self.tables.pods.mark_each(pods);
    }
}
