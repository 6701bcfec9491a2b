//! Where the signing key is kept: a Secret, made when there is none, and looked at for as long as the process runs.
//!
//! Guarantees:
//! * Of several controllers that start at once, one makes the key and all use it.
//! * While roots of ours are published anywhere, no new root is made: every proxy that runs trusts the old one, and would
//!   refuse whatever a new one signs.
//! * Nothing is signed by a key that the published roots do not lead to, whoever put it there. A replica that starts waits
//!   until they do; one that runs goes on with the key that it has.
//! * Two replicas differ for [`KEY_POLL_INTERVAL`] at most, and by two keys that are both trusted.
//!
//! Which roots are published, our own namespace says: nobody else writes there. Only where it says nothing (it was made anew)
//! others' are asked, and there whoever may write ConfigMaps can say that he has roots of ours. That holds up a first
//! install, whose log names the namespace, and never a mesh that runs.
//!
//! A legitimate change of the key is three edits of the Secret (manifests/README.md, "Another signing key").

use std::convert::Infallible;
use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};

use super::authority::{self, Authority, AuthorityError, Parts, ROOTS};
use super::roots::{CONFIG_MAP, LABEL};

/// The Secret of the signing key.
pub const SECRET: &str = "ambit-ca";
/// Between two attempts, at first and at most.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How often a replica that runs looks whether it still has the key that is kept.
const KEY_POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Namespaces with roots that are asked for, beside our own: one says enough, a few help to find them.
const MOST_PUBLISHED: u32 = 8;
/// Under which the Event is reported.
const REPORTER: &str = "ambit.mesh/controller";

/// The signing key's place.
#[derive(Debug, Clone)]
pub struct Store {
    namespace: String,
    secrets: Api<Secret>,
    roots: Api<ConfigMap>,
    everywhere: Api<ConfigMap>,
    events: Api<Event>,
    trust_domain: String,
    /// The controller's pod.
    reporter: String,
}

/// The ConfigMaps in which roots are published: the one of our own namespace or, without it, some of others'.
#[derive(Debug)]
pub struct Published {
    /// Those that were found.
    maps: Vec<ConfigMap>,
    /// There are others.
    more: bool,
}

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is kept is not a signing key.
    #[error("Secret {SECRET}: {0}")]
    Unusable(#[from] AuthorityError),
    /// The API server does not let us, or has no answer.
    #[error("Secret {SECRET} cannot be read or made: {0}")]
    Kubernetes(#[source] Box<kube::Error>),
    /// Roots are published, and their key is gone.
    #[error(
        "Secret {SECRET} is missing, but the roots that belong to it are published in {0}. Proxies that run trust these \
         roots, so no new one is made. Restore the Secret from a backup. If there is none, scale the controller to 0, delete \
         ConfigMap {CONFIG_MAP} in every namespace, scale it up and restart every ztunnel and waypoint: until then they \
         refuse one another"
    )]
    KeyLost(Published),
    /// Roots are published, and the key is another's.
    #[error(
        "Secret {SECRET} holds a key that signs under none of the roots that are published in {0}. Proxies that run would \
         refuse what it signs, so nothing is signed with it. Put the former Secret back; to change the key, publish the \
         new root beside the old one first (manifests/README.md, \"Another signing key\")"
    )]
    Untrusted(Published),
}

/// What one look at the Secret of a mesh that runs found.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Same,
    TakenOver,
}

// === impl Store ===

impl Store {
    /// In this namespace.
    pub fn new(client: Client, namespace: &str, trust_domain: &str, reporter: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secrets: Api::namespaced(client.clone(), namespace),
            roots: Api::namespaced(client.clone(), namespace),
            everywhere: Api::all(client.clone()),
            events: Api::namespaced(client, namespace),
            trust_domain: trust_domain.to_owned(),
            reporter: reporter.to_owned(),
        }
    }

    /// The signing key; a controller without one has nothing to do but try again, and to say why.
    pub async fn wait(&self) -> Authority {
        let mut delay = FIRST_RETRY;
        loop {
            match self.load().await {
                Ok(authority) => return authority,
                Err(error) => {
                    tracing::error!(?delay, "no signing key, trying again: {error}");
                    self.tell(&error).await;
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LAST_RETRY);
        }
    }

    /// Goes on looking at the Secret, for as long as this replica signs.
    pub async fn keep(&self, authority: &Authority) -> Infallible {
        loop {
            tokio::time::sleep(KEY_POLL_INTERVAL).await;
            match self.look(authority).await {
                Ok(Look::Same) => {}
                Ok(Look::TakenOver) => {
                    tracing::info!(secret = SECRET, "another signing key was taken over");
                }
                Err(error) => {
                    tracing::error!("this replica goes on with the key that it has: {error}");
                    self.tell(&error).await;
                }
            }
        }
    }

    async fn look(&self, authority: &Authority) -> Result<Look, StoreError> {
        let Some(kept) = self.read().await? else {
            // We sign, so they were published.
            return match self.published().await? {
                Some(published) => Err(StoreError::KeyLost(published)),
                None => Ok(Look::Same),
            };
        };
        if kept.same_as(authority) {
            return Ok(Look::Same);
        }
        authority.take_over(&self.trusted(kept).await?);
        Ok(Look::TakenOver)
    }

    /// Loads the key; where there never was one, makes it.
    pub async fn load(&self) -> Result<Authority, StoreError> {
        if let Some(kept) = self.read().await? {
            return self.trusted(kept).await;
        }
        if let Some(published) = self.published().await? {
            // Another controller may have made both since.
            return match self.read().await? {
                Some(kept) => self.trusted(kept).await,
                None => Err(StoreError::KeyLost(published)),
            };
        }
        let made = authority::make(&self.trust_domain, SystemTime::now())?;
        match self
            .secrets
            .create(&PostParams::default(), &secret(&made))
            .await
        {
            Ok(_) => {
                tracing::info!(secret = SECRET, "a new root was created");
                Ok(Authority::read(&made)?)
            }
            Err(error) if is_conflict(&error) => {
                let theirs = self.secrets.get(SECRET).await?;
                self.trusted(Authority::read(&parts(&theirs)?)?).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a key sign, unless roots are published and it signs under none of them.
    async fn trusted(&self, kept: Authority) -> Result<Authority, StoreError> {
        match self.published().await? {
            Some(published) if !published.trust(&kept) => Err(StoreError::Untrusted(published)),
            _ => Ok(kept),
        }
    }

    /// Where roots of ours are.
    async fn published(&self) -> Result<Option<Published>, StoreError> {
        if let Some(own) = self.roots.get_opt(CONFIG_MAP).await? {
            let maps = vec![own];
            return Ok(Some(Published { maps, more: false }));
        }
        let ours = ListParams::default()
            .fields(&format!("metadata.name={CONFIG_MAP}"))
            .labels(&format!("{}={}", LABEL.0, LABEL.1))
            .limit(MOST_PUBLISHED);
        let found = self.everywhere.list(&ours).await?;
        let next = found.metadata.continue_.as_deref().unwrap_or_default();
        let more = !next.is_empty();
        let maps = found.items;
        Ok((more || !maps.is_empty()).then_some(Published { maps, more }))
    }

    async fn read(&self) -> Result<Option<Authority>, StoreError> {
        match self.secrets.get_opt(SECRET).await? {
            Some(secret) => Ok(Some(Authority::read(&parts(&secret)?)?)),
            None => Ok(None),
        }
    }

    /// People look at objects before they look at logs.
    async fn tell(&self, error: &StoreError) {
        let (reason, published) = match error {
            StoreError::KeyLost(published) => ("SigningKeyMissing", published),
            StoreError::Untrusted(published) => ("SigningKeyUntrusted", published),
            StoreError::Unusable(_) | StoreError::Kubernetes(_) => return,
        };
        let about = match published.own(&self.namespace) {
            Some(map) => map.object_ref(&()),
            None => self.secret_ref(),
        };
        let event = event(&about, reason, error.to_string(), &self.reporter);
        match self.events.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            // It is told already.
            Err(error) if is_conflict(&error) => {}
            Err(error) => tracing::warn!("no Event about the signing key: {error}"),
        }
    }

    /// Even if there is none: an Event may be about what is missing.
    fn secret_ref(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(SECRET.to_owned()),
            ..Default::default()
        }
    }
}

// === impl Published ===

impl Published {
    /// Whether who has these roots accepts what this key signs. Of several that differ one is enough: we write all alike,
    /// so the others are somebody else's words.
    fn trust(&self, key: &Authority) -> bool {
        let data = self.maps.iter().filter_map(|map| map.data.as_ref());
        let mut roots = data.filter_map(|data| data.get(ROOTS));
        roots.any(|roots| key.is_trusted_by(roots))
    }

    fn own(&self, namespace: &str) -> Option<&ConfigMap> {
        let own = |map: &&ConfigMap| map.namespace().as_deref() == Some(namespace);
        self.maps.iter().find(own)
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespaces: Vec<_> = self
            .maps
            .iter()
            .filter_map(ResourceExt::namespace)
            .collect();
        let more = if self.more { " and others" } else { "" };
        let plural = if namespaces.len() > 1 { "s" } else { "" };
        let names = namespaces.join(", ");
        write!(
            f,
            "ConfigMap {CONFIG_MAP} of namespace{plural} {names}{more}"
        )
    }
}

// === impl StoreError ===

impl From<kube::Error> for StoreError {
    fn from(error: kube::Error) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn secret(parts: &Parts) -> Secret {
    let data = parts
        .iter()
        .map(|(name, text)| (name.clone(), ByteString(text.clone().into_bytes())));
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..Default::default()
        },
        data: Some(data.collect()),
        type_: Some("Opaque".to_owned()),
        ..Default::default()
    }
}

fn parts(secret: &Secret) -> Result<Parts, AuthorityError> {
    let data = secret.data.iter().flatten();
    data.map(|(name, bytes)| match String::from_utf8(bytes.0.clone()) {
        Ok(text) => Ok((name.clone(), text)),
        Err(_) => Err(AuthorityError::Unreadable(format!("{name} is not text"))),
    })
    .collect()
}

/// One Event for as long as the API server keeps it: its name is always the same.
fn event(about: &ObjectReference, reason: &str, note: String, reporter: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{SECRET}.{}", reason.to_lowercase())),
            namespace: about.namespace.clone(),
            ..Default::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(reporter.to_owned()),
        action: Some("LoadSigningKey".to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(about.clone()),
        note: Some(note),
        type_: Some("Warning".to_owned()),
        ..Default::default()
    }
}
