//! The join, pure and synchronous: Kubernetes objects in, changes out, and only what changed.
//!
//! ```text
//!  Namespace ──┬─▶ Pod ──▶ Workload, Enrolment, Pod status
//!              │    ▲
//!  Node ───────┼────┤◀── EndpointSlice ──▶ Workload (of what is no pod)
//!              │    │
//!              ├─▶ Service ──▶ Service, Service status
//!              │    ▲    ╲
//!  GatewayClass ─▶ Gateway ╲▶ HTTPRoute ──▶ Route, route status
//!                   ╰▶ waypoint, Gateway status
//! ```
//!
//! An object that arrives marks what looks at it; [`Index::settle`] computes what is marked and tells the differences.
//! Writes are wishes: one is made when status is not what it should be, taken back when it has become so,
//! and never repeated while nothing changes.

mod binding;
pub mod changes;
mod condition;
mod endpoints;
mod enrolment;
mod gateways;
mod intake;
pub mod names;
mod namespaces;
mod nodes;
pub mod placement;
mod pods;
mod routes;
mod services;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::DynamicObject;
use mesh::proto::node::{EnrolledNamespace, EnrolmentReport};
use mesh::xds::{ENROLLED_NAMESPACE_TYPE, Encoded};
use serde_json::Value;

use self::changes::{
    Changes, Kind, Notice, PodPlacement, Published, Scope, Source, Target, WaypointPlan, Write,
};
use self::endpoints::Slice;
use self::enrolment::Report;
use self::gateways::{Class, Gateway, Waypoint};
use self::names::{CLASSES, Key};
use self::namespaces::Namespace;
use self::nodes::Node;
use self::placement::NodeProxyRule;
use self::pods::Pod;
use self::routes::Route;
use self::services::Service;
use self::tables::{Dirty, Table};

/// What the index is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the identities.
    pub trust_domain: String,
    /// Of the services' names.
    pub cluster_domain: String,
    /// Of the workloads' UIDs.
    pub cluster_id: String,
    /// Namespaces whose pods are never enrolled.
    pub excluded_namespaces: Vec<String>,
    /// Where the controller runs.
    pub system_namespace: String,
    /// Which pods are node proxies.
    pub node_proxies: Vec<NodeProxyRule>,
}

/// One kind of object, as the watch tells it.
#[derive(Debug)]
pub enum Event<K> {
    /// It is there, or changed.
    Apply(Box<K>),
    /// It is gone.
    Delete(Key),
    /// These are all there are.
    Reset(Vec<K>),
}

/// What the index takes in.
#[derive(Debug)]
pub enum Input {
    /// v1
    Namespace(Event<core::Namespace>),
    /// v1
    Node(Event<core::Node>),
    /// v1
    Pod(Event<core::Pod>),
    /// v1
    Service(Event<core::Service>),
    /// discovery.k8s.io/v1
    EndpointSlice(Event<EndpointSlice>),
    /// gateway.networking.k8s.io/v1
    GatewayClass(Event<DynamicObject>),
    /// gateway.networking.k8s.io/v1
    Gateway(Event<DynamicObject>),
    /// gateway.networking.k8s.io/v1
    HttpRoute(Event<DynamicObject>),
    /// What a node says about one of its pods.
    Report {
        /// Whose ztunnel it is.
        node: Arc<str>,
        /// What it says.
        report: EnrolmentReport,
    },
    /// The mesh is being uninstalled: everything is to be as if it had never been.
    Leave,
}

/// The join.
#[derive(Debug)]
pub struct Index {
    state: State,
    published: Published,
    /// What was asked to be written, without its time, by object.
    pending: BTreeMap<Target, Write>,
    told: HashMap<Key, Notice>,
    placements: HashMap<Key, (Arc<str>, PodPlacement)>,
    roots: BTreeSet<Arc<str>>,
}

/// What is known, and what must be looked at again.
#[derive(Debug)]
struct State {
    settings: Settings,
    leaving: bool,
    namespaces: Table<Namespace>,
    nodes: Table<Node>,
    pods: Table<Pod>,
    services: Table<Service>,
    slices: Table<Slice>,
    classes: Table<Class>,
    gateways: Table<Gateway>,
    routes: Table<Route>,
    /// Pods by UID.
    uids: HashMap<Arc<str>, Key>,
    /// By pod UID.
    reports: HashMap<Arc<str>, Report>,
    /// Of pods that the watch has not shown yet, with the node that spoke.
    early: HashMap<Arc<str>, (Arc<str>, Report)>,
    /// The Gateways that are ours, as the bound see them.
    waypoints: BTreeMap<Key, Waypoint>,
    /// What runs for them.
    plans: BTreeMap<Key, WaypointPlan>,
    dirty: Dirty,
}

// === impl Index ===

impl Index {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let state = State {
            settings,
            leaving: false,
            namespaces: Table::default(),
            nodes: Table::default(),
            pods: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            classes: Table::default(),
            gateways: Table::default(),
            routes: Table::default(),
            uids: HashMap::new(),
            reports: HashMap::new(),
            early: HashMap::new(),
            waypoints: BTreeMap::new(),
            plans: BTreeMap::new(),
            // Ours are missing until they are seen.
            dirty: Dirty {
                classes: CLASSES.map(Into::into).into(),
                ..Dirty::default()
            },
        };
        Self {
            state,
            published: Published::default(),
            pending: BTreeMap::new(),
            told: HashMap::new(),
            placements: HashMap::new(),
            roots: BTreeSet::new(),
        }
    }

    /// Takes one thing in. Nothing comes out before [`Index::settle`].
    pub fn apply(&mut self, input: Input) {
        let state = &mut self.state;
        match input {
            Input::Namespace(event) => state.each(
                event,
                |s| s.namespaces.keys().cloned().collect(),
                State::namespace,
            ),
            Input::Node(event) => {
                state.each(event, |s| s.nodes.keys().cloned().collect(), State::node);
            }
            Input::Pod(event) => {
                state.each(event, |s| s.pods.keys().cloned().collect(), State::pod);
            }
            Input::Service(event) => state.each(
                event,
                |s| s.services.keys().cloned().collect(),
                State::service,
            ),
            Input::EndpointSlice(event) => {
                state.each(event, |s| s.slices.keys().cloned().collect(), State::slice);
            }
            Input::GatewayClass(event) => {
                state.each(event, |s| s.classes.keys().cloned().collect(), State::class);
            }
            Input::Gateway(event) => state.each(
                event,
                |s| s.gateways.keys().cloned().collect(),
                State::gateway,
            ),
            Input::HttpRoute(event) => {
                state.each(event, |s| s.routes.keys().cloned().collect(), State::route);
            }
            Input::Report { node, report } => state.report(&node, &report),
            Input::Leave => state.leave(),
        }
    }

    /// Whether the mesh is being uninstalled.
    pub fn leaving(&self) -> bool {
        self.state.leaving
    }

    /// Whether every write that was asked for has been seen to be made.
    pub fn quiet(&self) -> bool {
        self.pending.is_empty()
    }

    /// For people: how much of each kind is known.
    pub fn summary(&self) -> Value {
        let state = &self.state;
        let pending = self.pending.keys().take(20);
        serde_json::json!({
            "namespaces": state.namespaces.len(),
            "nodes": state.nodes.len(),
            "pods": state.pods.len(),
            "services": state.services.len(),
            "endpointSlices": state.slices.len(),
            "gateways": state.gateways.len(),
            "waypoints": state.waypoints.len(),
            "routes": state.routes.len(),
            "reports": state.reports.len(),
            "pendingWrites": self.pending.len(),
            "firstPendingWrites": pending.map(|t| format!("{:?} {}", t.kind, t.key)).collect::<Vec<_>>(),
            "leaving": state.leaving,
        })
    }

    /// Computes what is marked. `now` goes into the conditions that flip.
    pub fn settle(&mut self, now: &str) -> Changes {
        let mut changes = Changes::default();
        self.settle_gateways(now, &mut changes);
        let services = std::mem::take(&mut self.state.dirty.services);
        for key in services {
            self.publish(
                Source::Service(key.clone()),
                self.state.service_resources(&key),
                &mut changes,
            );
            self.want(
                Kind::Service,
                &key,
                self.state.service_status(&key),
                now,
                &mut changes,
            );
            self.state.touch_routes_of(&key);
        }
        for key in std::mem::take(&mut self.state.dirty.slices) {
            self.publish(
                Source::Slice(key.clone()),
                self.state.slice_resources(&key),
                &mut changes,
            );
        }
        for key in std::mem::take(&mut self.state.dirty.pods) {
            self.publish(
                Source::Pod(key.clone()),
                self.state.pod_resources(&key),
                &mut changes,
            );
            self.want(
                Kind::Pod,
                &key,
                self.state.pod_status(&key),
                now,
                &mut changes,
            );
            self.settle_placement(&key, &mut changes);
        }
        for key in std::mem::take(&mut self.state.dirty.routes) {
            self.publish(
                Source::Route(key.clone()),
                self.state.route_resources(&key),
                &mut changes,
            );
            self.want(
                Kind::HttpRoute,
                &key,
                self.state.route_status(&key),
                now,
                &mut changes,
            );
            self.tell(&key, &mut changes);
        }
        for name in std::mem::take(&mut self.state.dirty.namespaces) {
            self.settle_namespace(&name, now, &mut changes);
        }
        self.settle_roots(&mut changes);
        changes
    }

    fn settle_gateways(&mut self, now: &str, changes: &mut Changes) {
        if !self.state.dirty.classes.is_empty() {
            changes.classes = self.state.missing_classes();
        }
        for name in std::mem::take(&mut self.state.dirty.classes) {
            let key = Key {
                namespace: "".into(),
                name: name.clone(),
            };
            let write = self
                .state
                .classes
                .get(&key)
                .filter(|_| !self.state.leaving)
                .and_then(|class| class.status(&name));
            self.want(Kind::GatewayClass, &key, write, now, changes);
        }
        for key in std::mem::take(&mut self.state.dirty.gateways) {
            let plan = self.state.waypoint_plan(&key);
            if self.state.plans.get(&key) != plan.as_ref() {
                match &plan {
                    Some(plan) => self.state.plans.insert(key.clone(), plan.clone()),
                    None => self.state.plans.remove(&key),
                };
                changes.waypoints.push((key.clone(), plan));
            }
            let waypoint = self.state.waypoint(&key);
            if self.state.waypoints.get(&key) != waypoint.as_ref() {
                match waypoint {
                    Some(waypoint) => self.state.waypoints.insert(key.clone(), waypoint),
                    None => self.state.waypoints.remove(&key),
                };
                self.state.touch_bound(&key);
            }
            self.want(
                Kind::Gateway,
                &key,
                self.state.gateway_status(&key),
                now,
                changes,
            );
        }
    }

    fn settle_namespace(&mut self, name: &Arc<str>, now: &str, changes: &mut Changes) {
        let mut resources = BTreeMap::new();
        if self.state.enrolled_namespace(name) {
            let message = EnrolledNamespace {
                name: name.to_string(),
            };
            resources.insert(
                (Scope::Namespaces, name.clone()),
                Encoded::new(ENROLLED_NAMESPACE_TYPE, &message),
            );
        }
        self.publish(Source::Namespace(name.clone()), resources, changes);
        let key = Key {
            namespace: "".into(),
            name: name.clone(),
        };
        let write = self
            .state
            .namespaces
            .get(&key)
            .and_then(|namespace| namespace.status(name, self.state.leaving));
        self.want(Kind::Namespace, &key, write, now, changes);
    }

    fn settle_roots(&mut self, changes: &mut Changes) {
        let mut roots: BTreeSet<Arc<str>> = self
            .state
            .plans
            .keys()
            .map(|key| key.namespace.clone())
            .collect();
        roots.insert(self.state.settings.system_namespace.as_str().into());
        if roots != self.roots {
            self.roots.clone_from(&roots);
            changes.root_namespaces = Some(roots);
        }
    }

    fn publish(
        &mut self,
        source: Source,
        now: BTreeMap<(Scope, Arc<str>), Encoded>,
        changes: &mut Changes,
    ) {
        self.published.replace(source, now, &mut changes.resources);
    }

    fn want(
        &mut self,
        kind: Kind,
        key: &Key,
        write: Option<Write>,
        now: &str,
        changes: &mut Changes,
    ) {
        let target = Target {
            kind,
            key: key.clone(),
        };
        match write {
            None => {
                if self.pending.remove(&target).is_some() {
                    changes.writes.push((target, None));
                }
            }
            Some(write) => {
                let before = self.pending.get(&target);
                if before.is_some_and(|before| before.how == write.how && before.body == write.body)
                {
                    return;
                }
                self.pending.insert(target.clone(), write.clone());
                changes.writes.push((target, Some(write.stamped(now))));
            }
        }
    }

    fn settle_placement(&mut self, key: &Key, changes: &mut Changes) {
        let now = self.state.placement(key);
        if self.placements.get(key) == now.as_ref() {
            return;
        }
        if let Some((uid, _)) = self.placements.remove(key) {
            changes.placements.push((uid, None));
        }
        if let Some((uid, placement)) = now {
            changes
                .placements
                .push((uid.clone(), Some(placement.clone())));
            self.placements.insert(key.clone(), (uid, placement));
        }
    }

    /// Tells a refusal that has no status to stand in, once.
    fn tell(&mut self, key: &Key, changes: &mut Changes) {
        match self.state.route_notice(key) {
            None => {
                self.told.remove(key);
            }
            Some(notice) if self.told.get(key) == Some(&notice) => {}
            Some(notice) => {
                self.told.insert(key.clone(), notice.clone());
                changes.notices.push(notice);
            }
        }
    }
}
