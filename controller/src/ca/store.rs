//! Where the signing key is kept: a Secret, made when there is none.
//!
//! Guarantees: of several controllers that start at once, one makes the key and all use it. While roots are published,
//! no new root is made: every proxy that runs trusts the old one, and would refuse whatever a new one signs.
//! Assumptions: the roots' ConfigMap in our own namespace exists from the first key until the mesh is uninstalled.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource};

use super::authority::{self, Authority, AuthorityError, Parts};
use super::roots::CONFIG_MAP;

/// The Secret of the signing key.
pub const SECRET: &str = "ambit-ca";
/// Between two attempts, at first and at most.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Under which the Event is reported.
const REPORTER: &str = "ambit.mesh/controller";

/// The signing key's place.
#[derive(Debug, Clone)]
pub struct Store {
    secrets: Api<Secret>,
    roots: Api<ConfigMap>,
    events: Api<Event>,
    trust_domain: String,
    /// The controller's pod.
    reporter: String,
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
        "Secret {SECRET} is missing, but the roots that belong to it are published in ConfigMap {CONFIG_MAP}. Proxies that \
         run trust these roots, so no new one is made. Restore the Secret from a backup. If there is none, delete \
         ConfigMap {CONFIG_MAP} in this namespace and then restart every ztunnel and waypoint: until then they refuse one another"
    )]
    KeyLost(Box<ConfigMap>),
}

// === impl Store ===

impl Store {
    /// In this namespace.
    pub fn new(client: Client, namespace: &str, trust_domain: &str, reporter: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            roots: Api::namespaced(client.clone(), namespace),
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

    /// Loads the key; where there never was one, makes it.
    pub async fn load(&self) -> Result<Authority, StoreError> {
        if let Some(authority) = self.read().await? {
            return Ok(authority);
        }
        if let Some(roots) = self.roots.get_opt(CONFIG_MAP).await? {
            // Another controller may have made both since.
            let key = self.read().await?;
            return key.ok_or_else(|| StoreError::KeyLost(Box::new(roots)));
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
                Ok(Authority::read(&parts(&theirs)?)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&self) -> Result<Option<Authority>, StoreError> {
        match self.secrets.get_opt(SECRET).await? {
            Some(secret) => Ok(Some(Authority::read(&parts(&secret)?)?)),
            None => Ok(None),
        }
    }

    /// People look at objects before they look at logs.
    async fn tell(&self, error: &StoreError) {
        let StoreError::KeyLost(roots) = error else {
            return;
        };
        let event = event(&roots.object_ref(&()), error.to_string(), &self.reporter);
        match self.events.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            // It is told already.
            Err(error) if is_conflict(&error) => {}
            Err(error) => tracing::warn!("no Event about the lost key: {error}"),
        }
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
fn event(about: &ObjectReference, note: String, reporter: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{CONFIG_MAP}.signing-key-missing")),
            namespace: about.namespace.clone(),
            ..Default::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(reporter.to_owned()),
        action: Some("LoadSigningKey".to_owned()),
        reason: Some("SigningKeyMissing".to_owned()),
        regarding: Some(about.clone()),
        note: Some(note),
        type_: Some("Warning".to_owned()),
        ..Default::default()
    }
}
