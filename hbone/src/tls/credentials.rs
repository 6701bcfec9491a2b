//! The current certificate, key and roots of one identity: one writer, many readers, no lock.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};

use super::chain::Authorities;
use super::revocation::{Revocations, UnknownRevocation};
use super::sessions::Sessions;
use super::standing::{Standing, Standings};
use super::verify::Leaf;
use super::{PROVIDER, client_config};
use crate::{Expect, Peer, SpiffeId};

/// Client configurations kept per identity, one for each set of expected servers: more than one
/// workload talks to. Beyond, one that is forgotten is built again, in some microseconds.
const MAX_CONFIGURATIONS: usize = 256;

/// A certificate chain with its key, and the roots that peers must chain to.
pub struct Identity {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) authorities: Authorities,
    dialling: Dialling,
}

/// What an identity has built to dial with; ends with it, and with its revocations.
#[derive(Default)]
struct Dialling {
    /// Locked for a look-up, once per dial.
    configurations: Mutex<Configurations>,
    sessions: Arc<Sessions>,
}

#[derive(Default)]
struct Configurations {
    built: u64,
    kept: HashMap<Expect, Arc<ClientConfig>>,
}

/// The one who puts a renewed identity in place.
pub struct CredentialsWriter(Arc<Shared>);

/// The current identity, for all who dial and accept in its name.
#[derive(Clone)]
pub struct Credentials(Arc<Shared>);

/// Credentials of somebody who is woken when what they say of revocations changes.
pub(crate) struct Watching {
    credentials: Credentials,
    number: u64,
}

struct Shared {
    identity: ArcSwap<Identity>,
    /// Locked when a connection begins or ends.
    watching: Mutex<Watchers>,
    standings: Arc<Standings>,
}

#[derive(Default)]
struct Watchers {
    next: u64,
    wakers: HashMap<u64, Waker>,
}

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
    /// The revocation lists cannot be read, or there are none.
    #[error("the revocation lists cannot be read: {0}")]
    Revocations(String),
}

/// Publishes a first identity.
pub fn credentials(first: Identity) -> (CredentialsWriter, Credentials) {
    let shared = Arc::new(Shared {
        identity: ArcSwap::from_pointee(first),
        watching: Mutex::default(),
        standings: Arc::default(),
    });
    (CredentialsWriter(shared.clone()), Credentials(shared))
}

// === impl Credentials ===

impl Credentials {
    /// What is the same for all clones, and for no others as long as one is there.
    pub(crate) fn place(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
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
        Ok(Self {
            id: leaf.id.ok_or(InvalidCredentials::NoSpiffeId)?,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: leaf.serial,
            key: Arc::new(key),
            authorities: Authorities::new(store),
            dialling: Dialling::default(),
        })
    }

    /// The same identity, with certificates that its authorities have revoked (one or several lists,
    /// in PEM), whole or not at all. From its [`replace`](CredentialsWriter::replace) on, no peer is
    /// let in with one of them, neither as a client nor as a server.
    pub fn with_revocations(
        self,
        lists: &str,
        unknown: UnknownRevocation,
    ) -> Result<Self, InvalidCredentials> {
        let revocations = Revocations::from_pem(lists, unknown)?;
        Ok(self.informed(Some(revocations)))
    }

    /// The same identity, which judges peers by these revocations from now on.
    pub fn informed(&self, revocations: Option<Revocations>) -> Self {
        Self {
            id: self.id.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            serial: self.serial.clone(),
            key: self.key.clone(),
            authorities: self.authorities.informed(revocations),
            dialling: Dialling::default(),
        }
    }

    /// What peers are judged by, besides the roots.
    pub fn revocations(&self) -> Option<&Revocations> {
        self.authorities.revocations()
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

    /// Whether one of its authorities has revoked a certificate of this chain, leaf first. For
    /// connections that run while [`with_revocations`](Self::with_revocations) brings news.
    pub(crate) fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.authorities.has_revoked(chain)
    }

    /// What to dial these servers with: always the same while it lasts, so that sessions go on.
    pub(crate) fn client_config(
        &self,
        expect: &Expect,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut all = self.dialling.configurations.lock();
        if let Some(kept) = all.kept.get(expect) {
            return Ok(kept.clone());
        }
        if all.kept.len() >= MAX_CONFIGURATIONS
            && let Some(other) = all.kept.keys().next().cloned()
        {
            all.kept.remove(&other);
        }
        all.built += 1;
        let sessions = self.dialling.sessions.store(all.built);
        let config = Arc::new(client_config(self, expect, sessions)?);
        all.kept.insert(expect.clone(), config.clone());
        Ok(config)
    }

    /// How many configurations are kept.
    #[cfg(test)]
    pub(crate) fn configurations(&self) -> usize {
        self.dialling.configurations.lock().kept.len()
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
    /// stream on a new connection; streams that run on the old one end in peace, unless what the new one
    /// says of revocations is news to them.
    pub fn replace(&self, identity: Identity) {
        let (identity, shared) = (Arc::new(identity), &self.0);
        let before = shared.identity.swap(identity.clone());
        if identity.authorities.is_informed_as(&before.authorities) {
            return;
        }
        let wakers: Vec<_> = shared.watching.lock().wakers.values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The identity as it is now.
    pub fn current(&self) -> Arc<Identity> {
        self.0.identity.load_full()
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
            .field(&self.0.identity.load().id)
            .finish()
    }
}

// === impl Credentials ===

impl Credentials {
    /// Whose identity it is.
    pub fn id(&self) -> SpiffeId {
        self.0.identity.load().id.clone()
    }

    /// The identity as it is now.
    pub fn current(&self) -> Arc<Identity> {
        self.0.identity.load_full()
    }
}

impl Credentials {
    /// A peer has just proved itself to this identity with a certificate that runs out then.
    pub(crate) fn standing(&self, peer: &Peer, not_after: SystemTime) -> Standing {
        Standing::of(&self.0.standings, peer, not_after)
    }

    /// Has `waker` woken whenever what is known of revocations has changed.
    pub(crate) fn watch(&self, waker: Waker) -> Watching {
        let mut watching = self.0.watching.lock();
        let number = watching.next;
        watching.next += 1;
        watching.wakers.insert(number, waker);
        Watching {
            credentials: self.clone(),
            number,
        }
    }
}

// === impl Watching ===

impl Watching {
    /// The identity as it is now.
    pub(crate) fn current(&self) -> Arc<Identity> {
        self.credentials.current()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let shared = &self.credentials.0;
        // Dropped when nobody is locked out any more.
        let _waker = shared.watching.lock().wakers.remove(&self.number);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials")
            .field(&self.0.identity.load().id)
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
