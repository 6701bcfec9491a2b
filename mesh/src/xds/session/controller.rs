//! The controller's half: what one client asked for, what it has been told, and what it must be told next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{MORE, WILDCARD};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::xds::{Encoded, Resources};

/// Types that one stream may subscribe to. A proxy of ours asks for three.
const MAX_TYPES: usize = 16;
/// Names that one stream may subscribe to one by one, for each type.
const MAX_NAMES: usize = 65_536;
/// Bytes of a name.
const MAX_NAME: usize = 1024;
/// Bytes of resources after which a response is closed and another begun: far below what any client decodes.
const MAX_MESSAGE: usize = 8 << 20;

/// One stream's state. It holds no copy of a resource, only pointers into the snapshots it has sent.
#[derive(Debug, Default)]
pub struct ControllerSession {
    types: BTreeMap<String, Subscription>,
    nonce: u64,
}

/// What a request meant. In every case but `Nothing`, [`ControllerSession::changes`] of the request's type may have something to say.
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
    /// Too many types.
    #[error("more than {MAX_TYPES} types on one stream")]
    TooManyTypes,
    /// Too many names.
    #[error("more than {MAX_NAMES} names of {0}")]
    TooManyNames(String),
    /// A name of more than a thousand bytes.
    #[error("a resource name of {0} bytes")]
    LongName(usize),
}

/// One type of one stream.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client has, or was sent and refused.
    told: Resources,
    /// The nonce that must come back before anything else of this type is sent.
    in_flight: Option<u64>,
    /// An answer is due even if there is nothing in it.
    owed: bool,
    /// Names just asked for: answered even if they do not exist.
    asked: BTreeSet<Arc<str>>,
}

/// What goes into one response.
#[derive(Default)]
struct Batch {
    updated: Vec<(Arc<str>, Encoded)>,
    removed: Vec<Arc<str>>,
    bytes: usize,
}

// === impl ControllerSession ===

impl ControllerSession {
    /// A stream on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one request: a subscription, an ACK or a NACK. Its `reports` and `node` are the caller's to read.
    pub fn on_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Action, ProtocolError> {
        let type_url = request.type_url.as_str();
        let changes_names = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        if !request.reports.is_empty() && !changes_names && request.response_nonce.is_empty() {
            return Ok(Action::Nothing);
        }
        if type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        check_names(request)?;
        let Some(subscription) = self.types.get_mut(type_url) else {
            if self.types.len() == MAX_TYPES {
                return Err(ProtocolError::TooManyTypes);
            }
            self.types
                .insert(type_url.to_owned(), Subscription::first(request));
            return Ok(Action::Subscribed);
        };
        subscription.change(request);
        if subscription.names.len() > MAX_NAMES {
            return Err(ProtocolError::TooManyNames(type_url.to_owned()));
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

    /// What the client must be told to have what `now` has: at most `max` names, and nothing while an answer is awaited.
    ///
    /// Call it when `now` changes and after each request of that type, until it returns `None`.
    pub fn changes(
        &mut self,
        type_url: &str,
        now: &Resources,
        max: usize,
    ) -> Option<DeltaDiscoveryResponse> {
        let subscription = self.types.get_mut(type_url)?;
        if subscription.in_flight.is_some() {
            return None;
        }
        let (batch, more) = subscription.next(now, max.max(1));
        if batch.is_empty() && !subscription.owed {
            return None;
        }
        self.nonce += 1;
        subscription.owed = false;
        subscription.in_flight = Some(self.nonce);
        Some(DeltaDiscoveryResponse {
            system_version_info: if more { MORE.to_owned() } else { String::new() },
            type_url: type_url.to_owned(),
            nonce: self.nonce.to_string(),
            resources: batch.updated.into_iter().map(resource).collect(),
            removed_resources: batch.removed.iter().map(ToString::to_string).collect(),
        })
    }

    /// The types that the client subscribed to, also those that nobody serves: those are answered with no resources.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(String::as_str)
    }

    /// True when the client was told all that `now` has, and answered.
    pub fn settled(&self, type_url: &str, now: &Resources) -> bool {
        self.types.get(type_url).is_some_and(|subscription| {
            subscription.in_flight.is_none()
                && !subscription.owed
                && subscription.peek(now, 1).is_empty()
        })
    }
}

// === impl Subscription ===

impl Subscription {
    /// The first request of a type: no names mean all of them, and what the client still has is not sent again.
    fn first(request: &DeltaDiscoveryRequest) -> Self {
        let told = request
            .initial_resource_versions
            .iter()
            .map(|(name, version)| (Arc::from(name.as_str()), Encoded::known(version)))
            .collect();
        let mut subscription = Self {
            wildcard: request.resource_names_subscribe.is_empty()
                && request.resource_names_unsubscribe.is_empty(),
            told,
            owed: true,
            ..Self::default()
        };
        for name in &request.resource_names_subscribe {
            subscription.subscribe(name);
        }
        for name in &request.resource_names_unsubscribe {
            subscription.unsubscribe(name);
        }
        subscription
    }

    /// A later request: a name asked for again is sent again.
    fn change(&mut self, request: &DeltaDiscoveryRequest) {
        for name in &request.resource_names_subscribe {
            self.told.remove(name.as_str());
            self.subscribe(name);
        }
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(name);
        }
    }

    fn subscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = true;
            self.owed = true;
        } else {
            let name: Arc<str> = name.into();
            self.asked.insert(Arc::clone(&name));
            self.names.insert(name);
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            let names = &self.names;
            self.told = self
                .told
                .iter()
                .filter(|(name, _)| names.contains(*name))
                .map(|(name, encoded)| (Arc::clone(name), encoded.clone()))
                .collect();
        } else {
            self.names.remove(name);
            self.asked.remove(name);
            if !self.wildcard {
                self.told.remove(name);
            }
        }
    }

    /// Decides the next response, and counts it as told.
    fn next(&mut self, now: &Resources, max: usize) -> (Batch, bool) {
        let batch = self.peek(now, max);
        let more = batch.is_full(max);
        for name in &batch.removed {
            self.told.remove(name);
            self.asked.remove(name);
        }
        for (name, encoded) in &batch.updated {
            self.told.insert(Arc::clone(name), encoded.clone());
            self.asked.remove(name);
        }
        if !more {
            self.asked.clear();
            if self.wildcard {
                // Equal by now; sharing its structure makes the next comparison cost the differences only.
                self.told = now.clone();
            }
        }
        (batch, more)
    }

    fn peek(&self, now: &Resources, max: usize) -> Batch {
        let mut batch = Batch::default();
        let named = if self.wildcard {
            &self.asked
        } else {
            &self.names
        };
        for name in named {
            if batch.is_full(max) {
                return batch;
            }
            match (self.told.get(name), now.get(name)) {
                (told, Some(new)) if told != Some(new) => batch.update(name, new),
                (Some(_), None) => batch.removed.push(Arc::clone(name)),
                (None, None) if self.asked.contains(name) => batch.removed.push(Arc::clone(name)),
                _ => {}
            }
        }
        if self.wildcard {
            for difference in self.told.diff(now) {
                if batch.is_full(max) {
                    return batch;
                }
                batch.take(&difference, &self.asked);
            }
        }
        batch
    }
}

// === impl Batch ===

impl Batch {
    fn take(
        &mut self,
        difference: &imbl::ordmap::DiffItem<'_, '_, Arc<str>, Encoded>,
        already: &BTreeSet<Arc<str>>,
    ) {
        use imbl::ordmap::DiffItem::{Add, Remove, Update};
        match difference {
            Add(name, new)
            | Update {
                new: (name, new), ..
            } => {
                if !already.contains(*name) {
                    self.update(name, new);
                }
            }
            Remove(name, _) => {
                if !already.contains(*name) {
                    self.removed.push(Arc::clone(name));
                }
            }
        }
    }

    fn update(&mut self, name: &Arc<str>, new: &Encoded) {
        self.bytes += name.len() + new.version.len() + new.any.len();
        self.updated.push((Arc::clone(name), new.clone()));
    }

    fn is_full(&self, max: usize) -> bool {
        self.updated.len() + self.removed.len() >= max || self.bytes >= MAX_MESSAGE
    }

    fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.removed.is_empty()
    }
}

// === free ===

fn check_names(request: &DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
    let names = request
        .resource_names_subscribe
        .iter()
        .chain(&request.resource_names_unsubscribe);
    match names
        .chain(request.initial_resource_versions.keys())
        .find(|name| name.len() > MAX_NAME)
    {
        Some(name) => Err(ProtocolError::LongName(name.len())),
        None if request.resource_names_subscribe.len() > MAX_NAMES => {
            Err(ProtocolError::TooManyNames(request.type_url.clone()))
        }
        None => Ok(()),
    }
}

fn resource((name, encoded): (Arc<str>, Encoded)) -> Resource {
    Resource {
        version: encoded.version.to_string(),
        resource: encoded.any,
        name: name.to_string(),
        aliases: Vec::new(),
    }
}
