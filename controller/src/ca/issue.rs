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
/// How far back a leaf's life begins: whose clock is behind ours by up to this much can use it at once.
pub const SKEW: Duration = Duration::from_secs(10 * 60);

/// What signs, and until when.
pub(super) struct Signer {
    /// The key, with the names of its certificate.
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// The end of what is above every leaf: a leaf that outlived it would be refused before its time.
    pub(super) not_after: SystemTime,
}

/// A leaf that was signed.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate, PEM.
    pub pem: String,
    /// Its number, hexadecimal.
    pub serial: String,
    /// Its end.
    pub not_after: SystemTime,
}

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
    /// Our issuer's life is over.
    #[error("the certificate that signs has expired {} ago", seconds(*.0))]
    IssuerExpired(Duration),
    /// Our own failure.
    #[error("signing failed: {0}")]
    Signing(#[source] rcgen::Error),
}

/// Signs a leaf for the permitted identity. Nothing but the key is taken from the request.
pub(super) fn issue(
    csr: &str,
    permit: &Permit,
    asked: Duration,
    signer: &Signer,
    now: SystemTime,
) -> Result<Leaf, IssueError> {
    let csr = CertificateSigningRequestParams::from_pem(csr).map_err(IssueError::Unreadable)?;
    check(&csr, permit)?;
    let life = if asked.is_zero() {
        LIFETIME
    } else {
        asked.min(LIFETIME)
    };
    let not_after = end(now, life, signer)?;
    let serial = serial()?;
    let mut params = leaf(now, not_after, serial.clone());
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
    let leaf = params
        .signed_by(&csr.public_key, &signer.issuer)
        .map_err(IssueError::Signing)?;
    Ok(Leaf {
        pem: leaf.pem(),
        serial: hex(serial.as_ref()),
        not_after,
    })
}

/// A leaf for the controller's own TLS server.
pub(super) fn server(
    names: &[String],
    key: &KeyPair,
    signer: &Signer,
    now: SystemTime,
) -> Result<(rcgen::Certificate, SystemTime), IssueError> {
    let not_after = end(now, LIFETIME, signer)?;
    let mut params = leaf(now, not_after, serial()?);
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(IssueError::Signing)?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params
        .signed_by(key, &signer.issuer)
        .map_err(IssueError::Signing)?;
    Ok((leaf, not_after))
}

/// No leaf outlives what signs it. Whole seconds, as a certificate has them.
fn end(now: SystemTime, life: Duration, signer: &Signer) -> Result<SystemTime, IssueError> {
    match now.duration_since(signer.not_after) {
        Ok(since) => Err(IssueError::IssuerExpired(since)),
        Err(_) => Ok((now + life).min(signer.not_after)),
    }
}

fn leaf(now: SystemTime, not_after: SystemTime, serial: SerialNumber) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(now - SKEW);
    params.not_after = date(not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial);
    params
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

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
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

#[cfg(test)]
mod tests {
    use super::super::authority::Authority;
    use super::*;

    fn signer(not_after: SystemTime) -> Signer {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let issuer = Issuer::new(CertificateParams::default(), key);
        Signer { issuer, not_after }
    }

    fn validity(pem: &str) -> (SystemTime, SystemTime) {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let validity = pem.parse_x509().expect("a certificate").validity.clone();
        let time = |time: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().expect("now"))
        };
        (time(validity.not_before), time(validity.not_after))
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer_and_begins_in_the_past() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let hour = Duration::from_secs(3600);
        for (left, expected) in [(48 * hour, 24 * hour), (hour, hour)] {
            let (leaf, not_after) =
                server(&["a".to_owned()], &key, &signer(now + left), now).expect("signed");
            assert_eq!(not_after, now + expected);
            assert_eq!(validity(&leaf.pem()), (now - SKEW, now + expected));
        }
    }

    #[test]
    fn an_issuer_that_has_ended_signs_nothing() {
        let now = SystemTime::now();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        for ago in [0, 90] {
            let signer = signer(now - Duration::from_secs(ago));
            let error = server(&["a".to_owned()], &key, &signer, now).expect_err("expired");
            assert_eq!(
                error.to_string(),
                format!("the certificate that signs has expired {ago} s ago")
            );
        }
    }

    #[test]
    fn the_end_of_an_issuer_is_read_from_its_certificate() {
        let authority = Authority::ephemeral("cluster.local").expect("a root");
        let (_, root_ends) = validity(&authority.roots());
        assert_eq!(authority.not_after(), root_ends);
    }
}
