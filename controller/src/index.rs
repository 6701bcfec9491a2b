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
//! How Kubernetes should be is a table of desired state: an entry is put in when an object is not as it should be, taken
//! out when it is seen to have become so, and not told again while nothing changes.

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
    Changes, Kind, PodPlacement, Published, Scope, Source, Target, WaypointPlan, Write,
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
use crate::desired::{Entry, Item, Wanted};

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
    /// How Kubernetes should be, where it is not; without the times.
    desired: BTreeMap<Item, Entry>,
    /// How many statuses stand there.
    outstanding: usize,
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
            desired: BTreeMap::new(),
            outstanding: 0,
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
    pub fn uninstalling(&self) -> bool {
        self.state.leaving
    }

    /// Whether every status is seen to be as it should be.
    pub fn writes_settled(&self) -> bool {
        self.outstanding == 0
    }

    /// For people: how much of each kind is known.
    pub fn summary(&self) -> Value {
        let state = &self.state;
        let pending = self.desired.keys().map_while(|item| match item {
            Item::Status(target) => Some(format!("{:?} {}", target.kind, target.key)),
            _ => None,
        });
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
            "pendingWrites": self.outstanding,
            "firstPendingWrites": pending.take(20).collect::<Vec<_>>(),
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
            self.tell(&key, now, &mut changes);
        }
        for name in std::mem::take(&mut self.state.dirty.namespaces) {
            self.settle_namespace(&name, now, &mut changes);
        }
        self.settle_roots(now, &mut changes);
        changes
    }

    fn settle_gateways(&mut self, now: &str, changes: &mut Changes) {
        if !self.state.dirty.classes.is_empty() {
            for name in CLASSES {
                let missing = self.state.missing_class(name).then_some(Wanted::Class);
                self.desire(
                    Item::Class(name.into()),
                    missing.map(Entry::leader),
                    now,
                    changes,
                );
            }
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
            let before = self.state.plans.remove(&key);
            let plan = self.state.waypoint_plan(&key, before.as_ref());
            if let Some(plan) = &plan {
                self.state.plans.insert(key.clone(), plan.clone());
            }
            let item = Item::Waypoint(key.clone());
            let wanted = match plan {
                Some(plan) => Some(Wanted::Waypoint(plan)),
                None => self.unwanted_waypoint(&item, &key),
            };
            self.desire(item, wanted.map(Entry::leader), now, changes);
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
        if self.state.namespaces.get(&key).is_none() && !self.roots.contains(name) {
            self.desire(Item::Roots(name.clone()), None, now, changes);
        }
    }

    /// What was made for a Gateway that is gone goes with it: it is the owner. One that stays and is no longer ours is to
    /// lose it.
    fn unwanted_waypoint(&self, item: &Item, key: &Key) -> Option<Wanted> {
        let gateway = self.state.gateways.get(key)?;
        let made_for = match &self.desired.get(item)?.wanted {
            Wanted::Waypoint(plan) => &plan.uid,
            Wanted::NoWaypoint { gateway_uid } => gateway_uid,
            _ => return None,
        };
        (*made_for == gateway.uid).then(|| Wanted::NoWaypoint {
            gateway_uid: made_for.clone(),
        })
    }

    fn settle_roots(&mut self, now: &str, changes: &mut Changes) {
        let mut roots: BTreeSet<Arc<str>> = self
            .state
            .plans
            .keys()
            .map(|key| key.namespace.clone())
            .collect();
        // Proxies of the system itself wait for them.
        roots.insert(self.state.settings.system_namespace.as_str().into());
        if roots == self.roots {
            return;
        }
        let before = std::mem::replace(&mut self.roots, roots.clone());
        for namespace in before.union(&roots) {
            let wanted = if roots.contains(namespace) {
                Some(Wanted::Roots)
            } else {
                let there = self.state.namespaces.get(&Key::new("", namespace));
                there.map(|_| Wanted::NoRoots)
            };
            let item = Item::Roots(namespace.clone());
            self.desire(item, wanted.map(Entry::leader), now, changes);
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
        let item = Item::Status(Target::new(kind, key));
        let entry = write.map(|write| Entry::leader(Wanted::Status(write)));
        self.desire(item, entry, now, changes);
    }

    /// Puts an entry into the table of desired state, or takes it out, and says so if that is a difference.
    fn desire(&mut self, item: Item, entry: Option<Entry>, now: &str, changes: &mut Changes) {
        let status = usize::from(matches!(item, Item::Status(_)));
        let before = self.desired.get(&item);
        match entry {
            None => {
                if self.desired.remove(&item).is_some() {
                    self.outstanding -= status;
                    changes.desired.push((item, None));
                }
            }
            Some(entry) if before.is_some_and(|before| before.asks_the_same(&entry)) => {}
            Some(entry) => {
                let published = entry.stamped(now);
                if self.desired.insert(item.clone(), entry).is_none() {
                    self.outstanding += status;
                }
                changes.desired.push((item, Some(published)));
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

    /// A refusal that has no status to stand in.
    fn tell(&mut self, key: &Key, now: &str, changes: &mut Changes) {
        let notice = self.state.route_notice(key);
        let item = Item::Events(Target::new(Kind::HttpRoute, key));
        let entry = notice.map(|notice| Entry::leader(Wanted::Events(vec![notice])));
        self.desire(item, entry, now, changes);
    }
}
