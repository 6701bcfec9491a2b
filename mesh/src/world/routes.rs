//! The routes of a waypoint, by the port of the service that they are attached to.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::names::ServiceName;
use crate::route::{Route, RouteTable};

/// All routes, and the tables made of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    all: imbl::OrdMap<Arc<str>, Arc<Route>>,
    tables: imbl::HashMap<ServiceName, Arc<Tables>>,
}

/// The routes of one service.
#[derive(Debug, Default)]
struct Tables {
    /// For the ports that routes name, with the routes of every port.
    named: Vec<(u16, RouteTable)>,
    /// For the other ports.
    every: Option<RouteTable>,
}

impl Routes {
    pub(super) fn table(&self, service: &ServiceName, port: u16) -> Option<&RouteTable> {
        let tables = self.tables.get(service)?;
        let named = tables.named.iter().find(|(named, _)| *named == port);
        named.map(|(_, table)| table).or(tables.every.as_ref())
    }

    pub(super) fn put(&mut self, name: &str, route: Arc<Route>) {
        let mut touched = services(&route);
        if let Some(before) = self.all.insert(name.into(), route) {
            touched.extend(services(&before));
        }
        self.rebuild(touched);
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(before) = self.all.remove(name) {
            self.rebuild(services(&before));
        }
    }

    fn rebuild(&mut self, touched: BTreeSet<ServiceName>) {
        for service in touched {
            match self.build(&service) {
                Some(tables) => self.tables.insert(service, tables.into()),
                None => self.tables.remove(&service),
            };
        }
    }

    fn build(&self, service: &ServiceName) -> Option<Tables> {
        let ports = |route: &Route| -> Vec<Option<u16>> {
            let ours = route.parents().filter(|(name, _)| *name == service);
            ours.map(|(_, port)| port).collect()
        };
        let attached: Vec<_> = self
            .all
            .values()
            .map(|route| (ports(route), route))
            .filter(|(ports, _)| !ports.is_empty())
            .collect();
        let of = |wanted: Option<u16>| {
            attached
                .iter()
                .filter(move |(ports, _)| ports.contains(&None) || ports.contains(&wanted))
                .map(|(_, route)| *route)
                .collect::<Vec<_>>()
        };
        let named: BTreeSet<u16> = attached
            .iter()
            .flat_map(|(ports, _)| ports)
            .flatten()
            .copied()
            .collect();
        let every = of(None);
        let tables = Tables {
            named: named
                .into_iter()
                .map(|port| (port, RouteTable::new(of(Some(port)))))
                .collect(),
            every: (!every.is_empty()).then(|| RouteTable::new(every)),
        };
        (!attached.is_empty()).then_some(tables)
    }
}

fn services(route: &Route) -> BTreeSet<ServiceName> {
    route.parents().map(|(name, _)| name.clone()).collect()
}
