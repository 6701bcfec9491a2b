//! The current certificate, key and roots of one identity: one writer, many readers, no lock.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};

use super::verify::Leaf;
use super::{PROVIDER, client_config};
use crate::SpiffeId;

/// A certificate chain with its key, and the roots that peers must chain to.
pub struct Identity {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    /// Built once per identity, not per connection.
    pub(crate) client: ClientConfig,
}

/// The one who puts a renewed identity in place.
pub struct CredentialsWriter(Arc<ArcSwap<Identity>>);

/// The current identity, for all who dial and accept in its name.
#[derive(Clone)]
pub struct Credentials(Arc<ArcSwap<Identity>>);

/// Why a chain, key and roots are no identity.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCredentials {
    /// The chain cannot be read, or is empty.
    #[error("the certificate chain cannot be read: {0}")]
    Chain(String),
    /// The leaf names no workload.
    #[error("the certificate has not exactly one SPIFFE ID as its URI names")]
    NoSpiffeId,
    /// The key cannot be read or used.
    #[error("the private key cannot be read: {0}")]
    Key(String),
    /// The key is of another certificate.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The roots cannot be read, or there are none.
    #[error("the root certificates cannot be read: {0}")]
    Roots(String),
}

/// Publishes a first identity.
pub fn credentials(first: Identity) -> (CredentialsWriter, Credentials) {
    let shared = Arc::new(ArcSwap::from_pointee(first));
    (CredentialsWriter(shared.clone()), Credentials(shared))
}

// === impl Identity ===

impl Identity {
    /// Reads an identity, whole or not at all.
    ///
    /// `chain` begins with the leaf, intermediates follow; `roots` may hold several.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Result<Self, InvalidCredentials> {
        let chain = certificates(chain).map_err(InvalidCredentials::Chain)?;
        let leaf = Leaf::read(&chain[0]).map_err(|e| InvalidCredentials::Chain(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| InvalidCredentials::Key(e.to_string()))?;
        let key = PROVIDER
            .key_provider
            .load_private_key(key)
            .map_err(|e| InvalidCredentials::Key(e.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match()
            .map_err(|_| InvalidCredentials::KeyMismatch)?;
        let mut store = RootCertStore::empty();
        for root in certificates(roots).map_err(InvalidCredentials::Roots)? {
            store
                .add(root)
                .map_err(|e| InvalidCredentials::Roots(e.to_string()))?;
        }
        let key = Arc::new(key);
        Ok(Self {
            id: leaf.id.ok_or(InvalidCredentials::NoSpiffeId)?,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: leaf.serial,
            client: client_config(&key).map_err(|e| InvalidCredentials::Key(e.to_string()))?,
            key,
            roots: Arc::new(store),
        })
    }

    /// Whose identity it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// From when the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when the leaf is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The leaf's serial number, in hexadecimal.
    pub fn serial(&self) -> String {
        self.serial.clone()
    }

    /// Refuses to be used after its end.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        if SystemTime::now() < self.not_after {
            return Ok(());
        }
        Err(crate::Error::CredentialsExpired {
            id: self.id.clone(),
            not_after: self.not_after,
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

// === impl CredentialsWriter ===

impl CredentialsWriter {
    /// Puts a renewed identity in place. New handshakes use it at once, and pools open their next
    /// stream on a new connection; streams that run on the old one end in peace.
    pub fn replace(&self, identity: Identity) {
        self.0.store(Arc::new(identity));
    }

    /// The identity as it is now.
    pub fn current(&self) -> Arc<Identity> {
        self.0.load_full()
    }

    /// One more reader.
    pub fn reader(&self) -> Credentials {
        Credentials(self.0.clone())
    }

    /// Whether anybody holds credentials of this writer. Once false it stays so until [`Self::reader`].
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl fmt::Debug for CredentialsWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CredentialsWriter")
            .field(&self.0.load().id)
            .finish()
    }
}

// === impl Credentials ===

impl Credentials {
    /// Whose identity it is.
    pub fn id(&self) -> SpiffeId {
        self.0.load().id.clone()
    }

    /// The identity as it is now.
    pub fn current(&self) -> Arc<Identity> {
        self.0.load_full()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials")
            .field(&self.0.load().id)
            .finish()
    }
}

/// All certificates of a PEM text; at least one.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    if all.is_empty() {
        return Err("there is none".to_owned());
    }
    Ok(all)
}
