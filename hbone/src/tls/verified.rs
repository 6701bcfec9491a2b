//! Chains that were found good before: their signatures need no second look.
//!
//! A mesh has one certificate per service account and node, and one tunnel per pair of pods: the same
//! few chains come again and again, also where no session can go on. What is remembered is what only
//! the bytes of the chain decide, under roots and revocations that do not change; whether the peer
//! holds the key is proved in each handshake.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::chain::Role;
use super::verify::Leaf;

/// Chains remembered per identity, at some 100 bytes: the peers of a busy workload.
const MAX_KNOWN: usize = 1024;

/// The chains that some authorities have found good.
#[derive(Default)]
pub(crate) struct VerifiedChains(Mutex<HashMap<ChainDigest, Range<SystemTime>>>);

/// Stands for one chain in one role.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChainDigest([u8; 32]);

// === impl VerifiedChains ===

impl VerifiedChains {
    /// Whether this chain was found good, and is valid at this time.
    pub(crate) fn is_good(&self, digest: &ChainDigest, now: UnixTime) -> bool {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let known = self.0.lock();
        known.get(digest).is_some_and(|valid| valid.contains(&now))
    }

    /// Remembers a chain for as long as all of it is valid.
    pub(crate) fn remember<'c>(
        &self,
        digest: ChainDigest,
        chain: impl Iterator<Item = &'c CertificateDer<'c>>,
    ) {
        let (mut from, mut until) = (SystemTime::UNIX_EPOCH, None);
        for certificate in chain {
            let Ok(read) = Leaf::read(certificate) else {
                return;
            };
            from = from.max(read.not_before);
            until = Some(until.map_or(read.not_after, |until| read.not_after.min(until)));
        }
        let Some(until) = until else { return };
        let mut known = self.0.lock();
        if known.len() >= MAX_KNOWN
            && let Some(other) = known.keys().next().copied()
        {
            // Whichever it is: it will be looked at again.
            known.remove(&other);
        }
        known.insert(digest, from..until);
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

// === impl ChainDigest ===

impl ChainDigest {
    pub(crate) fn of<'c>(role: Role, chain: impl Iterator<Item = &'c CertificateDer<'c>>) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[role as u8]);
        for certificate in chain {
            context.update(&certificate.len().to_be_bytes());
            context.update(certificate);
        }
        let digest = context.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}
