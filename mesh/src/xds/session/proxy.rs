//! The proxy's half: what it asks for, what it has, and its answer to each response.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{INVALID_ARGUMENT, MAX_TOKEN, MORE_FOLLOWS, WILDCARD};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status,
};
use crate::xds::{Rejected, Update, Version};

/// What a proxy knows across its streams: for each type, the version of every resource that it took.
#[derive(Debug)]
pub struct ProxySession {
    types: Vec<TypeState>,
}

/// What goes back for one response.
#[derive(Debug)]
pub struct Reply {
    /// The ACK or NACK.
    pub request: DeltaDiscoveryRequest,
    /// What was refused, by name; `None`: all was taken.
    pub refused: Option<Rejected>,
}

/// One type.
#[derive(Debug)]
struct TypeState {
    type_url: &'static str,
    acked: AckedVersions,
    /// Names asked for beyond what everybody of our sort is told.
    names: BTreeSet<Arc<str>>,
    /// How far the last response went that said so: shown to the next controller.
    known_as_of: String,
    /// Told everything at least once.
    answered: bool,
}

/// The version of every resource that was taken. There may be millions, so ours are kept as numbers.
#[derive(Debug, Default)]
struct AckedVersions {
    ours: HashMap<Box<str>, Version>,
    /// As other control planes write them.
    others: HashMap<Box<str>, Box<str>>,
}

// === impl ProxySession ===

impl ProxySession {
    /// Subscribes to everything of these types that the controller shows.
    pub fn new(types: impl IntoIterator<Item = &'static str>) -> Self {
        let state = |type_url| TypeState {
            type_url,
            acked: AckedVersions::default(),
            names: BTreeSet::new(),
            known_as_of: String::new(),
            answered: false,
        };
        Self {
            types: types.into_iter().map(state).collect(),
        }
    }

    /// The first requests of a new stream, one per type: what is already here is not sent again.
    pub fn open(&self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        let request = |(at, state): (usize, &TypeState)| DeltaDiscoveryRequest {
            node: (at == 0).then(|| node.clone()),
            type_url: state.type_url.to_owned(),
            resource_names_subscribe: state.subscriptions(),
            initial_resource_versions: state.acked.to_wire(),
            known_as_of: state.known_as_of.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.types.iter().enumerate().map(request).collect()
    }

    /// Asks for exactly these names of a type, beyond what everybody of our sort is told. Nothing where none is new or gone.
    pub fn ask(
        &mut self,
        type_url: &str,
        names: impl IntoIterator<Item = Arc<str>>,
    ) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.iter_mut().find(|s| s.type_url == type_url)?;
        let names: BTreeSet<Arc<str>> = names.into_iter().collect();
        let text = |name: &Arc<str>| name.to_string();
        let subscribe: Vec<String> = names.difference(&state.names).map(text).collect();
        let unsubscribe: Vec<String> = state.names.difference(&names).map(text).collect();
        state.names = names;
        let any = !subscribe.is_empty() || !unsubscribe.is_empty();
        any.then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Has `apply` take the response in, and says what goes back.
    ///
    /// `apply` takes an update whole or names what it refuses; then it is asked once more for the rest.
    pub fn on_response(
        &mut self,
        response: DeltaDiscoveryResponse,
        mut apply: impl FnMut(&Update) -> Result<(), Rejected>,
    ) -> Reply {
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let refused = match self
            .types
            .iter_mut()
            .find(|state| state.type_url == type_url)
        {
            Some(state) => state.take(response, &mut apply),
            None => Some(Rejected::one(&type_url, "this type was not asked for")),
        };
        let error_detail = refused.as_ref().map(|refused| Status {
            code: INVALID_ARGUMENT,
            message: refused.to_string(),
            details: Vec::new(),
        });
        let request = DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        Reply { request, refused }
    }

    /// True once every type has been told whole.
    pub fn synced(&self) -> bool {
        self.types.iter().all(|state| state.answered)
    }

    /// How many resources of a type are here.
    pub fn len(&self, type_url: &str) -> usize {
        self.types
            .iter()
            .find(|state| state.type_url == type_url)
            .map_or(0, |state| state.acked.len())
    }
}

// === impl TypeState ===

impl TypeState {
    /// No names mean everything, which must be said as soon as there are names.
    fn subscriptions(&self) -> Vec<String> {
        let names = self.names.iter().map(ToString::to_string);
        match self.names.is_empty() {
            true => Vec::new(),
            false => std::iter::once(WILDCARD.to_owned()).chain(names).collect(),
        }
    }

    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: &mut impl FnMut(&Update) -> Result<(), Rejected>,
    ) -> Option<Rejected> {
        self.advance(response.system_version_info, response.known_as_of);
        let removed = response.removed_resources;
        let mut refused = Vec::new();
        let mut versions = HashMap::new();
        let mut update = Update {
            type_url: self.type_url,
            updated: Vec::new(),
            removed,
        };
        let gone: HashSet<&String> = update.removed.iter().collect();
        for resource in response.resources {
            let name = resource.name.clone();
            let verdict = if versions.contains_key(&name) || gone.contains(&name) {
                Err("it appears twice in one message".to_owned())
            } else {
                open(self.type_url, &resource)
            };
            match verdict {
                Ok(bytes) => {
                    versions.insert(name.clone(), resource.version);
                    update.updated.push((name, bytes));
                }
                Err(reason) => refused.push((name, reason)),
            }
        }
        drop(gone);
        if let Err(rejected) = apply(&update) {
            let bad: HashSet<&String> = rejected.resources.iter().map(|(name, _)| name).collect();
            update.updated.retain(|(name, _)| !bad.contains(name));
            // Still refused without what was named: then nothing of it can be taken.
            let rest = apply(&update);
            refused.extend(rejected.resources);
            if let Err(rest) = rest {
                refused.extend(rest.resources);
                return Some(Rejected { resources: refused });
            }
        }
        for name in &update.removed {
            self.acked.remove(name);
        }
        for (name, _) in update.updated {
            if let Some(version) = versions.remove(&name) {
                self.acked.insert(name, version);
            }
        }
        (!refused.is_empty()).then_some(Rejected { resources: refused })
    }

    /// Takes in how far a response goes.
    fn advance(&mut self, info: String, known_as_of: String) {
        let known = match info == MORE_FOLLOWS {
            true => known_as_of,
            false => {
                self.answered = true;
                info
            }
        };
        // A controller that may know less than we do says nothing.
        if !known.is_empty() && known.len() <= MAX_TOKEN {
            self.known_as_of = known;
        }
    }
}

// === impl AckedVersions ===

impl AckedVersions {
    fn insert(&mut self, name: String, version: String) {
        let name = name.into_boxed_str();
        match Version::parse(&version) {
            Some(version) => {
                self.others.remove(&name);
                self.ours.insert(name, version);
            }
            None => {
                self.ours.remove(&name);
                self.others.insert(name, version.into_boxed_str());
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if self.ours.remove(name).is_none() {
            self.others.remove(name);
        }
    }

    fn len(&self) -> usize {
        self.ours.len() + self.others.len()
    }

    fn to_wire(&self) -> HashMap<String, String> {
        let ours = self.ours.iter();
        let others = self.others.iter();
        ours.map(|(name, version)| (name.to_string(), version.to_string()))
            .chain(others.map(|(name, version)| (name.to_string(), version.to_string())))
            .collect()
    }
}

// === free ===

/// The resource's own bytes, out of the `Any` around them.
fn open(type_url: &str, resource: &Resource) -> Result<Bytes, String> {
    if resource.resource.is_empty() {
        return Err("it has no content".to_owned());
    }
    let any = prost_types::Any::decode(resource.resource.clone())
        .map_err(|error| format!("it cannot be decoded: {error}"))?;
    if any.type_url != type_url {
        return Err(format!("it is a {}, not a {type_url}", any.type_url));
    }
    Ok(any.value.into())
}
