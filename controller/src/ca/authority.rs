//! What signs certificates, and the roots that everybody may know.
//!
//! Several roots may be published while one key signs: a root is trusted everywhere before it signs, and for as long as
//! something that it signed lives.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authorize::Permit;
use super::issue::{self, IssueError, Leaf, Signer};

pub(super) const CERTIFICATE: &str = "ca-cert.pem";
pub(super) const KEY: &str = "ca-key.pem";
pub(super) const ROOTS: &str = "root-cert.pem";
/// Ten years: replacing a root is a deliberate act.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Signs.
pub struct Authority {
    signer: Signer,
    /// What leads from a leaf up to a root, roots last.
    chain: Vec<String>,
    roots: String,
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
        Ok(Self {
            signer: Signer { issuer, not_after },
            chain,
            roots: roots.clone(),
        })
    }

    /// The roots that everybody may know, PEM.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// When it can sign no more.
    pub fn not_after(&self) -> SystemTime {
        self.signer.not_after
    }

    /// Signs what is permitted.
    pub fn sign(&self, csr: &str, permit: &Permit, life: Duration) -> Result<Signed, IssueError> {
        let Leaf {
            pem,
            serial,
            not_after,
        } = issue::issue(csr, permit, life, &self.signer, SystemTime::now())?;
        let chain = std::iter::once(pem).chain(self.chain.iter().cloned());
        Ok(Signed {
            chain: chain.collect(),
            serial,
            not_after,
        })
    }

    /// A certificate with its key for a server with these names.
    pub fn server(&self, names: &[String]) -> Result<ServerCertificate, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let (leaf, not_after) = issue::server(names, &key, &self.signer, SystemTime::now())?;
        let above = self.chain.iter().take(self.chain.len() - 1);
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
