//! HTTP routes: which rule a request meets, what that does to it, and which backend it goes to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use crate::names::ServiceName;

pub use decode::InvalidRoute;
pub use filter::{Filter, HeaderModifier, PathModifier, Redirect, Scheme};
pub use matching::{Match, Path, RequestView, Summary};

mod decode;
mod filter;
mod matching;

/// `namespace/name` of a route object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    /// The namespace of the object.
    pub namespace: Arc<str>,
    /// The name of the object.
    pub name: Arc<str>,
}

/// One route object of the user, decoded whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    name: RouteName,
    created: i64,
    parents: Vec<Parent>,
    rules: Vec<Arc<Rule>>,
}

/// A service, or one port of it, that a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parent {
    service: ServiceName,
    port: Option<u16>,
}

/// One rule: requests that one of `matches` accepts are filtered and sent to one of `backends`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The user's name for the rule.
    pub name: Option<Arc<str>>,
    /// One must accept the request; never empty (no conditions: one match that accepts everything).
    pub matches: Vec<Match>,
    /// What is done to each request and its response.
    pub filters: Vec<Filter>,
    /// Where requests go; empty is possible and answered 500 unless a filter answers first.
    pub backends: Vec<Backend>,
}

/// One weighted destination of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its share is its weight over the sum of all weights of the rule.
    pub weight: u32,
    /// Where the share goes.
    pub to: BackendTo,
    /// Applied only to the requests that go to this backend, after the rule's own.
    pub filters: Vec<Filter>,
}

/// What a backend reference resolved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTo {
    /// A port of a service.
    Service {
        /// The service.
        service: ServiceName,
        /// Its port.
        port: u16,
    },
    /// Nothing: its share of the requests is answered with this status.
    Invalid {
        /// The status of the answer.
        status: StatusCode,
        /// Why the reference does not resolve.
        reason: Arc<str>,
    },
}

/// All routes of one port of one service, the best match first.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    summary: Summary,
    route: Arc<Route>,
    rule: usize,
    matched: usize,
}

/// The rule that a request met.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The route it is part of.
    pub route: &'a Arc<Route>,
    /// The rule.
    pub rule: &'a Arc<Rule>,
    /// The match that accepted the request.
    pub matched: &'a Match,
}

// === impl RouteName ===

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl Route ===

impl Route {
    /// The object's name.
    pub fn name(&self) -> &RouteName {
        &self.name
    }

    /// The services it is attached to, each with the one port it is meant for (none: every port).
    pub fn parents(&self) -> impl Iterator<Item = (&ServiceName, Option<u16>)> {
        self.parents
            .iter()
            .map(|parent| (&parent.service, parent.port))
    }

    /// Its rules, in the user's order.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }
}

// === impl Rule ===

impl Rule {
    /// Chooses a backend, and its place among [`backends`](Self::backends), in proportion to the weights.
    ///
    /// `roll(n)` must return a number below `n`, each with the same chance. `None`: there is no backend with a weight.
    pub fn choose(&self, roll: impl FnOnce(u64) -> u64) -> Option<(usize, &Backend)> {
        let sum: u64 = self
            .backends
            .iter()
            .map(|backend| u64::from(backend.weight))
            .sum();
        if sum == 0 {
            return None;
        }
        let mut left = roll(sum);
        self.backends.iter().enumerate().find(|(_, backend)| {
            let weight = u64::from(backend.weight);
            let hit = left < weight;
            left = left.saturating_sub(weight);
            hit
        })
    }
}

// === impl RouteTable ===

impl RouteTable {
    /// Builds the table of one port of one service from the routes that are attached to it.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a Arc<Route>>) -> Self {
        // A route may name the same service twice (once by port, once whole): it counts once.
        let unique: BTreeMap<&RouteName, &Arc<Route>> = routes
            .into_iter()
            .map(|route| (&route.name, route))
            .collect();
        let mut entries: Vec<Entry> = unique.into_values().flat_map(entries_of).collect();
        entries.sort_by(|a, b| {
            // Best summary first; then the oldest route, its name, and the order in it.
            b.summary
                .cmp(&a.summary)
                .then_with(|| a.route.created.cmp(&b.route.created))
                .then_with(|| a.route.name.cmp(&b.route.name))
                .then_with(|| (a.rule, a.matched).cmp(&(b.rule, b.matched)))
        });
        Self { entries }
    }

    /// The best match for a request; `None`: no rule of any route accepts it.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Found<'_>> {
        self.entries
            .iter()
            .map(Entry::found)
            .find(|found| found.matched.accepts(request))
    }
}

fn entries_of(route: &Arc<Route>) -> impl Iterator<Item = Entry> + '_ {
    route
        .rules
        .iter()
        .enumerate()
        .flat_map(move |(rule, words)| {
            words
                .matches
                .iter()
                .enumerate()
                .map(move |(matched, conditions)| Entry {
                    summary: conditions.summary(),
                    route: Arc::clone(route),
                    rule,
                    matched,
                })
        })
}

// === impl Entry ===

impl Entry {
    fn found(&self) -> Found<'_> {
        let rule = &self.route.rules[self.rule];
        Found {
            route: &self.route,
            rule,
            matched: &rule.matches[self.matched],
        }
    }
}
