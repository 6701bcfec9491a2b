//! Names of workloads: SPIFFE IDs and trust domains, parsed strictly; nothing else splits a `spiffe://`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";

/// The longest SPIFFE ID an implementation must take, and the longest we take.
const MAX_ID: usize = 2048;

/// The longest trust domain name.
const MAX_TRUST_DOMAIN: usize = 255;

/// The part of a SPIFFE ID that names whose authority signed it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// The name of a workload, `spiffe://<trust domain>/<path>`; cheap to clone.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins in `text`; follows from it.
    path_at: usize,
}

/// The identities a peer may present: never empty, sorted, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expect(Arc<[SpiffeId]>);

/// Who is at the other end of a connection, proved by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The identity in its certificate.
    pub id: SpiffeId,
    /// The address its connection came from.
    pub addr: SocketAddr,
}

/// Why a text is not a SPIFFE ID or trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// Does not begin with `spiffe://`.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// More than 2048 bytes.
    #[error("is longer than 2048 bytes")]
    TooLong,
    /// The trust domain is empty.
    #[error("has no trust domain")]
    NoTrustDomain,
    /// The trust domain has more than 255 bytes.
    #[error("has a trust domain longer than 255 bytes")]
    TrustDomainTooLong,
    /// The trust domain has another character than a-z, 0-9, dot, dash, underscore: also a port or user.
    #[error("has a character in its trust domain that is not a-z, 0-9, '.', '-' or '_'")]
    TrustDomainCharacter,
    /// No path: names a trust domain, not a workload.
    #[error("has no path")]
    NoPath,
    /// `//` or a slash at the end.
    #[error("has an empty path segment")]
    EmptySegment,
    /// `.` or `..` as a segment.
    #[error("has a '.' or '..' path segment")]
    DotSegment,
    /// Another character than letters, digits, dot, dash, underscore: also a query, fragment or escape.
    #[error("has a character in its path that is not a letter, digit, '.', '-' or '_'")]
    PathCharacter,
}

// === impl TrustDomain ===

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(Arc::from("cluster.local"))
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        check_trust_domain(text)?;
        Ok(Self(Arc::from(text)))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// The identity of a Kubernetes service account: `spiffe://<trust domain>/ns/<ns>/sa/<name>`.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        if namespace.contains('/') || service_account.contains('/') {
            return Err(InvalidSpiffeId::PathCharacter);
        }
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// Whose authority signed it.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(Arc::from(&self.text[SCHEME.len()..self.path_at]))
    }

    /// Whether `domain` is its trust domain; the same as comparing, without a copy.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        &self.text[SCHEME.len()..self.path_at] == domain.as_str()
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Namespace and name, where the path is that of a Kubernetes service account.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !name.contains('/')).then_some((namespace, name))
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        if text.len() > MAX_ID {
            return Err(InvalidSpiffeId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(InvalidSpiffeId::Scheme)?;
        let (trust_domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        check_trust_domain(trust_domain)?;
        check_path(path)?;
        Ok(Self {
            text: Arc::from(text),
            path_at: SCHEME.len() + trust_domain.len(),
        })
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl Expect ===

impl Expect {
    /// Exactly this identity.
    pub fn one(id: SpiffeId) -> Self {
        Self(Arc::from([id]))
    }

    /// Any of these; nothing where there are none, because an empty set would never match.
    pub fn any_of(ids: impl IntoIterator<Item = SpiffeId>) -> Option<Self> {
        let mut ids: Vec<SpiffeId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        (!ids.is_empty()).then(|| Self(Arc::from(ids)))
    }

    /// Whether a peer presenting `id` is one of these.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        self.0.binary_search(id).is_ok()
    }

    /// The identities, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &SpiffeId> {
        self.0.iter()
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, id) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" or ")?;
            }
            f.write_str(&id.text)?;
        }
        Ok(())
    }
}

fn check_trust_domain(text: &str) -> Result<(), InvalidSpiffeId> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    match text {
        "" => Err(InvalidSpiffeId::NoTrustDomain),
        _ if text.len() > MAX_TRUST_DOMAIN => Err(InvalidSpiffeId::TrustDomainTooLong),
        _ if !text.bytes().all(plain) => Err(InvalidSpiffeId::TrustDomainCharacter),
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), InvalidSpiffeId> {
    let segments = path.strip_prefix('/').ok_or(InvalidSpiffeId::NoPath)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    for segment in segments.split('/') {
        match segment {
            "" => return Err(InvalidSpiffeId::EmptySegment),
            "." | ".." => return Err(InvalidSpiffeId::DotSegment),
            _ if !segment.bytes().all(plain) => return Err(InvalidSpiffeId::PathCharacter),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
