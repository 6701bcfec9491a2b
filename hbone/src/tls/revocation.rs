//! What authorities have revoked, as identities are told: read whole, and shared by all who judge by it.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::InvalidCredentials;

/// What to think of a certificate that no current revocation list speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownRevocation {
    /// It is good until somebody revokes it. A list past its next update still counts.
    Allow,
    /// It is refused, as is every intermediate without a list of its issuer: absence denies, and a
    /// list past its next update is absent. So that this is asked each time, no session goes on.
    Refuse,
}

/// What authorities have revoked. Cheap to clone: however many identities are told the same, the lists
/// are held once.
#[derive(Clone)]
pub struct Revocations(Arc<Kind>);

enum Kind {
    Lists {
        lists: Vec<CertRevocationList<'static>>,
        unknown: UnknownRevocation,
    },
    Unreadable,
}

/// How a chain is to be looked at.
pub(crate) enum Judge<'l> {
    /// By these lists.
    By(Vec<&'l CertRevocationList<'l>>, UnknownRevocation),
    /// Nobody is let in.
    Nobody,
}

// === impl Revocations ===

impl Revocations {
    /// Reads revocation lists in PEM, one or several: all of them, or an error.
    pub fn from_pem(pem: &str, unknown: UnknownRevocation) -> Result<Self, InvalidCredentials> {
        let lists = lists(pem).map_err(InvalidCredentials::Revocations)?;
        Ok(Self(Arc::new(Kind::Lists { lists, unknown })))
    }

    /// There are lists that cannot be read: until they can, nobody new is let in, and who is in stays.
    pub fn unreadable() -> Self {
        Self(Arc::new(Kind::Unreadable))
    }

    /// How many lists there are.
    pub fn count(&self) -> usize {
        match &*self.0 {
            Kind::Lists { lists, .. } => lists.len(),
            Kind::Unreadable => 0,
        }
    }

    /// Whether both are the same, read once.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether a chain that was found good stays so until it runs out.
    pub(crate) fn may_remember(&self) -> bool {
        let allow = UnknownRevocation::Allow;
        matches!(&*self.0, Kind::Lists { unknown, .. } if *unknown == allow)
    }

    /// Whether a list has the number of a certificate of this chain, of whichever issuer: most chains have none, and
    /// of those no signature need be looked at.
    pub(crate) fn may_name(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Kind::Lists { lists, .. } = &*self.0 else {
            return false;
        };
        chain.iter().any(|der| {
            // One that cannot be read is looked at in full.
            X509Certificate::from_der(der).map_or(true, |(_, certificate)| {
                let serial = certificate.raw_serial();
                let mut named = lists.iter().map(|list| list.find_serial(serial));
                named.any(|found| !matches!(found, Ok(None)))
            })
        })
    }

    pub(crate) fn judge(&self) -> Judge<'_> {
        match &*self.0 {
            Kind::Lists { lists, unknown } => Judge::By(lists.iter().collect(), *unknown),
            Kind::Unreadable => Judge::Nobody,
        }
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Lists { lists, unknown } => f
                .debug_struct("Revocations")
                .field("lists", &lists.len())
                .field("unknown", unknown)
                .finish(),
            Kind::Unreadable => f.write_str("Revocations(unreadable)"),
        }
    }
}

// === impl Judge ===

impl Judge<'_> {
    /// As webpki wants it; nothing where nobody can be judged.
    pub(crate) fn options(&self) -> Option<RevocationOptions<'_>> {
        let Self::By(lists, unknown) = self else {
            return None;
        };
        let (status, expiration) = match unknown {
            UnknownRevocation::Allow => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
            UnknownRevocation::Refuse => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
        };
        let builder = RevocationOptionsBuilder::new(lists).ok()?;
        let options = builder
            .with_status_policy(status)
            .with_expiration_policy(expiration);
        Some(options.build())
    }
}

/// All lists of a PEM text; at least one.
fn lists(pem: &str) -> Result<Vec<CertRevocationList<'static>>, String> {
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|e| e.to_string())?;
        let list = OwnedCertRevocationList::from_der(&der).map_err(|e| e.to_string())?;
        lists.push(list.into());
    }
    if lists.is_empty() {
        return Err("there is none".to_owned());
    }
    Ok(lists)
}
