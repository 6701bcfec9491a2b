//! Whether a chain leads to our roots today, and whether anybody has revoked it.

use std::iter;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertRevocationListError, CertificateError, OtherError, RootCertStore};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RevocationOptions,
};

use super::PROVIDER;
use super::revocation::Revocations;
use super::verified::{ChainDigest, VerifiedChains};

/// What a peer is to us, and so what its certificate must be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// The roots that peers must chain to, and what those have revoked since.
#[derive(Clone)]
pub(crate) struct Authorities {
    roots: Arc<RootCertStore>,
    revocations: Option<Revocations>,
    known: Arc<VerifiedChains>,
}

/// Looks at a chain of somebody who was let in before, whatever for.
struct AnyPurpose;

// === impl Authorities ===

impl Authorities {
    pub(crate) fn new(roots: RootCertStore) -> Self {
        Self {
            roots: Arc::new(roots),
            revocations: None,
            known: Arc::default(),
        }
    }

    /// The same roots, judged by what is known to be revoked.
    pub(crate) fn informed(&self, revocations: Option<Revocations>) -> Self {
        Self {
            roots: self.roots.clone(),
            revocations,
            known: Arc::default(),
        }
    }

    pub(crate) fn revocations(&self) -> Option<&Revocations> {
        self.revocations.as_ref()
    }

    /// Whether both judge by the same revocations.
    pub(crate) fn is_informed_as(&self, other: &Self) -> bool {
        match (&self.revocations, &other.revocations) {
            (Some(ours), Some(others)) => ours.is(others),
            (None, None) => true,
            _ => false,
        }
    }

    /// Whether a chain that was found good stays so until it runs out: so that a session may go on
    /// without it, and its signatures need no second look.
    pub(crate) fn may_remember(&self) -> bool {
        let revocations = self.revocations.as_ref();
        revocations.is_none_or(Revocations::may_remember)
    }

    /// Accepts a chain that leads to a root, is valid now, allows the role and is not revoked.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), rustls::Error> {
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let chain = || iter::once(leaf).chain(intermediates);
        let digest = self.may_remember().then(|| ChainDigest::of(role, chain()));
        if digest.is_some_and(|digest| self.known.is_good(&digest, now)) {
            return Ok(());
        }
        self.follow(leaf, intermediates, now, usage)
            .map_err(explain)?;
        if let Some(digest) = digest {
            self.known.remember(digest, chain());
        }
        Ok(())
    }

    /// Whether a list names a certificate of this chain. Only that: one that has expired since, or
    /// that leads to a root of the past, is not revoked.
    pub(crate) fn has_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        let (Some(revocations), Some((leaf, intermediates))) =
            (&self.revocations, chain.split_first())
        else {
            return false;
        };
        if !revocations.may_name(chain) {
            return false;
        }
        let status = self.follow(leaf, intermediates, UnixTime::now(), AnyPurpose);
        status == Err(webpki::Error::CertRevoked)
    }

    fn follow(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
    ) -> Result<(), webpki::Error> {
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let roots = &self.roots.roots;
        let leaf = EndEntityCert::try_from(leaf)?;
        let follow = |options: Option<RevocationOptions<'_>>| {
            leaf.verify_for_usage(algorithms, roots, intermediates, now, usage, options, None)
                .map(drop)
        };
        let Some(revocations) = &self.revocations else {
            return follow(None);
        };
        match revocations.judge().options() {
            Some(options) => follow(Some(options)),
            None => Err(webpki::Error::UnknownRevocationStatus),
        }
    }
}

// === impl AnyPurpose ===

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// In rustls' words, so that the peer gets the alert that fits.
fn explain(error: webpki::Error) -> rustls::Error {
    use webpki::Error::*;
    match error {
        BadDer | BadDerTime | TrailingData(_) => CertificateError::BadEncoding.into(),
        CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }.into()
        }
        InvalidCertValidity => CertificateError::Expired.into(),
        UnknownIssuer => CertificateError::UnknownIssuer.into(),
        CertRevoked => CertificateError::Revoked.into(),
        UnknownRevocationStatus => CertificateError::UnknownRevocationStatus.into(),
        CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }.into()
        }
        IssuerNotCrlSigner => CertRevocationListError::IssuerInvalidForCrl.into(),
        InvalidCrlSignatureForPublicKey => CertRevocationListError::BadSignature.into(),
        InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose.into(),
        error => CertificateError::Other(OtherError(Arc::new(error))).into(),
    }
}
