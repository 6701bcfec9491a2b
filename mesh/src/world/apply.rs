//! One update of the controller: decoded whole, then put in its places.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::changes::Changed;
use super::claims::Owners;
use super::{ByUid, Snapshot};
use crate::enrolment::{Enrolment, PodUid};
use crate::names::{Network, ServiceName, Uid};
use crate::proto::{node, waypoint, workload as wds};
use crate::route::Route;
use crate::service::Service;
use crate::workload::Workload;
use crate::workload::interner::Interner;
use crate::xds::{
    ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, MESH_STATE_NAME, MESH_STATE_TYPE,
    ROUTE_TYPE, Rejected, Update,
};

/// A resource of any type, decoded.
enum Resource {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Route(Arc<Route>),
    Enrolment(Arc<Enrolment>),
    Namespace(Arc<str>),
    Mesh { uninstalling: bool },
}

impl Snapshot {
    /// Takes an update, and says what it changed; after a refusal the snapshot is as before.
    pub(super) fn apply(
        &mut self,
        update: &Update,
        interner: &mut Interner,
    ) -> Result<Changed, Rejected> {
        let mut decoded = Vec::with_capacity(update.updated.len());
        let mut rejected = Vec::new();
        for (name, bytes) in &update.updated {
            match decode(update.type_url, name, bytes, interner) {
                Ok(resource) => decoded.push((name, resource)),
                Err(reason) => rejected.push((name.clone(), reason)),
            }
        }
        if !rejected.is_empty() {
            return Err(Rejected {
                resources: rejected,
            });
        }
        let mut routed = BTreeSet::new();
        let mut changed = Changed::default();
        for name in &update.removed {
            self.remove(update.type_url, name, &mut routed, &mut changed);
        }
        for (name, resource) in decoded {
            self.put(name, resource, &mut routed, &mut changed);
        }
        self.routes.rebuild(routed);
        let workloads = &self.workloads;
        self.stats.tidy(|uid| workloads.contains(uid));
        Ok(changed)
    }

    /// The services whose routes are others now are added to `routed`.
    fn put(
        &mut self,
        name: &str,
        resource: Resource,
        routed: &mut BTreeSet<ServiceName>,
        changed: &mut Changed,
    ) {
        match resource {
            Resource::Workload(workload) => {
                let before = self.remove_workload(&workload.uid, changed);
                // The same name at another address is another pod: of a StatefulSet, say.
                if before.is_some_and(|before| before.addresses != workload.addresses) {
                    self.stats.forget(&workload.uid);
                }
                changed.workload(&workload);
                self.put_workload(workload);
            }
            Resource::Service(service) => {
                self.remove_service(&service.id);
                self.put_service(service);
            }
            Resource::Route(route) => self.routes.put(name, route, routed),
            Resource::Enrolment(enrolment) => {
                changed.enrolment();
                self.enrolments.insert(enrolment.uid.clone(), enrolment);
            }
            Resource::Namespace(name) => {
                changed.enrolment();
                self.namespaces.insert(name);
            }
            Resource::Mesh { uninstalling } => {
                changed.enrolment();
                self.uninstalling = uninstalling;
            }
        }
    }

    fn remove(
        &mut self,
        type_url: &str,
        name: &str,
        routed: &mut BTreeSet<ServiceName>,
        changed: &mut Changed,
    ) {
        match type_url {
            // A removal does not say which of the two it was.
            ADDRESS_TYPE => {
                let uid = Uid::from(name);
                if self.remove_workload(&uid, changed).is_some() {
                    self.stats.forget(&uid);
                }
                if let Ok(service) = name.parse() {
                    self.remove_service(&service);
                }
            }
            ROUTE_TYPE => self.routes.remove(name, routed),
            ENROLMENT_TYPE => {
                changed.enrolment();
                self.enrolments.remove(&PodUid::from(name));
            }
            ENROLLED_NAMESPACE_TYPE => {
                changed.enrolment();
                self.namespaces.remove(name);
            }
            MESH_STATE_TYPE if name == MESH_STATE_NAME => {
                changed.enrolment();
                self.uninstalling = false;
            }
            _ => {}
        }
    }

    fn put_workload(&mut self, workload: Arc<Workload>) {
        let network = &workload.location.network;
        self.owned(network, |owners| owners.put_workload(&workload));
        for (service, _) in workload.services() {
            let behind = self.behind.entry(service.clone()).or_default();
            behind.insert(&workload);
        }
        self.workloads.insert(ByUid(workload));
    }

    fn remove_workload(&mut self, uid: &Uid, changed: &mut Changed) -> Option<Arc<Workload>> {
        let ByUid(workload) = self.workloads.remove(uid)?;
        changed.workload(&workload);
        let network = &workload.location.network;
        self.owned(network, |owners| owners.remove_workload(&workload));
        for (service, _) in workload.services() {
            if let Some(behind) = self.behind.get_mut(service) {
                behind.remove(uid);
                if behind.is_empty() {
                    self.behind.remove(service);
                }
            }
        }
        Some(workload)
    }

    fn put_service(&mut self, service: Arc<Service>) {
        for (network, vip) in &service.vips {
            self.owned(network, |owners| owners.put_vip(*vip, &service));
        }
        self.services.insert(service.id.clone(), service);
    }

    fn remove_service(&mut self, id: &ServiceName) {
        let Some(service) = self.services.remove(id) else {
            return;
        };
        for (network, vip) in &service.vips {
            self.owned(network, |owners| owners.remove_vip(*vip, &service));
        }
    }

    /// Changes who owns what in a network.
    fn owned(&mut self, network: &Network, change: impl FnOnce(&mut Owners)) {
        let owners = self.owners.entry(network.clone()).or_default();
        change(owners);
        if owners.is_empty() {
            self.owners.remove(network);
        }
    }
}

fn decode(
    type_url: &str,
    name: &str,
    bytes: &Bytes,
    interner: &mut Interner,
) -> Result<Resource, String> {
    match type_url {
        ADDRESS_TYPE => match message::<wds::Address>(bytes)?.r#type {
            Some(wds::address::Type::Workload(workload)) => {
                let workload = Workload::decode(workload, interner);
                let workload = workload.map_err(|error| error.to_string())?;
                named(name, workload.uid.as_str())?;
                Ok(Resource::Workload(workload.into()))
            }
            Some(wds::address::Type::Service(service)) => {
                let service: Service = whole(service)?;
                named(name, &service.id.to_string())?;
                Ok(Resource::Service(service.into()))
            }
            None => Err("neither a workload nor a service".into()),
        },
        ROUTE_TYPE => {
            let route: Route = whole(message::<waypoint::Route>(bytes)?)?;
            named(name, &route.name().to_string())?;
            Ok(Resource::Route(route.into()))
        }
        ENROLMENT_TYPE => {
            let enrolment: Enrolment = whole(message::<node::Enrolment>(bytes)?)?;
            named(name, enrolment.uid.as_str())?;
            Ok(Resource::Enrolment(enrolment.into()))
        }
        ENROLLED_NAMESPACE_TYPE => {
            let namespace = message::<node::EnrolledNamespace>(bytes)?;
            named(name, &namespace.name)?;
            Ok(Resource::Namespace(namespace.name.into()))
        }
        MESH_STATE_TYPE => {
            let node::MeshState { uninstalling } = message(bytes)?;
            named(name, MESH_STATE_NAME)?;
            Ok(Resource::Mesh { uninstalling })
        }
        other => Err(format!("unknown resource type {other}")),
    }
}

fn message<M: Message + Default>(bytes: &Bytes) -> Result<M, String> {
    M::decode(bytes.clone()).map_err(|error| format!("cannot be parsed: {error}"))
}

fn whole<W, T: TryFrom<W, Error: Display>>(from: W) -> Result<T, String> {
    T::try_from(from).map_err(|error| error.to_string())
}

/// A resource under another's name could neither be replaced nor removed.
fn named(name: &str, inside: &str) -> Result<(), String> {
    match name == inside && !name.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "resource name {name:?} does not match its content, which is {inside:?}"
        )),
    }
}
