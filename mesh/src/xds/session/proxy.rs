//! The proxy's half: what it asks for, what it has, and its answer to each response.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::Message;

use super::{INVALID_ARGUMENT, MORE};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status,
};
use crate::xds::{Rejected, Update};

/// What a proxy knows across its streams: for each type, the version of every resource that it took.
#[derive(Debug)]
pub struct ProxySession {
    types: Vec<Known>,
}

/// What goes back for one response.
#[derive(Debug)]
pub struct Reply {
    /// The ACK or NACK.
    pub request: DeltaDiscoveryRequest,
    /// What was refused, by name; `None`: all was taken.
    pub refused: Option<Rejected>,
}

#[derive(Debug)]
struct Known {
    type_url: &'static str,
    versions: HashMap<String, String>,
    /// Told everything at least once.
    answered: bool,
}

// === impl ProxySession ===

impl ProxySession {
    /// Subscribes to everything of these types that the controller shows.
    pub fn new(types: impl IntoIterator<Item = &'static str>) -> Self {
        let known = |type_url| Known {
            type_url,
            versions: HashMap::new(),
            answered: false,
        };
        Self {
            types: types.into_iter().map(known).collect(),
        }
    }

    /// The first requests of a new stream, one per type: what is already here is not sent again.
    pub fn open(&self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        let request = |(at, known): (usize, &Known)| DeltaDiscoveryRequest {
            node: (at == 0).then(|| node.clone()),
            type_url: known.type_url.to_owned(),
            initial_resource_versions: known.versions.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.types.iter().enumerate().map(request).collect()
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
            .find(|known| known.type_url == type_url)
        {
            Some(known) => known.take(response, &mut apply),
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
        self.types.iter().all(|known| known.answered)
    }

    /// How many resources of a type are here.
    pub fn len(&self, type_url: &str) -> usize {
        self.types
            .iter()
            .find(|known| known.type_url == type_url)
            .map_or(0, |k| k.versions.len())
    }
}

// === impl Known ===

impl Known {
    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: &mut impl FnMut(&Update) -> Result<(), Rejected>,
    ) -> Option<Rejected> {
        self.answered |= response.system_version_info != MORE;
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
            self.versions.remove(name);
        }
        for (name, _) in update.updated {
            if let Some(version) = versions.remove(&name) {
                self.versions.insert(name, version);
            }
        }
        (!refused.is_empty()).then_some(Rejected { resources: refused })
    }
}

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
