//! A proxy that takes everything, and what a controller offers it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh::proto::node::EnrolledNamespace;
use mesh::xds::session::{ControllerSession, Hold, Offer, ProxySession};
use mesh::xds::{ENROLLED_NAMESPACE_TYPE as TYPE, Encoded, View};
use prost::Message;

pub const ALL: usize = usize::MAX;

pub fn encoded(type_url: &str, value: u32) -> Encoded {
    let name = value.to_string();
    Encoded::new(type_url, &EnrolledNamespace { name })
}

pub fn view(type_url: &str, values: &[(&str, u32)]) -> View {
    let mut view = View::default();
    for (name, value) in values {
        let encoded = encoded(type_url, *value);
        view.edit().insert(Arc::from(*name), encoded);
    }
    view
}

/// A proxy that takes everything, by type and name.
pub struct Proxy {
    pub session: ProxySession,
    pub has: BTreeMap<(String, String), u32>,
    /// What it was told, in order: `+name` and `-name`.
    pub told: Vec<String>,
}

impl Proxy {
    pub fn new(types: &[&'static str]) -> Self {
        Self {
            session: ProxySession::new(types.iter().copied()),
            has: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    pub fn connect(&self) -> ControllerSession {
        let mut controller = ControllerSession::new();
        for request in self.session.open(&Node::default()) {
            controller.on_request(&request).expect("a subscription");
        }
        controller
    }

    pub fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
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

    pub fn names(&self, type_url: &str) -> Vec<&str> {
        let of_type = self.has.keys().filter(|(of, _)| of == type_url);
        of_type.map(|(_, name)| name.as_str()).collect()
    }
}

pub fn offer(view: &View, hold: Hold) -> Offer {
    Offer {
        view: view.clone(),
        known_as_of: "as of now".into(),
        hold,
    }
}

/// Says and answers one type until there is nothing to say; returns what the proxy was told.
pub fn settle(
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
