//! Which endpoints a service's traffic may go to, as seen from a client: by health, then by how near they are.

use crate::proto::workload as wire;
use crate::proto::workload::load_balancing::{Mode, Scope};
use crate::workload::{InvalidWorkload, Location};

/// Whom a choice may fall on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Who may receive traffic.
    #[default]
    Ready,
    /// Whoever is there: what is not ready answers, or refuses at once.
    Any,
}

/// Endpoints that have something in common with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Circle {
    /// Its node.
    Node,
    /// Its zone, by the name alone, as kube-proxy takes it.
    Zone,
    /// Its region, by the name alone.
    Region,
    /// Its cluster.
    Everywhere,
}

/// How far a service's traffic goes: the circles that are asked in turn, the narrowest first. The first that has anybody
/// takes all of it, and outside the last there is nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach(Box<[Circle]>);

/// Where a client is; what is not known is empty, and nobody is near it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its Kubernetes node.
    pub node: &'a str,
    /// The node's zone.
    pub zone: &'a str,
    /// The node's region.
    pub region: &'a str,
}

// === impl Reach ===

impl Reach {
    /// From the wire. `STRICT` allows only what has every scope in common with the client, `FAILOVER` prefers what has
    /// most of them. A node is of one zone and a zone of one region, so that a list means its narrowest scope, or each in turn.
    pub(crate) fn decode(from: &wire::LoadBalancing) -> Result<Self, InvalidWorkload> {
        let mut circles = Vec::new();
        for scope in &from.routing_preference {
            circles.push(circle(*scope)?);
        }
        circles.sort_unstable();
        circles.dedup();
        let mode = Mode::try_from(from.mode);
        match mode.map_err(|_| InvalidWorkload::Unknown("balancing mode", from.mode))? {
            Mode::Strict => circles.truncate(1),
            Mode::Failover => {}
            Mode::UnspecifiedMode | Mode::Passthrough => circles.clear(),
        }
        let strict = mode == Ok(Mode::Strict) && !circles.is_empty();
        if !strict && circles.last() != Some(&Circle::Everywhere) {
            circles.push(Circle::Everywhere);
        }
        Ok(Self(circles.into()))
    }

    /// The circles, the narrowest first.
    pub fn circles(&self) -> &[Circle] {
        &self.0
    }

    /// Whether somebody who is far away is somebody.
    pub(crate) fn is_everywhere(&self) -> bool {
        self.0.last() == Some(&Circle::Everywhere)
    }
}

impl Default for Reach {
    fn default() -> Self {
        Self([Circle::Everywhere].into())
    }
}

fn circle(scope: i32) -> Result<Circle, InvalidWorkload> {
    match Scope::try_from(scope) {
        Ok(Scope::Node) => Ok(Circle::Node),
        // Kubernetes has nothing between a zone and a node.
        Ok(Scope::Subzone | Scope::Zone) => Ok(Circle::Zone),
        Ok(Scope::Region) => Ok(Circle::Region),
        // A set is of one network of one cluster.
        Ok(Scope::Network | Scope::Cluster | Scope::UnspecifiedScope) => Ok(Circle::Everywhere),
        Err(_) => Err(InvalidWorkload::Unknown("balancing scope", scope)),
    }
}

// === impl Place ===

impl<'a> Place<'a> {
    /// Where a workload is.
    pub fn of(location: &'a Location) -> Self {
        Self {
            node: &location.node,
            zone: &location.zone,
            region: &location.region,
        }
    }

    /// Known by its node alone.
    pub fn on_node(node: &'a str) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    /// The name that the endpoints of a circle share; the widest has none.
    pub(super) fn name(self, circle: Circle) -> Option<&'a str> {
        match circle {
            Circle::Node => Some(self.node),
            Circle::Zone => Some(self.zone),
            Circle::Region => Some(self.region),
            Circle::Everywhere => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_writes_means_what_kube_proxy_does() {
        use Circle::{Everywhere, Node, Region, Zone};
        let read = |mode: Mode, scopes: &[Scope]| {
            let mut from = wire::LoadBalancing::default();
            from.set_mode(mode);
            from.routing_preference = scopes.iter().map(|scope| (*scope).into()).collect();
            Reach::decode(&from).map(|reach| reach.circles().to_vec())
        };
        let near = [Scope::Network, Scope::Region, Scope::Zone];
        let nearer = [&near[..], &[Scope::Subzone, Scope::Node]].concat();
        for (mode, scopes, expected) in [
            // Nothing said.
            (Mode::UnspecifiedMode, &[][..], &[Everywhere][..]),
            (Mode::UnspecifiedMode, &[Scope::Node], &[Everywhere]),
            // internalTrafficPolicy: Local
            (Mode::Strict, &[Scope::Node], &[Node]),
            (Mode::Strict, &near, &[Zone]),
            (Mode::Strict, &[Scope::Cluster], &[Everywhere]),
            (Mode::Strict, &[], &[Everywhere]),
            // trafficDistribution: PreferSameZone (PreferClose), PreferSameNode
            (Mode::Failover, &near, &[Zone, Region, Everywhere]),
            (Mode::Failover, &nearer, &[Node, Zone, Region, Everywhere]),
            (Mode::Failover, &[Scope::Node], &[Node, Everywhere]),
            (Mode::Passthrough, &[Scope::Node], &[Everywhere]),
        ] {
            assert_eq!(
                read(mode, scopes),
                Ok(expected.to_vec()),
                "{mode:?} {scopes:?}"
            );
        }
        let unknown = wire::LoadBalancing {
            routing_preference: vec![99],
            ..Default::default()
        };
        assert!(Reach::decode(&unknown).is_err());
        assert_eq!(
            Reach::decode(&wire::LoadBalancing::default()),
            Ok(Reach::default())
        );
    }
}
