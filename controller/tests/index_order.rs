//! The same objects, told in whatever order and with whatever relists between them, come to the same mesh.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::index::changes::{Kind, PodPlacement, Scope};
use controller::index::desired::{Entry, Item, Wanted};
use controller::index::names::Key;
use controller::index::{Index, Input, WatchEvent};
use controller::position::Coverage;
use mesh::proto::node::{EnrolmentReport, enrolment_report::State};
use mesh::xds::Encoded;
use proptest::prelude::*;
use serde_json::{Value, json};

use support::{
    USE, class, gateway, key, kind, namespace, our_class, pod, route, service, settings, told,
    waypoint,
};

/// An object's life: its versions, and whether it is gone in the end.
#[derive(Debug, Clone)]
struct Life {
    versions: Vec<Value>,
    gone: bool,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// The next event of the object of this number.
    Tell(usize),
    /// The watch of this kind lists anew; events of other kinds come between its items.
    List(usize),
    /// What is marked is computed.
    Settle,
    /// Time passes.
    Turn,
    /// The node says what it says about its pod.
    Report,
}

/// What the index has told so far, by what it is about.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    resources: BTreeMap<(Scope, String), Encoded>,
    placements: BTreeMap<String, Arc<PodPlacement>>,
    desired: BTreeMap<Item, Arc<Entry>>,
}

struct Run {
    index: Index,
    outcome: Outcome,
    lives: Vec<Life>,
    told: Vec<usize>,
    /// What the API server has now.
    there: BTreeMap<(Kind, Key), Value>,
}

// === impl Run ===

impl Run {
    fn new(lives: &[Life]) -> Self {
        Self {
            index: Index::new(settings::index()),
            outcome: Outcome::default(),
            told: vec![0; lives.len()],
            lives: lives.to_vec(),
            there: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Tell(number) => {
                let number = number % self.lives.len();
                if let Some(event) = self.next(number) {
                    self.index.apply(event);
                }
            }
            Step::List(number) => self.list(Kind::ALL[number % Kind::ALL.len()]),
            Step::Settle => self.settle(),
            Step::Turn => self.index.apply(Input::Turn),
            Step::Report => self.report(),
        }
    }

    /// The object's next event, as its watch tells it.
    fn next(&mut self, number: usize) -> Option<Input> {
        let life = &self.lives[number];
        let at = self.told[number];
        self.told[number] += 1;
        let object = life.versions.last()?;
        let (kind, key) = (kind(object), key(object));
        match life.versions.get(at) {
            Some(object) => {
                self.there.insert((kind, key), object.clone());
                Some(told(kind, WatchEvent::Apply(object.clone())))
            }
            None if at == life.versions.len() && life.gone => {
                self.there.remove(&(kind, key.clone()));
                let version = "9".to_owned();
                Some(told(kind, WatchEvent::Delete { key, version }))
            }
            None => None,
        }
    }

    /// A list of what is there, after every other object of the kind has moved on without the watch having told of it.
    fn list(&mut self, listed: Kind) {
        for number in 0..self.lives.len() {
            if number % 2 == 0 && kind(&self.lives[number].versions[0]) == listed {
                self.next(number);
            }
        }
        self.index.apply(told(listed, WatchEvent::Begin));
        let items: Vec<Value> = self
            .there
            .iter()
            .filter(|((kind, _), _)| *kind == listed)
            .map(|(_, object)| object.clone())
            .collect();
        let mut others = (0..self.lives.len())
            .filter(|number| kind(&self.lives[*number].versions[0]) != listed)
            .collect::<Vec<_>>()
            .into_iter();
        for item in items {
            self.index.apply(told(listed, WatchEvent::Item(item)));
            if let Some(event) = others.next().and_then(|number| self.next(number)) {
                self.index.apply(event);
            }
        }
        let version = "9".to_owned();
        self.index.apply(told(listed, WatchEvent::End { version }));
    }

    fn report(&mut self) {
        self.index.apply(Input::Report {
            node: "n1".into(),
            report: EnrolmentReport {
                uid: "a".to_owned(),
                state: State::Enrolled.into(),
                ..EnrolmentReport::default()
            },
        });
    }

    fn settle(&mut self) {
        let changes = self.index.settle();
        let Outcome {
            resources,
            placements,
            desired,
        } = &mut self.outcome;
        for change in changes.resources {
            let at = (change.scope, change.name.to_string());
            match change.resource {
                Some(resource) => resources.insert(at, resource),
                None => resources.remove(&at),
            };
        }
        for (uid, placement) in changes.placements {
            match placement {
                Some(placement) => placements.insert(uid.to_string(), placement),
                None => placements.remove(&*uid),
            };
        }
        for (item, entry) in changes.desired {
            match entry {
                Some(entry) => desired.insert(item, entry),
                None => desired.remove(&item),
            };
        }
    }

    /// Tells all that is left, and what came of it.
    fn end(mut self) -> Outcome {
        for number in 0..self.lives.len() {
            while let Some(event) = self.next(number) {
                self.index.apply(event);
            }
        }
        // What was skipped for a list that then did not come.
        for kind in Kind::ALL {
            self.list(*kind);
        }
        self.report();
        // Until nothing waits for another watch any more.
        while self.index.waits() {
            self.step(&Step::Turn);
            self.settle();
        }
        self.settle();
        // Only who has seen a waypoint there knows that its namespace once had the roots.
        self.outcome
            .desired
            .retain(|_, entry| entry.wanted != Wanted::NoRoots);
        self.outcome
    }
}

/// So many ports, told apart by name and number; the first is called `https`.
fn ports_from(first: usize, count: usize) -> Value {
    let port = |n: usize| match n {
        0 => json!({"name": "https", "port": first}),
        n => json!({"name": format!("p{n}"), "port": first + n}),
    };
    (0..count).map(port).collect()
}

/// The versions through which an object of each sort may go.
fn pool() -> Vec<Vec<Value>> {
    let ambient = json!({"istio.io/dataplane-mode": "ambient"});
    let uses = json!({USE: "gate"});
    let uses_both = json!({USE: "gate", "istio.io/dataplane-mode": "ambient"});
    let app = json!({"app": "cart"});
    let mut pending = pod("shop", "a", "10.0.0.1", app.clone());
    pending["spec"]["nodeName"] = json!(null);
    let mut unready = pod("shop", "a", "10.0.0.1", app.clone());
    unready["status"]["conditions"] = json!([]);
    let mut manual = service("shop", "manual", "10.96.0.3", "-", json!({}));
    manual["spec"]["selector"] = json!(null);
    manual["spec"]["ports"] = json!([{"name": "https", "port": 443}]);
    let mut selecting = manual.clone();
    selecting["spec"]["selector"] = json!({"app": "cart"});
    let slice_of = |name: &str, ports: usize, addresses: Value| {
        json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"kubernetes.io/service-name": "manual"}},
            "addressType": "IPv4",
            "endpoints": addresses,
            "ports": ports_from(6443, ports),
        })
    };
    let slice = |addresses: Value| slice_of("manual-1", 1, addresses);
    // A pod has no room for two of 256 ports and anything else.
    let wide = |name: &str, count: usize| {
        let mut wide = service("shop", name, "10.96.0.1", "cart", json!({}));
        wide["spec"]["ports"] = ports_from(1, count);
        wide
    };
    // And an address none for two of these.
    let two = json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["192.0.2.2"]}]);
    let crowding = |name: &str| slice_of(name, 200, two.clone());
    let node = |address: &str, zone: &str| {
        json!({"kind": "Node", "apiVersion": "v1",
               "metadata": {"name": "n1", "uid": "n1", "labels": {"topology.kubernetes.io/zone": zone}},
               "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let mut ranged = node("10.0.0.7", "z2");
    ranged["spec"] = json!({"podCIDRs": ["10.0.0.0/30"]});
    // It names the cluster IP of a Service and the address of a node.
    let mut liar = pod("shop", "b", "10.0.0.2", app.clone());
    liar["status"]["podIPs"] = json!([{"ip": "10.96.0.3"}, {"ip": "10.0.0.7"}, {"ip": "10.0.0.2"}]);
    let mut for_all = gateway("shop", "gate");
    for_all["metadata"]["labels"] = json!({"istio.io/waypoint-for": "all"});
    let mut theirs = gateway("shop", "gate");
    theirs["spec"]["gatewayClassName"] = json!("nginx");
    let to_cart = json!([{"group": "", "kind": "Service", "name": "cart"}]);
    let rules = |backend: &str| json!([{"backendRefs": [{"name": backend, "port": 80}]}]);
    let [gate, gate_pod, set, deployment] = waypoint("shop", "gate");
    vec![
        vec![
            namespace("shop", json!({})),
            namespace("shop", ambient.clone()),
            namespace("shop", uses),
            namespace("shop", uses_both),
        ],
        vec![namespace("till", ambient)],
        vec![node("172.18.0.2", "z1"), node("10.0.0.7", "z2"), ranged],
        vec![pending, unready, pod("shop", "a", "10.0.0.1", app.clone())],
        vec![
            pod("shop", "b", "10.0.0.2", json!({USE: "gate"})),
            pod("shop", "b", "10.0.0.1", app.clone()),
            liar,
        ],
        vec![pod("till", "c", "10.0.0.7", app)],
        vec![
            service("shop", "cart", "10.96.0.1", "cart", json!({})),
            service("shop", "cart", "10.96.0.1", "cart", json!({USE: "gate"})),
            service("shop", "cart", "10.96.0.1", "other", json!({USE: "none"})),
            wide("cart", 256),
            wide("cart", 257),
        ],
        vec![wide("art", 256), wide("art", 1)],
        vec![wide("zoo", 1), wide("zoo", 255)],
        vec![manual, selecting],
        vec![
            slice(json!([{"addresses": ["10.0.0.7"]}, {"addresses": ["10.0.0.1"]}])),
            slice(json!([{"addresses": ["172.18.0.2"]}, {"addresses": ["192.0.2.1"]}])),
        ],
        vec![crowding("crowd-0"), slice_of("crowd-0", 1, json!([]))],
        vec![crowding("crowd-1")],
        vec![our_class()],
        vec![class("nginx", "example.com/nginx")],
        vec![gateway("shop", "gate"), for_all, theirs],
        vec![gate],
        vec![gate_pod],
        vec![set],
        vec![deployment],
        vec![
            route("shop", "r", to_cart.clone(), rules("cart")),
            route("shop", "r", to_cart, rules("manual")),
        ],
    ]
}

/// Each object with some of its versions, the last of them perhaps gone.
fn lives() -> impl Strategy<Value = Vec<Life>> {
    let each: Vec<_> = pool()
        .into_iter()
        .map(|versions| {
            let picks = prop::collection::vec(prop::sample::select(versions), 1..4);
            (picks, prop::bool::weighted(0.2)).prop_map(|(mut versions, gone)| {
                for (at, version) in versions.iter_mut().enumerate() {
                    version["metadata"]["generation"] = json!(at + 1);
                    version["metadata"]["resourceVersion"] = json!((at + 1).to_string());
                }
                Life { versions, gone }
            })
        })
        .collect();
    each
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => any::<usize>().prop_map(Step::Tell),
        2 => any::<usize>().prop_map(Step::List),
        3 => Just(Step::Settle),
        1 => Just(Step::Turn),
        1 => Just(Step::Report),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_any_relist_come_to_the_same(lives in lives(), steps in steps()) {
        let plain = Run::new(&lives).end();
        let mut shuffled = Run::new(&lives);
        for step in &steps {
            shuffled.step(step);
        }
        let shuffled = shuffled.end();
        prop_assert_eq!(&shuffled.resources, &plain.resources);
        prop_assert_eq!(&shuffled.placements, &plain.placements);
        prop_assert_eq!(&shuffled.desired, &plain.desired);
    }
}

#[test]
fn a_relist_covers_nothing_before_it_has_told_all() {
    let mut index = Index::new(settings::index());
    let at = |name: &str, version: &str| {
        let mut pod = pod("shop", name, "10.0.0.1", json!({}));
        pod["metadata"]["resourceVersion"] = json!(version);
        pod
    };
    let end = |version: &str| WatchEvent::End {
        version: version.to_owned(),
    };
    index.apply(told(
        Kind::Namespace,
        WatchEvent::Apply(namespace("shop", json!({}))),
    ));
    for (event, coverage) in [
        (WatchEvent::Begin, Coverage::Unknown),
        (end("8900"), Coverage::Behind),
        (WatchEvent::Begin, Coverage::Behind),
        // Of a newer version than the object that another replica knows, and that is still to come.
        (WatchEvent::Item(at("a", "9000")), Coverage::Behind),
        (WatchEvent::Item(at("z", "8950")), Coverage::Behind),
        (end("9001"), Coverage::Covered),
    ] {
        let happened = format!("{event:?}");
        index.apply(told(Kind::Pod, event));
        assert_eq!(
            index.positions().covers("v1;pods=8990"),
            coverage,
            "{happened}"
        );
    }
}

#[test]
fn what_cannot_be_read_in_a_relist_stays_as_it_was_and_what_is_gone_goes() {
    let mut index = Index::new(settings::index());
    let end = || WatchEvent::End {
        version: "9".to_owned(),
    };
    let key = |name: &str| Key::new("shop", name);
    let pods = |index: &Index| index.summary()["objects"]["pods"].clone();
    index.apply(told(
        Kind::Namespace,
        WatchEvent::Apply(namespace("shop", json!({}))),
    ));
    for name in ["a", "b"] {
        let pod = pod("shop", name, "10.0.0.1", json!({}));
        index.apply(told(Kind::Pod, WatchEvent::Apply(pod)));
    }
    for event in [
        WatchEvent::Begin,
        WatchEvent::Kept { key: key("a") },
        WatchEvent::Kept { key: key("new") },
        end(),
    ] {
        index.apply(told(Kind::Pod, event));
    }
    assert_eq!(pods(&index), 1);
    for event in [WatchEvent::Begin, end()] {
        index.apply(told(Kind::Pod, event));
    }
    assert_eq!(pods(&index), 0);
}
