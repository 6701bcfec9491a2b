//! The routes of a waypoint, by the port of the service that they are attached to.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::names::ServiceName;
use crate::route::{Route, RouteTable};

/// All routes, and the tables made of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    all: imbl::OrdMap<Arc<str>, Arc<Route>>,
    /// The same, by each service that they are attached to.
    attached: imbl::HashMap<ServiceName, imbl::OrdMap<Arc<str>, Arc<Route>>>,
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

    /// Adds the services whose tables must be built again to `touched`.
    pub(super) fn put(
        &mut self,
        name: &str,
        route: Arc<Route>,
        touched: &mut BTreeSet<ServiceName>,
    ) {
        self.remove(name, touched);
        let name: Arc<str> = name.into();
        for service in services(&route) {
            let attached = self.attached.entry(service.clone()).or_default();
            attached.insert(name.clone(), route.clone());
            touched.insert(service);
        }
        self.all.insert(name, route);
    }

    /// Adds the services whose tables must be built again to `touched`.
    pub(super) fn remove(&mut self, name: &str, touched: &mut BTreeSet<ServiceName>) {
        let Some(before) = self.all.remove(name) else {
            return;
        };
        for service in services(&before) {
            if let Some(attached) = self.attached.get_mut(&service) {
                attached.remove(name);
                if attached.is_empty() {
                    self.attached.remove(&service);
                }
            }
            touched.insert(service);
        }
    }

    /// Builds the tables of these services again: once per update, however many of its routes are theirs.
    pub(super) fn rebuild(&mut self, touched: BTreeSet<ServiceName>) {
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
        let attached = self.attached.get(service)?.values();
        let attached: Vec<_> = attached.map(|route| (ports(route), route)).collect();
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
        Some(Tables {
            named: named
                .into_iter()
                .map(|port| (port, RouteTable::new(of(Some(port)))))
                .collect(),
            every: (!every.is_empty()).then(|| RouteTable::new(every)),
        })
    }
}

fn services(route: &Route) -> BTreeSet<ServiceName> {
    route.parents().map(|(name, _)| name.clone()).collect()
}
