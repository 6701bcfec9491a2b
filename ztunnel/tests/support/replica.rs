//! A replica of the controller, as far as its streams go: the real sessions, over what it happens to know.

use std::collections::BTreeMap;

use mesh::{
    proto::{
        discovery,
        node::{EnrolledNamespace, Enrolment},
        workload::Address,
    },
    xds::{
        ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, Encoded, View,
        session::{ControllerSession, Hold, Offer, ProxySession},
    },
};
use prost::Message;

use super::{fabric::Resources, node::TestNode};

/// What a replica can say to one node.
pub(crate) struct Replica(BTreeMap<&'static str, View>);

impl Replica {
    pub(super) fn new(resources: &Resources) -> Self {
        let mut views: BTreeMap<&'static str, View> = BTreeMap::new();
        for ((type_url, name), bytes) in resources {
            let encoded = match *type_url {
                ADDRESS_TYPE => encoded::<Address>(type_url, bytes),
                ENROLMENT_TYPE => encoded::<Enrolment>(type_url, bytes),
                _ => encoded::<EnrolledNamespace>(type_url, bytes),
            };
            let view = views.entry(type_url).or_default();
            view.edit().insert(name.as_str().into(), encoded);
        }
        Self(views)
    }

    /// A node's proxy opens a stream to this replica.
    pub(crate) fn open(proxy: &ProxySession) -> ControllerSession {
        let mut session = ControllerSession::new();
        for request in proxy.open(&discovery::Node::default()) {
            session.on_request(&request).unwrap();
        }
        session
    }

    /// Says and answers until there is nothing left to say.
    pub(crate) fn say(
        &self,
        session: &mut ControllerSession,
        hold: Hold,
        proxy: &mut ProxySession,
        node: &TestNode,
    ) {
        let offer = |type_url: &str| Offer {
            view: self.0.get(type_url).cloned().unwrap_or_default(),
            known_as_of: "as of now".into(),
            hold,
        };
        while let Some(push) = session.next(offer, 2) {
            let response = push.to_response().unwrap();
            let reply = proxy.on_response(response, |update| {
                node.tell(update);
                Ok(())
            });
            assert!(reply.refused.is_none());
            session.on_request(&reply.request).unwrap();
        }
    }
}

/// The types that a node asks for here.
pub(crate) fn proxy() -> ProxySession {
    ProxySession::new([ADDRESS_TYPE, ENROLMENT_TYPE, ENROLLED_NAMESPACE_TYPE])
}

fn encoded<M: Message + Default>(type_url: &str, bytes: &[u8]) -> Encoded {
    Encoded::new(type_url, &M::decode(bytes).unwrap())
}
