//! Streams that go from one controller to another that knows less, and the order of types on one stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use mesh::proto::node::EnrolledNamespace;
use mesh::xds::session::{ControllerSession, Deltas, Hold, Limits, Offer, ProxySession};
use mesh::xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE as TYPE, Encoded, ROUTE_TYPE, View};
use proptest::prelude::*;
use prost::Message;

const ALL: usize = usize::MAX;

fn encoded(type_url: &str, value: u32) -> Encoded {
    let name = value.to_string();
    Encoded::new(type_url, &EnrolledNamespace { name })
}

fn view(type_url: &str, values: &[(&str, u32)]) -> View {
    let mut view = View::default();
    for (name, value) in values {
        let encoded = encoded(type_url, *value);
        view.edit().insert(Arc::from(*name), encoded);
    }
    view
}

/// A proxy that takes everything, by type and name.
struct Proxy {
    session: ProxySession,
    has: BTreeMap<(String, String), u32>,
    /// What it was told, in order: `+name` and `-name`.
    told: Vec<String>,
}

impl Proxy {
    fn new(types: &[&'static str]) -> Self {
        Self {
            session: ProxySession::new(types.iter().copied()),
            has: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    fn connect(&self) -> ControllerSession {
        let mut controller = ControllerSession::new();
        for request in self.session.open(&Node::default()) {
            controller.on_request(&request).expect("a subscription");
        }
        controller
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let Self { session, has, told } = self;
        let reply = session.on_response(response, |update| {
            for name in &update.removed {
                told.push(format!("-{name}"));
                has.remove(&(update.type_url.to_owned(), name.clone()));
            }
            for (name, bytes) in &update.updated {
                let value = EnrolledNamespace::decode(bytes.clone()).expect("ours");
                let value = value.name.parse().expect("a number");
                told.push(format!("+{name}"));
                has.insert((update.type_url.to_owned(), name.clone()), value);
            }
            Ok(())
        });
        assert!(reply.refused.is_none(), "{:?}", reply.refused);
        reply.request
    }

    fn names(&self, type_url: &str) -> Vec<&str> {
        let of_type = self.has.keys().filter(|(of, _)| of == type_url);
        of_type.map(|(_, name)| name.as_str()).collect()
    }
}

fn offer(view: &View, hold: Hold) -> Offer {
    Offer {
        view: view.clone(),
        known_as_of: "as of now".into(),
        hold,
    }
}

/// Says and answers one type until there is nothing to say; returns what the proxy was told.
fn settle(
    controller: &mut ControllerSession,
    proxy: &mut Proxy,
    view: &View,
    hold: Hold,
) -> Vec<String> {
    proxy.told.clear();
    while let Some(push) = controller.changes(TYPE, &offer(view, hold), 2) {
        let answer = proxy.take(push.to_response().expect("it can be read"));
        controller.on_request(&answer).expect("an answer");
    }
    std::mem::take(&mut proxy.told)
}

#[test]
fn a_hold_lets_updates_flow_and_ends() {
    for hold in [Hold::Unseen, Hold::Removals] {
        let mut proxy = Proxy::new(&[TYPE]);
        let mut controller = proxy.connect();
        let knows = view(TYPE, &[("a", 1), ("b", 1), ("c", 1)]);
        settle(&mut controller, &mut proxy, &knows, Hold::Nothing);

        let mut controller = proxy.connect();
        assert!(controller.resumed(TYPE));
        assert_eq!(controller.known_as_of(TYPE), Some("as of now"));
        let lags = view(TYPE, &[("a", 2), ("d", 1)]);
        let told = settle(&mut controller, &mut proxy, &lags, hold);
        assert_eq!(told, ["+a", "+d"]);
        assert_eq!(proxy.names(TYPE), ["a", "b", "c", "d"]);
        assert!(!controller.settled(TYPE, &offer(&lags, Hold::Nothing)));
        // It comes to know b, as the proxy has it; c it never knew.
        let knows = view(TYPE, &[("a", 2), ("b", 1), ("d", 1)]);
        assert!(settle(&mut controller, &mut proxy, &knows, hold).is_empty());
        let told = settle(&mut controller, &mut proxy, &knows, Hold::Nothing);
        assert_eq!(told, ["-c"]);
        assert!(controller.settled(TYPE, &offer(&knows, Hold::Nothing)));
    }
}

#[test]
fn what_a_controller_saw_go_is_not_held_with_what_it_never_saw() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    let knows = view(TYPE, &[("seen", 1), ("unseen", 1)]);
    settle(&mut controller, &mut proxy, &knows, Hold::Nothing);

    let mut controller = proxy.connect();
    let lags = view(TYPE, &[("seen", 1)]);
    assert!(settle(&mut controller, &mut proxy, &lags, Hold::Unseen).is_empty());
    let gone = View::default();
    assert!(settle(&mut controller, &mut proxy, &gone, Hold::Removals).is_empty());
    let told = settle(&mut controller, &mut proxy, &gone, Hold::Unseen);
    assert_eq!(told, ["-seen"]);
    let told = settle(&mut controller, &mut proxy, &gone, Hold::Nothing);
    assert_eq!(told, ["-unseen"]);
}

#[test]
fn a_hold_of_what_is_known_lets_only_news_flow() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    let knows = view(TYPE, &[("a", 2), ("b", 2)]);
    settle(&mut controller, &mut proxy, &knows, Hold::Nothing);

    let mut controller = proxy.connect();
    let lags = view(TYPE, &[("a", 1), ("new", 1)]);
    let told = settle(&mut controller, &mut proxy, &lags, Hold::Known);
    assert_eq!(told, ["+new"]);
    // Changes of what it held are held, until nothing is: then only what differs is said.
    let caught_up = view(TYPE, &[("a", 2), ("b", 3), ("new", 1)]);
    assert!(settle(&mut controller, &mut proxy, &caught_up, Hold::Known).is_empty());
    let told = settle(&mut controller, &mut proxy, &caught_up, Hold::Removals);
    assert_eq!(told, ["+b"]);
    assert!(settle(&mut controller, &mut proxy, &caught_up, Hold::Nothing).is_empty());
}

#[test]
fn what_waits_for_its_turn_is_known_already() {
    let mut proxy = Proxy::new(&[ADDRESS_TYPE, ROUTE_TYPE]);
    let mut controller = proxy.connect();
    let offer = |of: &str, known_as_of: &str, values: &[(&str, u32)]| Offer {
        view: view(of, values),
        known_as_of: known_as_of.into(),
        hold: Hold::Nothing,
    };
    let then = |of: &str| match of {
        ADDRESS_TYPE => offer(of, "then", &[("s1", 1)]),
        _ => offer(of, "then", &[("r1", 1)]),
    };
    while let Some(push) = controller.next(then, ALL) {
        let answer = proxy.take(push.to_response().expect("it can be read"));
        controller.on_request(&answer).expect("an answer");
    }
    // Removals of addresses wait for the routes: what is new goes out, and whoever has it knows of it.
    let now = |of: &str| match of {
        ADDRESS_TYPE => offer(of, "now", &[("s1", 2)]),
        _ => offer(of, "now", &[("r1", 2)]),
    };
    let push = controller.next(now, ALL).expect("s1");
    assert_eq!(&*push.type_url, ADDRESS_TYPE);
    proxy.take(push.to_response().expect("it can be read"));
    let opening = proxy.session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "now");
}

#[test]
fn half_a_state_is_known_as_of_the_whole() {
    let mut proxy = Proxy::new(&[TYPE]);
    let mut controller = proxy.connect();
    let knows = view(TYPE, &[("a", 1), ("b", 1)]);
    let push = controller.changes(TYPE, &offer(&knows, Hold::Nothing), 1);
    let response = push.expect("a").to_response().expect("it can be read");
    assert_eq!(response.system_version_info, "more");
    proxy.take(response);
    assert!(!proxy.session.synced());
    let opening = proxy.session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "as of now");
}

/// What proxies of e5a689c do with a response, and what their requests look like.
#[test]
fn proxies_of_the_first_release_are_served() {
    let old_request = DeltaDiscoveryRequest {
        type_url: TYPE.to_owned(),
        initial_resource_versions: [("a".to_owned(), encoded(TYPE, 1).version().to_string())]
            .into(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut controller = ControllerSession::new();
    controller.on_request(&old_request).expect("a subscription");
    assert_eq!(controller.known_as_of(TYPE), None);
    assert!(controller.resumed(TYPE));
    let now = view(TYPE, &[("a", 1), ("b", 1), ("c", 1)]);
    let first = controller.changes(TYPE, &offer(&now, Hold::Removals), 1);
    let first = first.expect("b").to_response().expect("it can be read");
    // They compare with this word, and take anything else for the last response of a state.
    assert_eq!(first.system_version_info, "more");
    assert_eq!(first.resources.len(), 1);
    let ack = DeltaDiscoveryRequest {
        type_url: TYPE.to_owned(),
        response_nonce: first.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    controller.on_request(&ack).expect("an ack");
    let last = controller.changes(TYPE, &offer(&now, Hold::Removals), 1);
    let last = last.expect("c").to_response().expect("it can be read");
    assert_ne!(last.system_version_info, "more");
}

/// What controllers of e5a689c, and those of others, answer.
#[test]
fn controllers_of_the_first_release_are_understood() {
    let any = prost_types::Any {
        type_url: TYPE.to_owned(),
        value: EnrolledNamespace::default().encode_to_vec(),
    };
    let response = |info: &str, name: &str, version: &str| DeltaDiscoveryResponse {
        system_version_info: info.to_owned(),
        type_url: TYPE.to_owned(),
        nonce: "1".to_owned(),
        resources: vec![Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            resource: any.encode_to_vec().into(),
            aliases: Vec::new(),
        }],
        ..DeltaDiscoveryResponse::default()
    };
    let mut session = ProxySession::new([TYPE]);
    let _ = session.on_response(response("more", "a", "00000000000000aa"), |_| Ok(()));
    assert!(!session.synced());
    let _ = session.on_response(response("", "b", "2026-11-26T00:00:00Z/7"), |_| Ok(()));
    assert!(session.synced());
    let opening = session.open(&Node::default()).remove(0);
    assert_eq!(opening.known_as_of, "");
    let versions: BTreeMap<_, _> = opening.initial_resource_versions.into_iter().collect();
    // As they were written, or the other side would send them again.
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let expected = [
        pair("a", "00000000000000aa"),
        pair("b", "2026-11-26T00:00:00Z/7"),
    ];
    assert_eq!(versions, BTreeMap::from(expected));
}

#[test]
fn streams_that_have_the_same_share_what_is_encoded() {
    let deltas = Deltas::new();
    let mut streams: Vec<ControllerSession> = (0..2)
        .map(|_| {
            let mut stream = ControllerSession::shared(Limits::default(), deltas.clone());
            let subscription = DeltaDiscoveryRequest {
                type_url: TYPE.to_owned(),
                ..DeltaDiscoveryRequest::default()
            };
            stream.on_request(&subscription).expect("a subscription");
            stream
        })
        .collect();
    let mut now = view(TYPE, &[("a", 1), ("b", 1)]);
    for change in 0..3 {
        let pushes: Vec<_> = streams
            .iter_mut()
            .map(|stream| {
                let push = stream.changes(TYPE, &offer(&now, Hold::Nothing), ALL);
                let push = push.expect("something");
                let ack = DeltaDiscoveryRequest {
                    type_url: TYPE.to_owned(),
                    response_nonce: push.nonce.to_string(),
                    ..DeltaDiscoveryRequest::default()
                };
                stream.on_request(&ack).expect("an ack");
                push
            })
            .collect();
        let body = |at: usize| pushes[at].body().as_ptr();
        assert_eq!(body(0), body(1), "change {change}");
        now.edit().insert("a".into(), encoded(TYPE, 10 + change));
    }
}

#[test]
fn types_that_stand_still_push_no_delta_out() {
    let deltas = Deltas::new();
    let (moves, stands) = (TYPE, ROUTE_TYPE);
    let asks = |type_url: &str| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // More streams than deltas are remembered, each with a view of its own of the type that stands still.
    let mut streams: Vec<(ControllerSession, View)> = (0..300)
        .map(|number| {
            let mut stream = ControllerSession::shared(Limits::default(), deltas.clone());
            for type_url in [moves, stands] {
                stream.on_request(&asks(type_url)).expect("a subscription");
            }
            (stream, view(stands, &[("own", number)]))
        })
        .collect();
    let mut now = view(moves, &[("a", 1)]);
    for change in 0..3 {
        let mut bodies = BTreeSet::new();
        for (stream, own) in &mut streams {
            let offers = |of: &str| offer(if of == moves { &now } else { own }, Hold::Nothing);
            while let Some(push) = stream.next(offers, ALL) {
                if &*push.type_url == moves {
                    bodies.insert(push.body().as_ptr());
                }
                let ack = DeltaDiscoveryRequest {
                    response_nonce: push.nonce.to_string(),
                    ..asks(&push.type_url)
                };
                stream.on_request(&ack).expect("an ack");
            }
        }
        // The first round encodes everybody's own view besides.
        assert!(change == 0 || bodies.len() == 1, "{} bodies", bodies.len());
        now.edit().insert("a".into(), encoded(moves, 10 + change));
    }
}

// === order ===

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
