//! The controller's half: what one client asked for, what it has been told, and what it must be told next.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::delta::{Deltas, Push};
use super::order::{self, Turn};
use super::subscription::{Next, Subscription};
use super::{Hold, MAX_TOKEN};
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::xds::View;

/// Bytes of a resource name.
const MAX_NAME: usize = 1024;
/// Bytes of a type's URL.
const MAX_TYPE: usize = 256;

/// What one stream may ask for. A request beyond it ends the stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Types. A proxy of ours asks for four.
    pub types: usize,
    /// Names that are asked for one by one, for each type.
    pub names: usize,
    /// Resources that a client may say it has, for each type.
    pub versions: usize,
}

/// One stream's state. It holds no copy of a resource, only pointers into the views it has sent.
#[derive(Debug, Default)]
pub struct ControllerSession {
    limits: Limits,
    types: BTreeMap<Arc<str>, Subscription>,
    nonce: u64,
    deltas: Deltas,
}

/// What there is to say of one type now.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// What the client may see.
    pub view: View,
    /// What a client knows at most that was told the view, or part of it, and what it had before: said with whatever is
    /// said. Empty: nothing that could be compared.
    pub known_as_of: Arc<str>,
    /// What must not be said yet.
    pub hold: Hold,
}

/// What a request meant. In every case but `Nothing`, [`ControllerSession::next`] may have something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its type is newly subscribed to, or other names of it are.
    Subscribed,
    /// The last response of its type was taken.
    Acked,
    /// The last response of its type, or parts of it, was refused; `reason` is the client's own text.
    Nacked {
        /// For the log and the status of what was refused.
        reason: String,
    },
    /// An answer to an older response, or only reports.
    Nothing,
}

/// A request that ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// No type.
    #[error("a request without a type")]
    NoType,
    /// A type's URL that is too long.
    #[error("a type URL of {0} bytes")]
    LongType(usize),
    /// Too many types.
    #[error("more than {0} types on one stream")]
    TooManyTypes(usize),
    /// Too many names.
    #[error("more than {0} names of one type")]
    TooManyNames(usize),
    /// A name that is too long.
    #[error("a resource name of {0} bytes")]
    LongName(usize),
    /// More resources than the client can have been told of.
    #[error("{0} resources that the client says it has, of {1} that it may have")]
    TooManyVersions(usize, usize),
    /// A token that is too long.
    #[error("known_as_of of {0} bytes")]
    LongToken(usize),
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            types: 16,
            names: 65_536,
            versions: 1 << 24,
        }
    }
}

// === impl ControllerSession ===

impl ControllerSession {
    /// A stream on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream with bounds, which shares what it encodes with the others that have the same `deltas`.
    pub fn shared(limits: Limits, deltas: Deltas) -> Self {
        Self {
            limits,
            deltas,
            ..Self::default()
        }
    }

    /// Takes in one request: a subscription, an ACK or a NACK. Its `reports` and `node` are the caller's to read.
    pub fn on_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Action, ProtocolError> {
        let changes_names = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        if !request.reports.is_empty() && !changes_names && request.response_nonce.is_empty() {
            return Ok(Action::Nothing);
        }
        self.limits.check(request)?;
        let type_url = request.type_url.as_str();
        let Some(subscription) = self.types.get_mut(type_url) else {
            if self.types.len() >= self.limits.types {
                return Err(ProtocolError::TooManyTypes(self.limits.types));
            }
            self.types
                .insert(type_url.into(), Subscription::first(request));
            return Ok(Action::Subscribed);
        };
        subscription.change(request);
        if subscription.names() > self.limits.names {
            return Err(ProtocolError::TooManyNames(self.limits.names));
        }
        let answers = subscription
            .in_flight
            .is_some_and(|nonce| request.response_nonce == nonce.to_string());
        if answers {
            subscription.in_flight = None;
            if let Some(error) = &request.error_detail {
                return Ok(Action::Nacked {
                    reason: error.message.clone(),
                });
            }
        }
        Ok(match (changes_names, answers) {
            (true, _) => Action::Subscribed,
            (false, true) => Action::Acked,
            (false, false) => Action::Nothing,
        })
    }

    /// The next thing to say of any type, in the order in which types depend on one another; at most `max` names.
    ///
    /// Call it when an offer changes and after each request, until it returns `None`. `offer` is asked only about types
    /// that the client subscribed to, also about those that nobody serves: those are answered with no resources.
    pub fn next(&mut self, offer: impl Fn(&str) -> Offer, max: usize) -> Option<Push> {
        let types: Vec<Arc<str>> = order::sorted(self.types.keys().cloned());
        let mut offers = BTreeMap::new();
        for type_url in &types {
            offers.insert(Arc::clone(type_url), offer(type_url));
        }
        for type_url in &types {
            let unsaid = |of: &str, removals_too| {
                let view = offers.get(of).map(|offer| &offer.view);
                let subscription = self.types.get(of);
                view.zip(subscription)
                    .is_some_and(|(view, s)| s.unsaid(view, removals_too))
            };
            let holds = |of: &str| self.types.get(of).is_some_and(Subscription::holds);
            let Some(offer) = offers.get(type_url) else {
                continue;
            };
            let push = match order::turn(type_url, unsaid, holds) {
                Turn::Everything => self.changes(type_url, offer, max),
                Turn::WithoutRemovals => {
                    let mut offer = offer.clone();
                    offer.hold = offer.hold.max(Hold::Removals);
                    self.changes(type_url, &offer, max)
                }
                Turn::Nothing => None,
            };
            if push.is_some() {
                return push;
            }
        }
        None
    }

    /// What the client must be told of one type to have what is offered: at most `max` names, and nothing while an
    /// answer is awaited. Without regard to other types.
    pub fn changes(&mut self, type_url: &str, offer: &Offer, max: usize) -> Option<Push> {
        let (type_url, _) = self.types.get_key_value(type_url)?;
        let type_url = Arc::clone(type_url);
        let subscription = self.types.get_mut(&type_url)?;
        if subscription.in_flight.is_some() {
            return None;
        }
        let next = subscription.next(&offer.view, offer.hold, max, &self.deltas);
        if next.is_empty() && !subscription.owed {
            return None;
        }
        self.nonce += 1;
        subscription.owed = false;
        subscription.in_flight = Some(self.nonce);
        let more = matches!(next, Next::Own { more: true, .. });
        let (updated, removed, body) = match next {
            Next::Shared(delta) => (delta.updated, delta.removed, delta.body()),
            Next::Own { batch, .. } => (batch.updated.len(), batch.removed.len(), batch.encode()),
        };
        Some(Push {
            type_url,
            nonce: self.nonce,
            updated,
            removed,
            more,
            known_as_of: Arc::clone(&offer.known_as_of),
            body,
        })
    }

    /// The types that the client subscribed to.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(|type_url| &**type_url)
    }

    /// What the client said that it was told when it was last told all of a type, maybe by another controller.
    pub fn known_as_of(&self, type_url: &str) -> Option<&str> {
        self.types.get(type_url)?.known_as_of.as_deref()
    }

    /// Whether the client came with resources of a type.
    pub fn resumed(&self, type_url: &str) -> bool {
        self.types
            .get(type_url)
            .is_some_and(|subscription| subscription.resumed)
    }

    /// True when the client was told all that is offered, and answered.
    pub fn settled(&self, type_url: &str, offer: &Offer) -> bool {
        self.types.get(type_url).is_some_and(|subscription| {
            subscription.in_flight.is_none()
                && !subscription.owed
                && !subscription.holds()
                && subscription
                    .clone()
                    .next(&offer.view, offer.hold, 1, &Deltas::new())
                    .is_empty()
        })
    }
}

// === impl Limits ===

impl Limits {
    fn check(&self, request: &DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        let DeltaDiscoveryRequest {
            type_url,
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: versions,
            known_as_of,
            ..
        } = request;
        let names = subscribe.iter().chain(unsubscribe).chain(versions.keys());
        let longest = names.map(String::len).max().unwrap_or(0);
        if type_url.is_empty() {
            Err(ProtocolError::NoType)
        } else if type_url.len() > MAX_TYPE {
            Err(ProtocolError::LongType(type_url.len()))
        } else if longest > MAX_NAME {
            Err(ProtocolError::LongName(longest))
        } else if subscribe.len().max(unsubscribe.len()) > self.names {
            Err(ProtocolError::TooManyNames(self.names))
        } else if versions.len() > self.versions {
            Err(ProtocolError::TooManyVersions(
                versions.len(),
                self.versions,
            ))
        } else if known_as_of.len() > MAX_TOKEN {
            Err(ProtocolError::LongToken(known_as_of.len()))
        } else {
            Ok(())
        }
    }
}
