//! Both halves of delta xDS in one process, and a proxy that refuses some values.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashSet};

use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh::proto::node::EnrolledNamespace;
use mesh::xds::session::{Action, ControllerSession, Offer, ProxySession};
use mesh::xds::{ENROLLED_NAMESPACE_TYPE as TYPE, Encoded, Rejected, Resources, Update, View};
use prost::Message;

pub const ALL: usize = usize::MAX;

/// A value that the proxy refuses.
pub fn is_bad(value: u8) -> bool {
    value % 5 == 4
}

pub fn encoded(value: u8) -> Encoded {
    Encoded::new(
        TYPE,
        &EnrolledNamespace {
            name: value.to_string(),
        },
    )
}

pub fn resources(values: &[(&str, u8)]) -> View {
    let resources: Resources = values
        .iter()
        .map(|(name, value)| (std::sync::Arc::from(*name), encoded(*value)))
        .collect();
    resources.into()
}

pub fn offer(view: &View) -> Offer {
    Offer {
        view: view.clone(),
        ..Offer::default()
    }
}

/// What the controller says next of one type.
pub fn changes(
    controller: &mut ControllerSession,
    type_url: &str,
    now: &View,
    max: usize,
) -> Option<DeltaDiscoveryResponse> {
    let push = controller.changes(type_url, &offer(now), max)?;
    let response = push.to_response().expect("it can be read");
    assert_eq!(push.encoded_len(), push.encode_to_vec().len());
    assert_eq!(push.updated, response.resources.len());
    assert_eq!(push.removed, response.removed_resources.len());
    Some(response)
}

/// A proxy that keeps what it took.
pub struct Proxy {
    pub session: ProxySession,
    pub has: BTreeMap<String, u8>,
    /// What it refused on this stream and was not changed since.
    pub refused: HashSet<(String, u8)>,
}

impl Proxy {
    pub fn new() -> Self {
        let session = ProxySession::new([TYPE]);
        Self {
            session,
            has: BTreeMap::new(),
            refused: HashSet::new(),
        }
    }

    pub fn open(&self) -> Vec<DeltaDiscoveryRequest> {
        self.session.open(&Node::default())
    }

    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let Self {
            session,
            has,
            refused,
        } = self;
        session
            .on_response(response, |update| take(has, refused, update))
            .request
    }
}

pub fn take(
    has: &mut BTreeMap<String, u8>,
    refused: &mut HashSet<(String, u8)>,
    update: &Update,
) -> Result<(), Rejected> {
    let read = |bytes: &bytes::Bytes| -> u8 {
        let namespace = EnrolledNamespace::decode(bytes.clone()).expect("decodes");
        namespace.name.parse().expect("a number")
    };
    let bad: Vec<(String, u8)> = update
        .updated
        .iter()
        .map(|(name, bytes)| (name.clone(), read(bytes)))
        .filter(|(_, value)| is_bad(*value))
        .collect();
    for pair in &bad {
        assert!(
            refused.insert(pair.clone()),
            "{pair:?} was refused before and did not change"
        );
    }
    if !bad.is_empty() {
        let resources = bad
            .into_iter()
            .map(|(name, _)| (name, "bad".to_owned()))
            .collect();
        return Err(Rejected { resources });
    }
    for name in &update.removed {
        has.remove(name);
    }
    has.extend(
        update
            .updated
            .iter()
            .map(|(name, bytes)| (name.clone(), read(bytes))),
    );
    Ok(())
}

pub fn connect(proxy: &Proxy) -> ControllerSession {
    let mut controller = ControllerSession::new();
    for request in proxy.open() {
        assert_eq!(controller.on_request(&request), Ok(Action::Subscribed));
    }
    controller
}

/// Sends and answers until there is nothing to say; returns what was sent, as names.
pub fn settle(controller: &mut ControllerSession, proxy: &mut Proxy, now: &View) -> Vec<String> {
    let mut sent = Vec::new();
    while let Some(response) = changes(controller, TYPE, now, 2) {
        sent.extend(
            response
                .resources
                .iter()
                .map(|resource| resource.name.clone()),
        );
        sent.extend(
            response
                .removed_resources
                .iter()
                .map(|name| format!("-{name}")),
        );
        let request = proxy.on_response(response);
        controller.on_request(&request).expect("a valid request");
    }
    assert!(controller.settled(TYPE, &offer(now)));
    sent
}
