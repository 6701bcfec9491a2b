//! Takes objects in: keeps what matters of them, and marks what looks at them.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{DynamicObject, ObjectMeta};
use mesh::proto::node::EnrolmentReport;

use super::endpoints::Slice;
use super::enrolment::Report;
use super::gateways::{Class, Gateway};
use super::names::Key;
use super::namespaces::Namespace;
use super::nodes::Node;
use super::pods::Pod;
use super::routes::Route;
use super::services::Service;
use super::{Event, State};

/// Reports that may wait for their pods to be seen: far more than start at once.
const MAX_EARLY: usize = 4096;

/// What objects are here in common.
pub(super) trait Named {
    fn meta(&self) -> &ObjectMeta;
}

impl<K: kube::Resource> Named for K {
    fn meta(&self) -> &ObjectMeta {
        kube::Resource::meta(self)
    }
}

// === impl State ===

impl State {
    /// One kind's event as single objects, there or gone.
    pub(super) fn each<K: Named>(
        &mut self,
        event: Event<K>,
        known: impl Fn(&Self) -> Vec<Key>,
        one: impl Fn(&mut Self, &Key, Option<&K>),
    ) {
        match event {
            Event::Apply(object) => one(self, &Key::of(object.meta()), Some(&object)),
            Event::Delete(key) => one(self, &key, None),
            Event::Reset(objects) => {
                let mut gone: BTreeSet<Key> = known(self).into_iter().collect();
                for object in &objects {
                    let key = Key::of(object.meta());
                    gone.remove(&key);
                    one(self, &key, Some(object));
                }
                for key in gone {
                    one(self, &key, None);
                }
            }
        }
    }

    pub(super) fn namespace(&mut self, key: &Key, object: Option<&core::Namespace>) {
        let now = object.map(Namespace::parse);
        if self.namespaces.get(key) == now.as_ref() {
            return;
        }
        let leaving = *key.name == *self.settings.system_namespace
            && now.as_ref().is_some_and(|n| n.terminating);
        let same_labels = match (self.namespaces.get(key), &now) {
            (Some(before), Some(now)) => before.labels == now.labels,
            _ => false,
        };
        self.namespaces.put(key.clone(), now);
        self.dirty.namespaces.insert(key.name.clone());
        if !same_labels {
            let pods: Vec<Key> = self
                .pods
                .within(&key.name)
                .map(|(key, _)| key.clone())
                .collect();
            let services: Vec<Key> = self
                .services
                .within(&key.name)
                .map(|(key, _)| key.clone())
                .collect();
            self.dirty.pods.extend(pods);
            self.dirty.services.extend(services);
        }
        if leaving {
            self.leave();
        }
    }

    pub(super) fn node(&mut self, key: &Key, object: Option<&core::Node>) {
        let now = object.map(Node::parse);
        if self.nodes.get(key) == now.as_ref() {
            return;
        }
        let pods: Vec<Key> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.node == key.name)
            .map(|(key, _)| key.clone())
            .collect();
        let slices: Vec<Key> = self.slices.keys().cloned().collect();
        self.nodes.put(key.clone(), now);
        self.dirty.pods.extend(pods);
        self.dirty.slices.extend(slices);
    }

    pub(super) fn pod(&mut self, key: &Key, object: Option<&core::Pod>) {
        let now = object.map(Pod::parse);
        if self.pods.get(key) == now.as_ref() {
            return;
        }
        let before = self.pods.put(key.clone(), now.clone());
        if let Some(before) = &before
            && now.as_ref().is_none_or(|now| now.uid != before.uid)
        {
            self.reports.remove(&before.uid);
            self.uids.remove(&before.uid);
        }
        if let Some(now) = &now {
            self.uids.insert(now.uid.clone(), key.clone());
            if !now.node.is_empty()
                && let Some((node, report)) = self.early.remove(&now.uid)
                && node == now.node
            {
                self.reports.insert(now.uid.clone(), report);
            }
        }
        self.touch_pod(key, [before.as_ref(), now.as_ref()]);
    }

    pub(super) fn service(&mut self, key: &Key, object: Option<&core::Service>) {
        let now = object.map(Service::parse);
        if self.services.get(key) == now.as_ref() {
            return;
        }
        let before = self.services.put(key.clone(), now);
        self.touch_service(key, before.as_ref());
    }

    pub(super) fn slice(&mut self, key: &Key, object: Option<&EndpointSlice>) {
        let now = object.and_then(Slice::parse);
        if self.slices.get(key) == now.as_ref() {
            return;
        }
        self.touch_slice(key);
        self.slices.put(key.clone(), now);
        self.touch_slice(key);
    }

    pub(super) fn class(&mut self, key: &Key, object: Option<&DynamicObject>) {
        let now = object.map(Class::parse);
        if self.classes.get(key) == now.as_ref() {
            // A first look at no classes at all must still find ours missing.
            return;
        }
        self.classes.put(key.clone(), now);
        self.touch_class(&key.name);
    }

    pub(super) fn gateway(&mut self, key: &Key, object: Option<&DynamicObject>) {
        let now = object.map(Gateway::parse);
        if self.gateways.get(key) == now.as_ref() {
            return;
        }
        self.gateways.put(key.clone(), now);
        self.dirty.gateways.insert(key.clone());
    }

    pub(super) fn route(&mut self, key: &Key, object: Option<&DynamicObject>) {
        let now = object.map(|object| Route::parse(object, self.routes.get(key)));
        if self.routes.get(key) == now.as_ref() {
            return;
        }
        self.routes.put(key.clone(), now);
        self.dirty.routes.insert(key.clone());
    }

    /// Only the node on which a pod runs may speak of it.
    pub(super) fn report(&mut self, node: &str, report: &EnrolmentReport) {
        let Some(parsed) = Report::parse(report) else {
            return;
        };
        let uid: Arc<str> = report.uid.as_str().into();
        let pod = self
            .uids
            .get(&uid)
            .and_then(|key| Some((key.clone(), self.pods.get(key)?)));
        match pod {
            Some((key, pod)) if *pod.node == *node => {
                if self.reports.get(&uid) != Some(&parsed) {
                    self.reports.insert(uid, parsed);
                    self.dirty.pods.insert(key);
                }
            }
            Some((_, pod)) if !pod.node.is_empty() => {}
            // The node was faster than the watch.
            _ => {
                if self.early.len() >= MAX_EARLY {
                    self.early.clear();
                }
                self.early.insert(uid, (node.into(), parsed));
            }
        }
    }

    pub(super) fn leave(&mut self) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        self.dirty
            .namespaces
            .extend(self.namespaces.keys().map(|key| key.name.clone()));
        self.dirty
            .classes
            .extend(self.classes.keys().map(|key| key.name.clone()));
        self.dirty.gateways.extend(self.gateways.keys().cloned());
        self.dirty.services.extend(self.services.keys().cloned());
        self.dirty.pods.extend(self.pods.keys().cloned());
        self.dirty.routes.extend(self.routes.keys().cloned());
    }
}
