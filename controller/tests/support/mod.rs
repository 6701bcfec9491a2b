//! A cluster written as YAML-like JSON, fed to the index without any cluster.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "each test file uses its part"
)]

mod objects;
pub mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::index::changes::{Changes, Kind, Notice, Scope, Target, WaypointPlan, Write};
use controller::index::desired::{Entry, Item, Wanted};
use controller::index::event::ObjectEvent;
use controller::index::names::Key;
use controller::index::{Index, Input, Settings, WatchEvent};
use mesh::proto::node::{Enrolment, EnrolmentReport, enrolment_report::State as Reported};
use mesh::proto::waypoint::Route;
use mesh::proto::workload::{Address, Service, Workload, address};
use mesh::xds::Encoded;
use prost::Message;
use serde_json::{Value, json};

pub use self::objects::*;

/// An index, and what the proxies would have by now.
pub struct World {
    pub index: Index,
    pub resources: BTreeMap<(Scope, String), Encoded>,
    pub objects: BTreeMap<(Kind, Key), Value>,
    pub desired: BTreeMap<Item, Arc<Entry>>,
}

/// What changed of the table of desired state, by kind of item.
pub trait DesiredChanges {
    fn writes(&self) -> Vec<(Target, Option<Write>)>;
    fn waypoints(&self) -> Vec<(Key, Option<WaypointPlan>)>;
    fn notices(&self) -> Vec<Notice>;
    fn missing_classes(&self) -> Vec<String>;
}

impl DesiredChanges for Changes {
    fn writes(&self) -> Vec<(Target, Option<Write>)> {
        let writes = self.desired.iter().filter_map(|(item, entry)| {
            let Item::Status(target) = item else {
                return None;
            };
            let write = entry.as_ref().map(|entry| match &entry.wanted {
                Wanted::Status(write) => write.clone(),
                other => panic!("{item:?} is no {other:?}"),
            });
            Some((target.clone(), write))
        });
        writes.collect()
    }

    fn waypoints(&self) -> Vec<(Key, Option<WaypointPlan>)> {
        let waypoints = self.desired.iter().filter_map(|(item, entry)| {
            let Item::Waypoint(key) = item else {
                return None;
            };
            let plan = entry.as_ref().and_then(|entry| match &entry.wanted {
                Wanted::Waypoint(plan) => Some(plan.clone()),
                _ => None,
            });
            Some((key.clone(), plan))
        });
        waypoints.collect()
    }

    fn notices(&self) -> Vec<Notice> {
        let entries = self
            .desired
            .iter()
            .filter_map(|(_, entry)| entry.as_deref());
        let notices = entries.filter_map(|entry| match &entry.wanted {
            Wanted::Events(notices) => Some(notices.clone()),
            _ => None,
        });
        notices.flatten().collect()
    }

    fn missing_classes(&self) -> Vec<String> {
        let classes = self.desired.iter().filter_map(|(item, entry)| match item {
            Item::Class(name) if entry.is_some() => Some(name.to_string()),
            _ => None,
        });
        classes.collect()
    }
}

impl World {
    /// Nothing in it; what happens at the very start is swallowed.
    pub fn new() -> Self {
        Self::with(settings::index())
    }

    /// The same, whose addresses are of this network.
    pub fn in_network(network: &str) -> Self {
        Self::with(Settings {
            network: network.into(),
            ..settings::index()
        })
    }

    pub fn with(settings: Settings) -> Self {
        let mut world = Self {
            index: Index::new(settings),
            resources: BTreeMap::new(),
            objects: BTreeMap::new(),
            desired: BTreeMap::new(),
        };
        world.settle();
        world
    }

    /// Puts objects in and says what changed.
    pub fn apply(&mut self, objects: impl IntoIterator<Item = Value>) -> Changes {
        for object in objects {
            self.put(object);
        }
        self.settle()
    }

    fn put(&mut self, object: Value) {
        let kind = kind(&object);
        let home = object["metadata"]["namespace"].as_str().unwrap_or_default();
        // There is no pod without its namespace.
        if kind == Kind::Pod
            && !self
                .objects
                .contains_key(&(Kind::Namespace, Key::new("", home)))
        {
            self.put(namespace(home, json!({})));
        }
        self.objects.insert((kind, key(&object)), object.clone());
        self.index.apply(told(kind, WatchEvent::Apply(object)));
    }

    /// Takes an object away.
    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> Changes {
        let key = Key::new(namespace, name);
        self.objects.remove(&(kind, key.clone()));
        self.input(told(
            kind,
            WatchEvent::Delete {
                key,
                version: "1".to_owned(),
            },
        ))
    }

    /// These are all the objects of their kind that there are.
    pub fn list(&mut self, kind: Kind, objects: impl IntoIterator<Item = Value>) -> Changes {
        let items = objects.into_iter().map(WatchEvent::Item);
        for event in std::iter::once(WatchEvent::Begin)
            .chain(items)
            .chain([WatchEvent::End {
                version: "1".to_owned(),
            }])
        {
            self.index.apply(told(kind, event));
        }
        self.settle()
    }

    pub fn input(&mut self, input: Input) -> Changes {
        self.index.apply(input);
        self.settle()
    }

    pub fn report(&mut self, node: &str, uid: &str, state: Reported, reason: &str) -> Changes {
        let report = EnrolmentReport {
            uid: uid.to_owned(),
            state: state.into(),
            reason: reason.to_owned(),
            message: format!("because {reason}"),
        };
        self.input(Input::Report {
            node: node.into(),
            report,
        })
    }

    pub fn settle(&mut self) -> Changes {
        let changes = self.index.settle();
        for change in &changes.resources {
            let at = (change.scope.clone(), change.name.to_string());
            match &change.resource {
                Some(resource) => self.resources.insert(at, resource.clone()),
                None => self.resources.remove(&at),
            };
        }
        for (item, entry) in &changes.desired {
            match entry {
                Some(entry) => self.desired.insert(item.clone(), entry.clone()),
                None => self.desired.remove(item),
            };
        }
        changes
    }

    /// The ConfigMaps of accepted generations, as they would be written.
    pub fn kept(&self) -> Vec<Value> {
        let wanted = self
            .desired
            .iter()
            .filter_map(|(item, entry)| match (item, &entry.wanted) {
                (Item::Accepted(namespace), Wanted::Accepted(data)) => Some((namespace, data)),
                _ => None,
            });
        let map = |(namespace, data): (&std::sync::Arc<str>, &BTreeMap<String, String>)| {
            let name = format!("ambit-accepted-{namespace}");
            json!({
                "kind": "ConfigMap",
                "apiVersion": "v1",
                "metadata": {"namespace": "ambit-system", "name": name, "labels": {"ambit.mesh/accepted-in": **namespace}},
                "data": data,
            })
        };
        wanted.map(map).collect()
    }

    /// What people are told on Events that last: `object reason: note`.
    pub fn events(&self) -> Vec<String> {
        let events = self
            .desired
            .values()
            .filter_map(|entry| match &entry.wanted {
                Wanted::Events(notices) => Some(notices),
                _ => None,
            });
        let line = |notice: &Notice| {
            let target = &notice.target;
            format!(
                "{:?} {} {}: {}",
                target.kind, target.key, notice.reason, notice.note
            )
        };
        events.flatten().map(line).collect()
    }

    /// Makes the writes that were asked for, as the API server would, until nothing more is asked for.
    pub fn write(&mut self, mut changes: Changes) -> Vec<String> {
        let mut told = Vec::new();
        for round in 0.. {
            assert!(round < 5, "writes never end: {:?}", changes.writes());
            let writes: Vec<_> = changes
                .writes()
                .into_iter()
                .filter_map(|(target, write)| Some((target, write?)))
                .collect();
            if writes.is_empty() {
                return told;
            }
            for (target, write) in writes {
                told.extend(
                    write
                        .notices
                        .iter()
                        .map(|notice| format!("{}: {}", notice.reason, notice.note)),
                );
                self.put(self.after(&target, &write));
            }
            changes = self.settle();
        }
        told
    }

    /// The object as the API server would have it after a write.
    pub fn after(&self, target: &Target, write: &Write) -> Value {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let mut object = self.objects[&(target.kind, target.key.clone())].clone();
        match target.kind {
            Kind::Pod | Kind::Namespace | Kind::Service => merge(&mut object, &write.patch(now)),
            _ => object["status"] = write.patch(now)["status"].clone(),
        }
        object
    }

    fn address(&self, name: &str) -> Option<address::Type> {
        let encoded = self.resources.get(&(Scope::Addresses, name.to_owned()))?;
        Address::decode(&*any(encoded)).expect("an Address").r#type
    }

    pub fn workload(&self, uid: &str) -> Option<Workload> {
        match self
            .address(&format!("Kubernetes//{uid}"))
            .or_else(|| self.address(&format!("Kubernetes/{uid}")))?
        {
            address::Type::Workload(workload) => Some(workload),
            address::Type::Service(_) => panic!("{uid} is a service"),
        }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<Service> {
        match self.address(&format!("{namespace}/{name}.{namespace}.svc.cluster.local"))? {
            address::Type::Service(service) => Some(service),
            address::Type::Workload(_) => panic!("{name} is a workload"),
        }
    }

    pub fn enrolment(&self, node: &str, uid: &str) -> Option<Enrolment> {
        let encoded = self
            .resources
            .get(&(Scope::Node(node.into()), uid.to_owned()))?;
        Some(Enrolment::decode(&*any(encoded)).expect("an Enrolment"))
    }

    pub fn route(&self, gateway: (&str, &str), name: &str) -> Option<Route> {
        let scope = Scope::Waypoint(Key::new(gateway.0, gateway.1));
        let encoded = self.resources.get(&(scope, name.to_owned()))?;
        Some(Route::decode(&*any(encoded)).expect("a Route"))
    }

    /// `status reason` of a condition of an object.
    pub fn condition(&self, kind: Kind, namespace: &str, name: &str, condition: &str) -> String {
        let status = &self.objects[&(kind, Key::new(namespace, name))]["status"];
        said(&status["conditions"], condition)
    }

    pub fn parent(&self, namespace: &str, route: &str, parent: usize, condition: &str) -> String {
        let status = &self.objects[&(Kind::HttpRoute, Key::new(namespace, route))]["status"];
        said(&status["parents"][parent]["conditions"], condition)
    }
}

/// Worlds in which these objects came one by one: beginning with each of them in turn, forwards and backwards.
pub fn in_turns(objects: &[Value]) -> impl Iterator<Item = World> {
    let forwards = (0..objects.len()).map(|first| [&objects[first..], &objects[..first]].concat());
    let orders = forwards.flat_map(|order| {
        let backwards = order.iter().rev().cloned().collect();
        [order, backwards]
    });
    orders.map(|order| {
        let mut world = World::new();
        for object in order {
            world.apply([object]);
        }
        world
    })
}

/// What the watch of a kind tells.
pub fn told(kind: Kind, event: WatchEvent<Value>) -> Input {
    Input::Object(ObjectEvent::from_json(kind, event).expect("an object"))
}

pub fn kind(object: &Value) -> Kind {
    let named = |kind: &&Kind| object["kind"] == kind.api().kind;
    *Kind::ALL.iter().find(named).expect("a watched kind")
}

pub fn key(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Key::new(text("namespace"), text("name"))
}

fn said(conditions: &Value, kind: &str) -> String {
    let found = conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    found.map_or("absent".to_owned(), |found| {
        format!(
            "{} {}",
            found["status"].as_str().unwrap_or("?"),
            found["reason"].as_str().unwrap_or("?")
        )
    })
}

/// Lists of conditions by type; everything of ours is replaced, everything else is kept.
fn merge(object: &mut Value, body: &Value) {
    let ours = |condition: &Value| {
        let kind = condition["type"].as_str().unwrap_or_default();
        kind.starts_with("ambit.mesh/") || kind.starts_with("istio.io/")
    };
    let now = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let kept = now.into_iter().filter(|condition| !ours(condition));
    let put = body["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    object["status"]["conditions"] = kept.chain(put).collect();
    if object["kind"] == "Pod" {
        let redirection = "ambient.istio.io/redirection";
        match body["metadata"]["annotations"][redirection].as_str() {
            Some(value) => object["metadata"]["annotations"][redirection] = json!(value),
            None => {
                if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                    annotations.remove(redirection);
                }
            }
        }
    }
}

fn any(encoded: &Encoded) -> Vec<u8> {
    prost_types::Any::decode(&*encoded.any())
        .expect("an Any")
        .value
}

/// The label by which an object asks for a waypoint.
pub const USE: &str = "istio.io/use-waypoint";

/// The labels of what uses the waypoint `gate`.
pub fn bound() -> Value {
    json!({USE: "gate"})
}

/// A namespace with a service `cart` that uses the waypoint `gate`, which is ready.
pub fn shop() -> World {
    let mut world = World::new();
    let changes = world.apply([
        namespace("shop", json!({})),
        our_class(),
        gateway("shop", "gate"),
        service("shop", "cart", "10.96.0.1", "cart", bound()),
        service("shop", "plain", "10.96.0.2", "plain", json!({})),
        pod("shop", "a", "10.0.0.1", json!({"app": "cart"})),
    ]);
    let waypoints = changes.waypoints();
    assert_eq!(waypoints.len(), 1);
    assert_eq!(waypoints[0].0, Key::new("shop", "gate"));
    for namespace in ["ambit-system", "shop"] {
        let roots = &world.desired[&Item::Roots(namespace.into())];
        assert_eq!(roots.wanted, Wanted::Roots);
    }
    world.write(changes);
    let changes = world.apply(waypoint("shop", "gate"));
    world.write(changes);
    world
}
