//! Who may be at the other end: the chain to our roots, and one SPIFFE ID as the only URI name.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::PROVIDER;
use super::chain::{Authorities, Role};
use crate::{Expect, SpiffeId, TrustDomain};

/// Certificates whose content a thread remembers, at some 800 bytes: the peers that come often.
const MAX_READ: usize = 128;

thread_local! {
    /// Only good ones: nobody fills it who is not let in.
    static READ: RefCell<HashMap<Vec<u8>, Rc<Leaf>>> = RefCell::default();
}

/// What a leaf certificate says about its holder.
pub(crate) struct Leaf {
    /// The identity: the only URI among the names, as the SPIFFE standard wants it; nothing where
    /// there is not exactly one.
    pub(crate) id: Option<SpiffeId>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) serial: String,
    /// Whether its key may sign a handshake and nothing that outlives one.
    may_authenticate: bool,
}

/// Verifies servers against our authorities and the identities that are expected.
pub(crate) struct ServerVerifier {
    authorities: Authorities,
    expect: Expect,
}

/// Verifies clients against our authorities and the trust domains a server lets in.
pub(crate) struct ClientVerifier {
    authorities: Authorities,
    trust: Arc<[TrustDomain]>,
}

/// A server with a valid certificate of somebody else.
#[derive(Debug)]
pub(crate) struct Unexpected {
    pub(crate) expected: Expect,
    pub(crate) presented: Option<SpiffeId>,
}

/// A client with a valid certificate that we do not let in.
#[derive(Debug)]
struct Untrusted(Option<SpiffeId>);

// === impl Leaf ===

impl Leaf {
    /// Reads a certificate without judging it.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let malformed = || rustls::Error::from(CertificateError::BadEncoding);
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| malformed())?;
        if !rest.is_empty() {
            return Err(malformed());
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| malformed())?;
        let mut uris = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|n| match n {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        let id = match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse().ok(),
            _ => None,
        };
        let usage = certificate.key_usage().map_err(|_| malformed())?;
        let validity = certificate.validity();
        Ok(Self {
            may_authenticate: usage.is_none_or(|usage| {
                let usage = usage.value;
                usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
            }),
            id,
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
            serial: certificate.raw_serial_as_string(),
        })
    }

    /// What a certificate says that was found good: the same few come again and again, and are looked
    /// at twice per handshake.
    pub(crate) fn of(der: &CertificateDer<'_>) -> Result<Rc<Self>, rustls::Error> {
        if let Some(leaf) = READ.with_borrow(|read| read.get(&**der).cloned()) {
            return Ok(leaf);
        }
        let leaf = Rc::new(Self::read(der)?);
        READ.with_borrow_mut(|read| {
            if read.len() >= MAX_READ {
                read.clear();
            }
            read.insert(der.to_vec(), leaf.clone());
        });
        Ok(leaf)
    }

    /// Whose it is, if it may be used to say so.
    fn identify(&self) -> Result<Option<&SpiffeId>, rustls::Error> {
        match self.may_authenticate {
            true => Ok(self.id.as_ref()),
            false => Err(CertificateError::InvalidPurpose.into()),
        }
    }
}

// === impl ServerVerifier ===

impl ServerVerifier {
    pub(crate) fn new(authorities: Authorities, expect: Expect) -> Self {
        Self {
            authorities,
            expect,
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    /// The name is the address we dialled and proves nothing: the SPIFFE ID does.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.authorities
            .verify(end_entity, intermediates, now, Role::Server)?;
        let leaf = Leaf::of(end_entity)?;
        match leaf.identify()? {
            Some(id) if self.expect.contains(id) => Ok(ServerCertVerified::assertion()),
            presented => Err(other(Unexpected {
                expected: self.expect.clone(),
                presented: presented.cloned(),
            })),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier")
            .field("expect", &self.expect)
            .finish_non_exhaustive()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    pub(crate) fn new(authorities: Authorities, trust: Arc<[TrustDomain]>) -> Self {
        Self { authorities, trust }
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// Nobody needs to be told which roots we trust.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.authorities
            .verify(end_entity, intermediates, now, Role::Client)?;
        let leaf = Leaf::of(end_entity)?;
        match leaf.identify()? {
            Some(id) if self.trust.iter().any(|domain| id.is_in(domain)) => {
                Ok(ClientCertVerified::assertion())
            }
            presented => Err(other(Untrusted(presented.cloned()))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

// === impl Unexpected ===

impl std::error::Error for Unexpected {}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.presented {
            Some(id) => write!(f, "expected {}, but {id} was presented", self.expected),
            None => write!(
                f,
                "expected {}, but no SPIFFE ID was presented",
                self.expected
            ),
        }
    }
}

// === impl Untrusted ===

impl std::error::Error for Untrusted {}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(id) => write!(f, "{id} is of a trust domain that is not let in"),
            None => f.write_str("the client's certificate has not exactly one SPIFFE ID"),
        }
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Certificates before 1970 count as of 1970: long gone either way.
fn system_time(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}
