//! A signing request in, a leaf out: its key is the request's, everything else is ours.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    Issuer, KeyPair, KeyUsagePurpose, PublicKey, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::authorize::Permit;

/// The longest life of a leaf, and the one of a request that names none.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How far back a leaf's life begins: clocks differ.
const SKEW: Duration = Duration::from_secs(2 * 60);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Not a signing request, or its signature is not by its key.
    #[error("the signing request cannot be read: {0}")]
    Unreadable(#[source] rcgen::Error),
    /// Another kind of key.
    #[error("the key is not ECDSA P-256")]
    WrongKey,
    /// It asks for someone else than its sender does.
    #[error("the signing request names {0}, not the identity that was asked for")]
    OtherIdentity(String),
    /// Our own failure.
    #[error("signing failed: {0}")]
    Signing(#[source] rcgen::Error),
}

/// Signs a leaf for the permitted identity. Nothing but the key is taken from the request.
pub(super) fn issue(
    csr: &str,
    permit: &Permit,
    asked: Duration,
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<String, IssueError> {
    let csr = CertificateSigningRequestParams::from_pem(csr).map_err(IssueError::Unreadable)?;
    check(&csr, permit)?;
    let mut params = leaf(
        now,
        if asked.is_zero() {
            LIFETIME
        } else {
            asked.min(LIFETIME)
        },
    )?;
    let uri = permit
        .id()
        .to_string()
        .try_into()
        .map_err(IssueError::Signing)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params
        .signed_by(&csr.public_key, issuer)
        .map_err(IssueError::Signing)?
        .pem())
}

/// A leaf for the controller's own TLS server.
pub(super) fn server(
    names: &[String],
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<rcgen::Certificate, IssueError> {
    let mut params = leaf(now, LIFETIME)?;
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(IssueError::Signing)?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.signed_by(key, issuer).map_err(IssueError::Signing)
}

fn leaf(now: SystemTime, life: Duration) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(now - SKEW);
    params.not_after = date(now + life);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// 127 random bits.
pub(super) fn serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| IssueError::Signing(rcgen::Error::RingUnspecified))?;
    // A positive number of the same length in every encoding.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from(bytes.to_vec()))
}

pub(super) fn date(time: SystemTime) -> OffsetDateTime {
    time.into()
}

fn check(csr: &CertificateSigningRequestParams, permit: &Permit) -> Result<(), IssueError> {
    if !is_p256(&csr.public_key) {
        return Err(IssueError::WrongKey);
    }
    // What a request says of itself is not copied; but one that contradicts its sender is a mistake or an attack.
    for name in &csr.params.subject_alt_names {
        match name {
            SanType::URI(uri) if uri.as_str() == permit.id().to_string() => {}
            SanType::URI(uri) => return Err(IssueError::OtherIdentity(uri.as_str().to_owned())),
            other => return Err(IssueError::OtherIdentity(format!("{other:?}"))),
        }
    }
    Ok(())
}

fn is_p256(key: &PublicKey) -> bool {
    key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256
}
