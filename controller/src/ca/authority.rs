//! What signs certificates, and the roots that everybody may know.
//!
//! Several roots may be published while one key signs: a root is trusted everywhere before it signs, and for as long as
//! something that it signed lives. Both may become others while the process runs (`store.rs` says when).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor as verify_chain;
use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use tokio::sync::watch;

use super::authorize::Permit;
use super::issue::{self, IssueError, Leaf, Signer};

pub(super) const CERTIFICATE: &str = "ca-cert.pem";
pub(super) const KEY: &str = "ca-key.pem";
pub(super) const ROOTS: &str = "root-cert.pem";
/// Ten years: replacing a root is a deliberate act.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Signs.
pub struct Authority {
    /// What it signs with.
    key: ArcSwap<SigningKey>,
    /// The roots, said anew with each key.
    roots: watch::Sender<String>,
}

/// A key with what is above it.
struct SigningKey {
    signer: Signer,
    /// What leads from a leaf up to a root, roots last.
    chain: Vec<String>,
    /// The certificate of the key, PEM.
    certificate: String,
}

/// What a request got.
#[derive(Debug)]
pub struct Signed {
    /// The leaf, what is above it, and last the roots; each PEM.
    pub chain: Vec<String>,
    /// The leaf's number, hexadecimal.
    pub serial: String,
    /// The leaf's end.
    pub not_after: SystemTime,
}

/// A certificate with its key, for our own server.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The leaf and what is above it, without the roots.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The leaf's end.
    pub not_after: SystemTime,
}

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A part is missing.
    #[error("it has no {0}")]
    Incomplete(&'static str),
    /// Nobody could accept what it signs.
    #[error("what {CERTIFICATE} signs leads up to no root in {ROOTS}")]
    Rootless,
    /// A part is something else.
    #[error("{0}")]
    Unreadable(String),
    /// Our own failure.
    #[error("a new key cannot be made: {0}")]
    Making(#[from] rcgen::Error),
}

/// PEM texts by name, as they are kept.
pub(super) type Parts = BTreeMap<String, String>;

// === impl Authority ===

impl Authority {
    /// A key of its own that is kept nowhere: for tests.
    pub fn ephemeral(trust_domain: &str) -> Result<Self, AuthorityError> {
        Self::read(&make(trust_domain, SystemTime::now())?)
    }

    /// From what is kept.
    pub(super) fn read(parts: &Parts) -> Result<Self, AuthorityError> {
        let part = |name: &'static str| parts.get(name).ok_or(AuthorityError::Incomplete(name));
        let (certificate, key) = (part(CERTIFICATE)?, part(KEY)?);
        let roots = parts.get(ROOTS).unwrap_or(certificate);
        let unreadable = |what: &str, error: rcgen::Error| {
            AuthorityError::Unreadable(format!("{what}: {error}"))
        };
        let key = KeyPair::from_pem(key).map_err(|error| unreadable(KEY, error))?;
        let public = key.public_key_raw().to_vec();
        let issuer = Issuer::from_ca_cert_pem(certificate, key)
            .map_err(|error| unreadable(CERTIFICATE, error))?;
        if !certifies(certificate, &public) {
            return Err(AuthorityError::Unreadable(format!(
                "{KEY} is not the key of {CERTIFICATE}"
            )));
        }
        let not_after = ends(certificate)
            .ok_or_else(|| AuthorityError::Unreadable(format!("{CERTIFICATE} has no end")))?;
        // A root that signs leaves itself is not sent twice.
        let above = if certificate.trim() == roots.trim() {
            vec![]
        } else {
            vec![certificate.clone()]
        };
        let chain = above.into_iter().chain([roots.clone()]).collect();
        let key = SigningKey {
            signer: Signer { issuer, not_after },
            chain,
            certificate: certificate.clone(),
        };
        let authority = Self {
            key: ArcSwap::from_pointee(key),
            roots: watch::Sender::new(roots.clone()),
        };
        let usable = authority.is_trusted_by(roots);
        usable.then_some(authority).ok_or(AuthorityError::Rootless)
    }

    /// The roots that everybody may know, PEM.
    pub fn roots(&self) -> String {
        self.roots.borrow().clone()
    }

    /// The same, as they become others.
    pub fn watch_roots(&self) -> watch::Receiver<String> {
        self.roots.subscribe()
    }

    /// When it can sign no more.
    pub fn not_after(&self) -> SystemTime {
        self.key.load().signer.not_after
    }

    /// Whether it signs with the same key, and publishes the same roots.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.key.load().certificate == other.key.load().certificate
            && *self.roots.borrow() == *other.roots.borrow()
    }

    /// From now on signs with the other's key.
    pub(crate) fn take_over(&self, other: &Self) {
        self.key.store(other.key.load_full());
        self.roots.send_replace(other.roots());
    }

    /// Whether somebody with these roots accepts what it signs: a certificate of nobody is signed and verified. (A key
    /// whose life is over signs nothing, and that is said where it is asked to.)
    pub(super) fn is_trusted_by(&self, roots: &str) -> bool {
        match self.server(&[]) {
            Ok(trial) => leads_up(&trial.chain, roots),
            Err(IssueError::IssuerExpired(_)) => true,
            Err(error) => {
                tracing::error!(%error, "the signing key signs nothing");
                false
            }
        }
    }

    /// Signs what is permitted.
    pub fn sign(&self, csr: &str, permit: &Permit, life: Duration) -> Result<Signed, IssueError> {
        let by = self.key.load();
        let Leaf {
            pem,
            serial,
            not_after,
        } = issue::issue(csr, permit, life, &by.signer, SystemTime::now())?;
        let chain = std::iter::once(pem).chain(by.chain.iter().cloned());
        Ok(Signed {
            chain: chain.collect(),
            serial,
            not_after,
        })
    }

    /// A certificate with its key for a server with these names.
    pub fn server(&self, names: &[String]) -> Result<ServerCertificate, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let by = self.key.load();
        let (leaf, not_after) = issue::server(names, &key, &by.signer, SystemTime::now())?;
        let above = by.chain.iter().take(by.chain.len() - 1);
        let chain = std::iter::once(leaf.der().clone()).chain(above.filter_map(|pem| der(pem)));
        Ok(ServerCertificate {
            chain: chain.collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_after,
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A new root with its key.
pub(super) fn make(trust_domain: &str, now: SystemTime) -> Result<Parts, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, "ambit root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = issue::date(now - Duration::from_secs(60 * 60));
    params.not_after = issue::date(now + ROOT_LIFETIME);
    params.serial_number =
        Some(issue::serial().map_err(|error| AuthorityError::Unreadable(error.to_string()))?);
    let certificate = params.self_signed(&key)?.pem();
    Ok(BTreeMap::from([
        (CERTIFICATE.to_owned(), certificate.clone()),
        (ROOTS.to_owned(), certificate),
        (KEY.to_owned(), key.serialize_pem()),
    ]))
}

fn der(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// Whether the chain leads up to one of these roots.
fn leads_up(chain: &[CertificateDer<'static>], roots: &str) -> bool {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(roots.as_bytes()).flatten());
    let Some((leaf, above)) = chain.split_first() else {
        return false;
    };
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    ParsedCertificate::try_from(leaf)
        .and_then(|leaf| verify_chain(&leaf, &store, above, UnixTime::now(), algorithms.all))
        .is_ok()
}

/// Whether the certificate is one of this public key.
fn certifies(pem: &str, key: &[u8]) -> bool {
    let Some(der) = der(pem) else { return false };
    x509_parser::parse_x509_certificate(&der)
        .is_ok_and(|(_, certificate)| &*certificate.public_key().subject_public_key.data == key)
}

/// The end of the certificate's life.
fn ends(pem: &str) -> Option<SystemTime> {
    let der = der(pem)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
