//! The signing key: loaded from its Secret, or created there; and the roots that everybody may know.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authorize::Permit;
use super::issue::{self, IssueError};

/// The Secret of the signing key.
pub const SECRET: &str = "ambit-ca";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOTS: &str = "root-cert.pem";
/// Ten years: replacing a root is a deliberate act.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What leads from a leaf up to a root, roots last.
    chain: Vec<String>,
    roots: String,
}

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The Secret lacks a part.
    #[error("Secret {SECRET} has no {0}")]
    Incomplete(&'static str),
    /// A part of the Secret cannot be read.
    #[error("Secret {SECRET}: {0}")]
    Unreadable(String),
    /// Our own failure.
    #[error("the signing key cannot be made: {0}")]
    Making(#[from] rcgen::Error),
    /// Kubernetes.
    #[error("Secret {SECRET} cannot be had: {0}")]
    Kubernetes(#[from] Box<kube::Error>),
}

/// The parts of the Secret.
type Parts = BTreeMap<String, String>;

// === impl Authority ===

impl Authority {
    /// Loads the key; where there is none, creates it. Of several controllers that try at once, one wins and all use its key.
    pub async fn load(secrets: &Api<Secret>, trust_domain: &str) -> Result<Self, AuthorityError> {
        if let Some(secret) = secrets.get_opt(SECRET).await.map_err(Box::new)? {
            return Self::read(&parts(&secret)?);
        }
        let made = make(trust_domain, SystemTime::now())?;
        let data = made
            .iter()
            .map(|(name, text)| (name.clone(), ByteString(text.clone().into_bytes())))
            .collect();
        let metadata = ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..Default::default()
        };
        let secret = Secret {
            metadata,
            data: Some(data),
            type_: Some("Opaque".to_owned()),
            ..Default::default()
        };
        match secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!(secret = SECRET, "a new root was created");
                Self::read(&made)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let theirs = secrets.get(SECRET).await.map_err(Box::new)?;
                Self::read(&parts(&theirs)?)
            }
            Err(error) => Err(Box::new(error).into()),
        }
    }

    /// A key of its own that is kept nowhere: for tests.
    pub fn ephemeral(trust_domain: &str) -> Result<Self, AuthorityError> {
        Self::read(&make(trust_domain, SystemTime::now())?)
    }

    fn read(parts: &Parts) -> Result<Self, AuthorityError> {
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
        // A root that signs leaves itself is not sent twice.
        let above = if certificate.trim() == roots.trim() {
            vec![]
        } else {
            vec![certificate.clone()]
        };
        let chain = above.into_iter().chain([roots.clone()]).collect();
        Ok(Self {
            issuer,
            chain,
            roots: roots.clone(),
        })
    }

    /// The roots that everybody may know, PEM.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// Signs what is permitted: the leaf, what is above it, and last the roots.
    pub fn sign(
        &self,
        csr: &str,
        permit: &Permit,
        life: Duration,
    ) -> Result<Vec<String>, IssueError> {
        let leaf = issue::issue(csr, permit, life, &self.issuer, SystemTime::now())?;
        Ok(std::iter::once(leaf)
            .chain(self.chain.iter().cloned())
            .collect())
    }

    /// A certificate with its key for a server with these names.
    pub fn server(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let leaf = issue::server(names, &key, &self.issuer, SystemTime::now())?;
        let above = self.chain.iter().take(self.chain.len() - 1);
        let chain = std::iter::once(leaf.der().clone()).chain(above.filter_map(|pem| der(pem)));
        Ok((
            chain.collect(),
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        ))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
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

fn make(trust_domain: &str, now: SystemTime) -> Result<Parts, AuthorityError> {
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
    use rustls_pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// Whether the certificate is one of this public key.
fn certifies(pem: &str, key: &[u8]) -> bool {
    let Some(der) = der(pem) else { return false };
    x509_parser::parse_x509_certificate(&der)
        .is_ok_and(|(_, certificate)| &*certificate.public_key().subject_public_key.data == key)
}
