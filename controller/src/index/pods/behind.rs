//! Behind which Services a pod stands: those whose selector finds it, and those whose EndpointSlices list it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::proto::workload::PortList;

use super::super::State;
use super::super::changes::{Notice, Target};
use super::super::kinds::Kind;
use super::super::names::Key;
use super::super::room::Room;
use super::super::services::{MAX_SERVICE_PORTS, Service};
use super::{Pod, wire_port};

/// The Services that select a pod.
struct Selecting<'a> {
    /// Services that the pod is announced with.
    announced: Vec<(&'a Key, &'a Service)>,
    /// The first that there is no room for.
    left_out: Option<&'a Key>,
}

/// Services of its namespace that a pod is announced with: some that one pod serves in several roles or for many
/// customers. At most 30 KiB of a pod at every proxy, with the longest names.
const MAX_SERVICES: usize = 128;
/// The ports of all of them: two of the largest Services, or four of each.
const MAX_PORTS_OF_POD: usize = 2 * MAX_SERVICE_PORTS;

// === impl State ===

impl State {
    /// By the service's selector; by EndpointSlices for services that have none.
    pub(super) fn pod_services(&self, key: &Key, pod: &Pod) -> BTreeMap<String, PortList> {
        let mut services = BTreeMap::new();
        for (service, spec) in self.selecting(key, pod).announced {
            let ports = spec
                .ports
                .served()
                .iter()
                .filter_map(|port| Some(wire_port(port, pod.resolve(port)?)));
            services.insert(
                self.service_name(service),
                PortList {
                    ports: ports.collect(),
                },
            );
        }
        for (service, port, target) in self.slice_ports_of(key, pod) {
            let list: &mut PortList = services.entry(self.service_name(&service)).or_default();
            list.ports.push(wire_port(&port, target));
        }
        services
    }

    /// What people are told on a pod that more Services select than it is announced with.
    pub(super) fn pod_service_notice(&self, key: &Key) -> Option<Notice> {
        let pod = self.tables.pods.get(key).filter(|pod| !pod.finished)?;
        let left_out = self.selecting(key, pod).left_out?;
        Some(Notice {
            target: Target::new(Kind::Pod, key),
            uid: pod.uid.clone(),
            warning: true,
            reason: "TooManyServices".to_owned(),
            note: format!(
                "in the mesh a pod stands behind at most {MAX_SERVICES} Services that select it, with together {MAX_PORTS_OF_POD} ports, the first by name: Service {left_out} and those after it do not lead to this pod"
            ),
        })
    }

    fn selecting<'a>(&'a self, key: &'a Key, pod: &'a Pod) -> Selecting<'a> {
        let mut room = Room::new(MAX_SERVICES, MAX_PORTS_OF_POD);
        let mut announced = Vec::new();
        for (service, spec) in self.services_of(&key.namespace, pod.labels()) {
            if self.is_anothers_waypoint(service, spec, key, pod) {
                continue;
            }
            if !room.takes(spec.ports.served().len()) {
                return Selecting {
                    announced,
                    left_out: Some(service),
                };
            }
            announced.push((service, &**spec));
        }
        Selecting {
            announced,
            left_out: None,
        }
    }

    /// Behind a waypoint's own Service stand its own pods alone, whatever labels other pods carry.
    fn is_anothers_waypoint(
        &self,
        service: &Key,
        spec: &Arc<Service>,
        key: &Key,
        pod: &Pod,
    ) -> bool {
        self.our_gateways.contains_key(service)
            && spec.made_by_us()
            && self.waypoint_of(key, pod).as_ref() != Some(service)
    }
}
