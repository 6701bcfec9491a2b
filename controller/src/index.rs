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
//! Each kind is a file that implements [`kinds::Watched`] and stands in the registry of [`kinds`].
//! An object that arrives marks what looks at it; [`Index::settle`] computes what is marked and tells the differences.
//! How Kubernetes should be is a table of desired state: an entry is put in when an object is not as it should be, taken
//! out when it is seen to have become so, and not told again while nothing changes.

pub mod accepted;
mod addresses;
mod ahead;
mod binding;
pub mod changes;
pub mod cluster;
mod common;
pub mod condition;
pub mod desired;
mod endpoints;
mod enrolment;
pub mod event;
mod gateways;
pub mod kinds;
mod labels;
mod lookup;
pub mod names;
mod namespaces;
mod nodes;
mod output;
mod owners;
pub mod placement;
mod pods;
mod reports;
mod room;
mod routes;
mod services;
mod share;
mod tables;
mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::names::Network;
use serde_json::Value;

use self::accepted::ToKeep;
use self::changes::{Changes, WaypointPlan};
use self::cluster::ClusterId;
use self::common::Common;
use self::endpoints::Claims;
pub use self::event::{Input, WatchEvent};
use self::gateways::Waypoint;
use self::kinds::{Tables, Watched};
use self::names::{CLASSES, Key};
use self::output::Output;
use self::placement::NodeProxyRule;
use self::reports::Reports;
use self::routes::RouteServices;
use crate::index::desired::{Entry, Item, Wanted};
use crate::position::Positions;

/// What the index is told once.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Of the identities.
    pub trust_domain: String,
    /// Of the services' names.
    pub cluster_domain: String,
    /// Of the workloads' UIDs.
    pub cluster_id: ClusterId,
    /// Where the addresses of its pods and Services mean something.
    pub network: Network,
    /// Namespaces whose pods are never enrolled.
    pub excluded_namespaces: Vec<String>,
    /// Where the controller runs.
    pub system_namespace: String,
    /// Which pods are node proxies.
    pub node_proxies: Vec<NodeProxyRule>,
    /// Prefixes of labels and annotations that Gateways may pass on, beside those that nobody acts on.
    pub passed_on_prefixes: Vec<String>,
    /// Whether nodes that join are kept free of pods until their ztunnel serves them.
    pub taint_joining_nodes: bool,
    /// Whether pods of the mesh may speak plaintext to one that is to be in the mesh and is not.
    pub plaintext_to_awaited: bool,
}

/// The join.
#[derive(Debug)]
pub struct Index {
    state: State,
    output: Output,
    /// Where the roots are to be readable.
    roots: BTreeSet<Arc<str>>,
}

/// What is known, and what must be looked at again.
#[derive(Debug)]
struct State {
    settings: Settings,
    leaving: bool,
    /// What is derived has been told once.
    told: bool,
    common: Common,
    tables: Tables,
    /// How far the watches are.
    positions: Positions,
    reports: Reports,
    /// The Gateways that are ours, as the bound see them.
    waypoints: BTreeMap<Key, Waypoint>,
    /// What runs for them.
    plans: BTreeMap<Key, WaypointPlan>,
    /// Gateways of a class of ours, by UID.
    our_gateways: BTreeMap<Key, Arc<str>>,
    http_route_services: RouteServices,
    slice_claims: Claims,
    /// Accepted generations that are to survive.
    to_keep: ToKeep,
}

// === impl Index ===

impl Index {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let mut tables = Tables::default();
        // Ours are missing until they are seen.
        tables
            .classes
            .mark_each(CLASSES.map(|name| Key::new("", name)));
        let state = State {
            settings,
            leaving: false,
            told: false,
            common: Common::default(),
            tables,
            positions: Positions::default(),
            reports: Reports::default(),
            waypoints: BTreeMap::new(),
            plans: BTreeMap::new(),
            our_gateways: BTreeMap::new(),
            http_route_services: RouteServices::default(),
            slice_claims: Claims::default(),
            to_keep: ToKeep::default(),
        };
        Self {
            state,
            output: Output::default(),
            roots: BTreeSet::new(),
        }
    }

    /// Takes one thing in. Nothing comes out before [`Index::settle`].
    pub fn apply(&mut self, input: Input) {
        let state = &mut self.state;
        match input {
            Input::Object(event) => event.apply(state),
            Input::Report { node, report } => state.report(&node, &report),
            Input::NodeGone { node } => state.node_gone(&node),
            Input::Turn => state.turn_all(),
            Input::Leave => state.leave(),
        }
    }

    /// Whether every kind has listed all of its objects once.
    pub fn synced(&self) -> bool {
        self.state.tables.listed()
    }

    /// Whether changes are set aside: see [`Input::Turn`].
    pub fn waits(&self) -> bool {
        self.state.tables.wait()
    }

    /// How far the watches are.
    pub fn positions(&self) -> &Positions {
        &self.state.positions
    }

    /// Whether the mesh is being uninstalled.
    pub fn uninstalling(&self) -> bool {
        self.state.leaving
    }

    /// Whether every status is seen to be as it should be.
    pub fn writes_settled(&self) -> bool {
        self.output.outstanding() == 0
    }

    /// For people: how much of each kind is known.
    pub fn summary(&self) -> Value {
        let state = &self.state;
        let pending = self.output.outstanding_targets().take(20);
        let pending = pending.map(|target| format!("{:?} {}", target.kind, target.key));
        serde_json::json!({
            "objects": state.tables.summary(),
            "waypoints": state.waypoints.len(),
            "reports": state.reports.len(),
            "pendingWrites": self.output.outstanding(),
            "firstPendingWrites": pending.collect::<Vec<_>>(),
            "leaving": state.leaving,
        })
    }

    /// Computes what is marked.
    pub fn settle(&mut self) -> Changes {
        self.state.settle_all_ahead();
        self.state.settle_unseen();
        self.settle_kinds();
        if self.waits() {
            // What no route names since a moment ago.
            self.state.settle_all_ahead();
            self.settle_kinds();
        }
        self.settle_roots();
        self.state.told = true;
        self.output.take_changes()
    }

    fn settle_kind<T: Watched>(&mut self) {
        for key in T::table_mut(&mut self.state).take_marked() {
            T::derive(&mut self.state, &key, &mut self.output);
            let resources = T::resources(&self.state, &key);
            self.output.publish(T::KIND, &key, resources);
            let write = T::status(&self.state, &key);
            let writer = T::writer(&self.state, &key);
            self.output.want(T::KIND, &key, write, writer);
        }
    }

    fn settle_roots(&mut self) {
        let namespaces = self.state.plans.keys().map(|key| key.namespace.clone());
        let mut roots: BTreeSet<Arc<str>> = namespaces.collect();
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
                let there = self.state.tables.namespaces.named("", namespace);
                there.map(|_| Wanted::NoRoots)
            };
            let item = Item::Roots(namespace.clone());
            self.output.desire(item, wanted.map(Entry::leader));
        }
    }
}

// === impl State ===

impl State {
    /// Takes one object in, there or gone: the same again is nothing.
    fn take_in<T: Watched>(&mut self, key: &Key, now: Option<T>) {
        let before = T::table(self).get(key).cloned();
        if before.as_deref() == now.as_ref() {
            return;
        }
        let now = now.map(|mut now| {
            now.share(&mut self.common);
            Arc::new(now)
        });
        // One key each, whoever holds it.
        let known = T::table(self).key(key).cloned();
        let key = known.unwrap_or_else(|| self.common.key(key));
        let table = T::table_mut(self);
        table.put(&key, now.as_ref());
        table.mark(key.clone());
        T::touch(self, &key, before.as_deref(), now.as_deref());
        self.common.tidy();
    }

    /// From now on everything is to be as if the mesh had never been.
    fn leave(&mut self) {
        if !std::mem::replace(&mut self.leaving, true) {
            self.tables.mark_all();
            // Its key says to the nodes that the mesh goes, whether or not it was ever seen.
            let system = Key::new("", &self.settings.system_namespace);
            self.tables.namespaces.mark(system);
        }
    }
}
