//! The order of types on one stream: what is named comes before what names it, and goes after it, whichever replicas speak.

#[path = "support/replicas.rs"]
mod replicas;

use std::collections::BTreeMap;

use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::xds::session::{ControllerSession, Hold, Offer};
use mesh::xds::{ADDRESS_TYPE, ROUTE_TYPE, View};
use proptest::prelude::*;

use replicas::{ALL, Proxy, encoded, offer, view};

/// Services with their version, and routes that name services.
#[derive(Clone, Debug, Default)]
struct Mesh {
    services: BTreeMap<u8, u32>,
    routes: BTreeMap<u8, u8>,
}

impl Mesh {
    fn offer(&self, type_url: &str) -> Offer {
        let values: Vec<(String, u32)> = match type_url {
            ADDRESS_TYPE => self
                .services
                .iter()
                .map(|(name, version)| (format!("s{name}"), *version))
                .collect(),
            ROUTE_TYPE => self
                .routes
                .iter()
                .map(|(name, service)| (format!("r{name}"), (*service).into()))
                .collect(),
            other => panic!("{other} was not asked for"),
        };
        let values: Vec<(&str, u32)> = values.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        offer(&view(type_url, &values), Hold::Nothing)
    }

    /// A route to a service that is not there is not made.
    fn tidy(&mut self) {
        let services = &self.services;
        self.routes
            .retain(|_, service| services.contains_key(service));
    }
}

/// Every route that the proxy has names a service that it has.
fn check(proxy: &Proxy) {
    for ((type_url, route), service) in &proxy.has {
        if type_url == ROUTE_TYPE {
            let key = (ADDRESS_TYPE.to_owned(), format!("s{service}"));
            assert!(proxy.has.contains_key(&key), "{route} names {key:?}");
        }
    }
}

#[test]
fn a_service_comes_before_its_route_and_goes_after_it() {
    let mut proxy = Proxy::new(&[ROUTE_TYPE, ADDRESS_TYPE]);
    let mut controller = proxy.connect();
    let mut mesh = Mesh::default();
    let told = |controller: &mut ControllerSession, proxy: &mut Proxy, mesh: &Mesh| {
        proxy.told.clear();
        while let Some(push) = controller.next(|of| mesh.offer(of), 2) {
            let answer = proxy.take(push.to_response().expect("it can be read"));
            check(proxy);
            controller.on_request(&answer).expect("an answer");
        }
        std::mem::take(&mut proxy.told)
    };
    assert!(told(&mut controller, &mut proxy, &mesh).is_empty());
    // Many messages of services before the one route.
    mesh.services = (0..5).map(|name| (name, 1)).collect();
    mesh.routes.insert(7, 4);
    assert_eq!(
        told(&mut controller, &mut proxy, &mesh),
        ["+s0", "+s1", "+s2", "+s3", "+s4", "+r7"]
    );
    // The route moves to a new service while the old one goes.
    mesh.services = [(5, 1)].into();
    mesh.routes.insert(7, 5);
    assert_eq!(
        told(&mut controller, &mut proxy, &mesh),
        ["+s5", "+r7", "-s0", "-s1", "-s2", "-s3", "-s4"]
    );
    // Both go at once.
    mesh = Mesh::default();
    assert_eq!(told(&mut controller, &mut proxy, &mesh), ["-r7", "-s5"]);
}

#[test]
fn a_route_waits_for_services_that_wait_for_an_answer() {
    let mut proxy = Proxy::new(&[ROUTE_TYPE, ADDRESS_TYPE]);
    let mut controller = proxy.connect();
    let mut mesh = Mesh::default();
    for _ in 0..2 {
        let push = controller.next(|of| mesh.offer(of), ALL).expect("empty");
        let answer = proxy.take(push.to_response().expect("it can be read"));
        controller.on_request(&answer).expect("an answer");
    }
    mesh.services.insert(1, 1);
    let batch = controller.next(|of| mesh.offer(of), ALL).expect("s1");
    // Nothing is answered yet when a service and its route come.
    mesh.services.insert(2, 1);
    mesh.routes.insert(7, 2);
    assert_eq!(controller.next(|of| mesh.offer(of), ALL), None);
    let answer = proxy.take(batch.to_response().expect("it can be read"));
    controller.on_request(&answer).expect("an answer");
    let service = controller.next(|of| mesh.offer(of), ALL).expect("s2");
    assert_eq!(&*service.type_url, ADDRESS_TYPE);
    // Sent is enough: the stream keeps its order.
    let route = controller.next(|of| mesh.offer(of), ALL).expect("r7");
    assert_eq!(&*route.type_url, ROUTE_TYPE);
}

// === any order ===

#[derive(Clone, Debug)]
enum Step {
    /// The cluster changes: a name of the one type or the other.
    Set(usize, u8),
    Remove(usize, u8),
    /// One replica's watch comes nearer to the cluster.
    Watch(usize, usize),
    /// One response of that many names, taken in and answered; or lost with the stream.
    Deliver(usize),
    /// The stream goes to this replica.
    Connect(usize),
    /// The replica gives up waiting: the proxy's word counts no longer.
    GiveUp,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, 0..6u8).prop_map(|(which, name)| Step::Set(which, name)),
        2 => (0..2usize, 0..6u8).prop_map(|(which, name)| Step::Remove(which, name)),
        4 => (0..2usize, 1..4usize).prop_map(|(replica, by)| Step::Watch(replica, by)),
        6 => (1..4usize).prop_map(Step::Deliver),
        2 => (0..2usize).prop_map(Step::Connect),
        1 => Just(Step::GiveUp),
    ]
}

/// The cluster's past, two replicas that watch it, and the proxy's stream to one of them.
struct Story {
    past: Vec<[View; 2]>,
    seen: [usize; 2],
    at: usize,
    stream: ControllerSession,
    proxy: Proxy,
    gave_up: bool,
    /// Nobody gave up yet: what was taken back stays so, whoever comes later.
    trusted: bool,
}

const TYPES: [&str; 2] = [ADDRESS_TYPE, ROUTE_TYPE];

impl Story {
    fn new() -> Self {
        let proxy = Proxy::new(&TYPES);
        Self {
            past: vec![[View::default(), View::default()]],
            seen: [0, 0],
            at: 0,
            stream: proxy.connect(),
            proxy,
            gave_up: false,
            trusted: true,
        }
    }

    /// A name of the type gets a value that says when it got it, or goes.
    fn change(&mut self, which: usize, name: u8, there: bool) {
        let mut next = self.past[self.past.len() - 1].clone();
        let now = u32::try_from(self.past.len()).expect("a short story");
        let view = next[which].edit();
        match there {
            true => view.insert(name.to_string().into(), encoded(TYPES[which], now)),
            false => view.remove(name.to_string().as_str()),
        };
        self.past.push(next);
    }

    fn connect(&mut self, replica: usize) {
        self.at = replica;
        self.stream = self.proxy.connect();
        self.gave_up = false;
    }

    /// As a controller decides it: covered, or not yet.
    fn offer(&self, type_url: &str) -> Offer {
        let seen = self.seen[self.at];
        let known = self.stream.known_as_of(type_url);
        let known = known.and_then(|token| token.parse::<usize>().ok());
        let behind = known.is_some_and(|known| known > seen) && !self.gave_up;
        let both = known.filter(|_| behind).unwrap_or(seen);
        let which = usize::from(type_url == ROUTE_TYPE);
        Offer {
            view: self.past[seen][which].clone(),
            known_as_of: both.to_string().into(),
            hold: if behind { Hold::Known } else { Hold::Nothing },
        }
    }

    fn deliver(&mut self, max: usize) {
        let offers = TYPES.map(|of| self.offer(of));
        let which = |of: &str| usize::from(of == ROUTE_TYPE);
        let next = self.stream.next(|of| offers[which(of)].clone(), max);
        let Some(push) = next else { return };
        let hold = offers[which(&push.type_url)].hold;
        let before = self.proxy.has.clone();
        let type_url = push.type_url.to_string();
        self.proxy.told.clear();
        let answer = self.proxy.take(push.to_response().expect("it can be read"));
        self.stream.on_request(&answer).expect("an answer");
        for said in &self.proxy.told {
            let (sign, name) = said.split_at(1);
            let key = (type_url.clone(), name.to_owned());
            let had = before.get(&key);
            if hold == Hold::Known {
                assert!(sign == "+" && had.is_none(), "held: {said}");
            }
            // Without that, a value is never an older one than the proxy has.
            if let (true, Some(had), Some(has)) = (self.trusted, had, self.proxy.has.get(&key)) {
                assert!(has >= had, "{said} of {type_url}: {has} after {had}");
            }
        }
    }

    fn settled(&self) -> bool {
        TYPES
            .iter()
            .all(|of| self.stream.settled(of, &self.offer(of)))
    }
}

proptest! {
    /// Whatever happens: a replica that is behind takes nothing back, and once it has caught up the proxy has what the
    /// cluster has.
    #[test]
    fn a_reconnect_never_unknows(steps in proptest::collection::vec(step(), 0..100)) {
        let mut story = Story::new();
        for step in steps {
            match step {
                Step::Set(which, name) => story.change(which, name, true),
                Step::Remove(which, name) => story.change(which, name, false),
                Step::Watch(replica, by) => {
                    story.seen[replica] = (story.seen[replica] + by).min(story.past.len() - 1);
                }
                Step::Deliver(max) => story.deliver(max),
                Step::Connect(replica) => story.connect(replica),
                Step::GiveUp => (story.gave_up, story.trusted) = (true, false),
            }
        }
        story.seen = [story.past.len() - 1; 2];
        while !story.settled() {
            story.deliver(2);
        }
        let now = &story.past[story.past.len() - 1];
        for (which, type_url) in TYPES.iter().enumerate() {
            let has: Vec<(String, String)> = story.proxy.has.iter()
                .filter(|((of, _), _)| of == type_url)
                .map(|((_, name), value)| (name.clone(), encoded(type_url, *value).version().to_string()))
                .collect();
            let there: Vec<(String, String)> = now[which].iter()
                .map(|(name, encoded)| (name.to_string(), encoded.version().to_string()))
                .collect();
            prop_assert_eq!(has, there);
        }
    }

    /// Whatever changes while messages are under way: a route never names what is not there.
    #[test]
    fn nothing_is_named_that_is_not_there(
        steps in proptest::collection::vec((0..7u8, 0..4u8, 1..4usize), 0..80)
    ) {
        let mut proxy = Proxy::new(&[ADDRESS_TYPE, ROUTE_TYPE]);
        let mut controller = proxy.connect();
        let mut mesh = Mesh::default();
        let mut answers: Vec<DeltaDiscoveryRequest> = Vec::new();
        for (what, which, max) in steps {
            match what {
                0 => { *mesh.services.entry(which).or_default() += 1; }
                1 => { mesh.services.remove(&which); mesh.tidy(); }
                2 => { mesh.routes.insert(which, which % 3); mesh.tidy(); }
                3 => { mesh.routes.remove(&which); }
                // Answers come late.
                4 => if let Some(answer) = answers.pop() {
                    controller.on_request(&answer).expect("an answer");
                },
                _ => if let Some(push) = controller.next(|of| mesh.offer(of), max) {
                    answers.push(proxy.take(push.to_response().expect("it can be read")));
                },
            }
            check(&proxy);
        }
        loop {
            for answer in answers.drain(..) {
                controller.on_request(&answer).expect("an answer");
            }
            let Some(push) = controller.next(|of| mesh.offer(of), 2) else { break };
            answers.push(proxy.take(push.to_response().expect("it can be read")));
            check(&proxy);
        }
        prop_assert_eq!(proxy.has.len(), mesh.services.len() + mesh.routes.len());
    }
}
