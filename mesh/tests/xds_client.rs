//! The client against a scripted controller: reconnects, resumes, refuses, reports, reads its files again.

mod support;

use std::pin::Pin;
use std::sync::Arc;

use mesh::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh::proto::node::{EnrolledNamespace, EnrolmentReport};
use mesh::xds::client::{Client, Config, Handle, State};
use mesh::xds::node::NodeInfo;
use mesh::xds::session::{ControllerSession, Offer, ProxySession};
use mesh::xds::{
    ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE as TYPE, ENROLMENT_REPORT_TYPE, Encoded, Rejected,
    Resources, Update,
};
use prost::Message;
use support::{Ca, Files, SERVER_NAME, serve};
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const ALL: usize = usize::MAX;

/// Hands every stream to the test.
#[derive(Clone)]
struct Script {
    token: &'static str,
    streams: mpsc::Sender<Conversation>,
    /// Told when a call is taken that is never answered: those that show the token [`SILENCE`].
    hung: Arc<Notify>,
}

const SILENCE: &str = "silence";

struct Conversation {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    session: ControllerSession,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let shown = request
            .metadata()
            .get("authorization")
            .map(|value| value.as_bytes().to_vec());
        if shown != Some(format!("Bearer {}", self.token).into_bytes()) {
            return Err(Status::unauthenticated("another token, please"));
        }
        if self.token == SILENCE {
            self.hung.notify_one();
            std::future::pending::<()>().await;
        }
        let (responses, outgoing) = mpsc::channel(8);
        let requests = request.into_inner();
        let session = ControllerSession::new();
        let conversation = Conversation {
            requests,
            responses,
            session,
        };
        self.streams
            .send(conversation)
            .await
            .map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

impl Conversation {
    async fn hear(&mut self) -> DeltaDiscoveryRequest {
        let request = self
            .requests
            .message()
            .await
            .expect("the stream lives")
            .expect("a request");
        self.session.on_request(&request).expect("a valid request");
        request
    }

    async fn say(&mut self, now: &Resources) -> DeltaDiscoveryResponse {
        let offer = Offer {
            view: now.clone().into(),
            ..Offer::default()
        };
        let response = self
            .session
            .changes(TYPE, &offer, ALL)
            .expect("something to say")
            .to_response()
            .expect("it can be read");
        self.responses
            .send(Ok(response.clone()))
            .await
            .expect("the stream lives");
        response
    }

    /// Subscription, answer, ACK.
    async fn begin(&mut self, now: &Resources) -> DeltaDiscoveryRequest {
        let subscription = self.hear().await;
        assert_eq!(subscription.type_url, TYPE);
        let said = self.say(now).await;
        let ack = self.hear().await;
        assert_eq!((ack.response_nonce, ack.error_detail), (said.nonce, None));
        subscription
    }
}

fn resources(names: &[&str]) -> Resources {
    let encoded = |name: &str| {
        Encoded::new(
            TYPE,
            &EnrolledNamespace {
                name: name.to_owned(),
            },
        )
    };
    names
        .iter()
        .map(|name| (Arc::from(*name), encoded(name)))
        .collect()
}

struct World {
    hung: Arc<Notify>,
    files: Files,
    streams: mpsc::Receiver<Conversation>,
    updates: mpsc::UnboundedReceiver<Update>,
    handle: Handle,
}

/// A controller that wants `token`, certified by `ca`, and a client with these files that refuses the name "bad".
async fn world(ca: &Ca, server_name: &str, token: &'static str, files: Files) -> World {
    let (streams_in, streams) = mpsc::channel(8);
    let hung = Arc::new(Notify::new());
    let service = AggregatedDiscoveryServiceServer::new(Script {
        token,
        streams: streams_in,
        hung: hung.clone(),
    });
    let address = serve(ca.server(server_name), service).await;
    let config = Config {
        control: files.control(address),
        node: NodeInfo {
            kind: "ztunnel".to_owned(),
            pod: "ztunnel-abc".to_owned(),
            namespace: "ambit-system".to_owned(),
            node_name: "worker".to_owned(),
            ip: "10.0.0.1".parse().expect("an address"),
            cluster: "Kubernetes".to_owned(),
            metadata: [].into(),
        },
        types: vec![TYPE],
    };
    let (updates_in, updates) = mpsc::unbounded_channel();
    let (client, handle) = Client::new(config, move |update: &Update| {
        if update.updated.iter().any(|(name, _)| name == "bad") {
            return Err(Rejected::one("bad", "it is bad"));
        }
        updates_in.send(update.clone()).expect("the test lives");
        Ok(())
    });
    tokio::spawn(client.run());
    World {
        hung,
        files,
        streams,
        updates,
        handle,
    }
}

async fn usual() -> World {
    let ca = Ca::new();
    let files = Files::new(&ca.pem(), "token\n");
    world(&ca, SERVER_NAME, "token", files).await
}

impl World {
    async fn stream(&mut self) -> Conversation {
        self.streams.recv().await.expect("a stream")
    }
}

fn names(update: &Update) -> Vec<&str> {
    update
        .updated
        .iter()
        .map(|(name, _)| name.as_str())
        .collect()
}

#[tokio::test]
async fn resumes_with_what_it_has() {
    let mut world = usual().await;
    assert!(!*world.handle.synced().borrow());
    let mut stream = world.stream().await;
    let subscription = stream.begin(&resources(&["a", "b"])).await;
    let node = NodeInfo::from_proto(&subscription.node.expect("a node")).expect("ours");
    assert_eq!(
        (node.kind.as_str(), node.node_name.as_str()),
        ("ztunnel", "worker")
    );
    assert!(subscription.initial_resource_versions.is_empty());
    assert_eq!(
        names(&world.updates.recv().await.expect("an update")),
        ["a", "b"]
    );
    world
        .handle
        .synced()
        .wait_for(|synced| *synced)
        .await
        .expect("synced");

    stream
        .responses
        .send(Err(Status::unavailable("rolling")))
        .await
        .expect("said");
    let mut state = world.handle.state();
    let down = |state: &State| matches!(state, State::Disconnected(why) if why.contains("rolling"));
    state.wait_for(down).await.expect("it says so");

    let mut stream = world.stream().await;
    let subscription = stream.begin(&resources(&["b", "c"])).await;
    let mut had: Vec<_> = subscription.initial_resource_versions.into_keys().collect();
    had.sort_unstable();
    assert_eq!(had, ["a", "b"]);
    let update = world.updates.recv().await.expect("the differences");
    assert_eq!(
        (names(&update), update.removed.as_slice()),
        (vec!["c"], &["a".to_owned()][..])
    );
    assert!(*world.handle.synced().borrow());
    assert_eq!(*world.handle.state().borrow(), State::Connected);
}

#[tokio::test]
async fn refuses_by_name_and_takes_the_rest() {
    let mut world = usual().await;
    let mut stream = world.stream().await;
    stream.begin(&resources(&["a"])).await;
    assert_eq!(
        names(&world.updates.recv().await.expect("an update")),
        ["a"]
    );
    stream.say(&resources(&["a", "bad", "c"])).await;
    let nack = stream.hear().await;
    assert_eq!(
        nack.error_detail.expect("a refusal").message,
        "bad: it is bad"
    );
    assert_eq!(names(&world.updates.recv().await.expect("the rest")), ["c"]);
}

#[tokio::test]
async fn reports_go_up_again_after_a_reconnect() {
    let mut world = usual().await;
    let report = |uid: &str, state: i32| EnrolmentReport {
        uid: uid.to_owned(),
        state,
        ..EnrolmentReport::default()
    };
    world.handle.report(report("one", 3));
    let mut stream = world.stream().await;
    stream.begin(&resources(&[])).await;
    assert_eq!(reported(&mut stream).await, [report("one", 3)]);
    world.handle.report(report("two", 1));
    assert_eq!(reported(&mut stream).await, [report("two", 1)]);
    world.handle.report(report("one", 1));
    assert_eq!(reported(&mut stream).await, [report("one", 1)]);
    world.handle.report(report("three", 1));
    assert_eq!(reported(&mut stream).await, [report("three", 1)]);
    world.handle.forget("three");

    drop(stream);
    let mut stream = world.stream().await;
    stream.begin(&resources(&[])).await;
    assert_eq!(
        reported(&mut stream).await,
        [report("one", 1), report("two", 1)]
    );
}

async fn reported(stream: &mut Conversation) -> Vec<EnrolmentReport> {
    let request = stream.hear().await;
    assert_eq!(request.type_url, ENROLMENT_REPORT_TYPE);
    let decode = |any: &prost_types::Any| EnrolmentReport::decode(&*any.value).expect("a report");
    request.reports.iter().map(decode).collect()
}

#[tokio::test]
async fn reads_token_and_roots_again() {
    let (ca, other) = (Ca::new(), Ca::new());
    let files = Files::new(&other.pem(), "old");
    let mut world = world(&ca, SERVER_NAME, "new", files).await;
    let mut state = world.handle.state();
    let says = |what: &'static str| move |state: &State| matches!(state, State::Disconnected(why) if why.contains(what));
    state
        .wait_for(says("invalid peer certificate"))
        .await
        .expect("it does not trust");
    assert!(world.streams.try_recv().is_err());
    world.files.roots("garbage");
    state
        .wait_for(says("holds no certificate"))
        .await
        .expect("it says what is wrong");
    world.files.roots(&format!("{}{}", other.pem(), ca.pem()));
    state
        .wait_for(says("another token, please"))
        .await
        .expect("it is not trusted");
    world.files.token("new\n");
    state
        .wait_for(|state| *state == State::Connected)
        .await
        .expect("it is connected");
    world.stream().await.begin(&resources(&["a"])).await;
}

#[tokio::test]
async fn a_controller_by_another_name_is_refused() {
    let ca = Ca::new();
    let files = Files::new(&ca.pem(), "token");
    let mut world = world(&ca, "elsewhere.svc", "token", files).await;
    let mut state = world.handle.state();
    let refused = |state: &State| matches!(state, State::Disconnected(why) if why.contains("not valid for name"));
    state.wait_for(refused).await.expect("it says so");
    assert!(world.streams.try_recv().is_err(), "no token was shown");
}

#[tokio::test]
async fn a_stranger_gets_no_reports() {
    let mut world = usual().await;
    world.handle.report(EnrolmentReport {
        uid: "one".to_owned(),
        ..EnrolmentReport::default()
    });
    let mut stream = world.stream().await;
    stream.hear().await;
    // A stock controller serves no type of ours; whatever it says, only answers come back.
    for nonce in ["1", "2"] {
        let response = DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE.to_owned(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        stream.responses.send(Ok(response)).await.expect("said");
        let answer = stream
            .requests
            .message()
            .await
            .expect("alive")
            .expect("an answer");
        assert_eq!(answer.response_nonce, nonce);
        assert!(answer.reports.is_empty() && answer.error_detail.is_some());
    }
}

#[tokio::test]
async fn a_controller_that_does_not_open_a_stream_is_given_up() {
    let ca = Ca::new();
    let files = Files::new(&ca.pem(), SILENCE);
    let world = world(&ca, SERVER_NAME, SILENCE, files).await;
    // It has the call, answers pings, and asks the API server for ever.
    world.hung.notified().await;
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    tokio::time::resume();
    let mut state = world.handle.state();
    let silent = |state: &State| matches!(state, State::Disconnected(why) if why.contains("did not open a stream"));
    state.wait_for(silent).await.expect("it says so");
    // And it is tried again.
    world.hung.notified().await;
}

#[tokio::test]
async fn addresses_are_asked_for_and_given_up_also_by_the_next_stream() {
    let mut world = usual().await;
    world.handle.ask_address("/10.0.0.1");
    let mut stream = world.stream().await;
    // Not subscribed to addresses, it asks for none.
    let subscription = stream.begin(&resources(&["a"])).await;
    assert!(subscription.resource_names_subscribe.is_empty());

    let mut session = ProxySession::new([ADDRESS_TYPE]);
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| Arc::from(*name))
            .collect::<Vec<_>>()
    };
    let asked = session.ask(ADDRESS_TYPE, names(&["/10.0.0.1", "/10.0.0.2"]));
    let asked = asked.expect("a request");
    assert_eq!(asked.resource_names_subscribe, ["/10.0.0.1", "/10.0.0.2"]);
    assert!(asked.resource_names_unsubscribe.is_empty());
    let asked = session.ask(ADDRESS_TYPE, names(&["/10.0.0.2", "/10.0.0.3"]));
    let asked = asked.expect("a request");
    assert_eq!(asked.resource_names_subscribe, ["/10.0.0.3"]);
    assert_eq!(asked.resource_names_unsubscribe, ["/10.0.0.1"]);
    let same = session.ask(ADDRESS_TYPE, names(&["/10.0.0.3", "/10.0.0.2"]));
    assert!(same.is_none());
    // With names, everything has to be asked for by its name, too.
    let opening = session.open(&Default::default()).remove(0);
    assert_eq!(
        opening.resource_names_subscribe,
        ["*", "/10.0.0.2", "/10.0.0.3"]
    );
}
