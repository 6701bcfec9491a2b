//! Why the peer was let in, and what becomes of the connection when that does not hold any more.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::ready::Ready;
use super::{Core, Phase};
use crate::frame::Code;
use crate::session::Key;
use crate::tls::credentials::Watching;
use crate::tls::handshake::Proved;
use crate::tls::standing::Standing;
use crate::{Credentials, Error, Identity, SpiffeId};

/// Why the peer was let in, to be looked at again when revocations change or its certificate runs out.
pub(super) struct Proof {
    credentials: Watching,
    /// The identity by whose revocations the chain was judged last.
    judged_by: Arc<Identity>,
    id: SpiffeId,
    /// The end of the certificate that was shown here, and of the last one that was shown anywhere.
    not_after: SystemTime,
    standing: Standing,
    chain: Arc<[CertificateDer<'static>]>,
}

// === impl Proof ===

impl Proof {
    pub(super) fn new(
        proved: &Proved,
        credentials: &Credentials,
        judged_by: Arc<Identity>,
        ready: &Arc<Ready>,
    ) -> Self {
        // What was replaced during the handshake is looked at in the first turn.
        ready.push(Key::NEWS);
        Self {
            credentials: credentials.watch(ready.waker(Key::NEWS)),
            judged_by,
            standing: credentials.standing(&proved.peer, proved.not_after),
            not_after: proved.not_after,
            id: proved.peer.id.clone(),
            chain: proved.chain.clone(),
        }
    }

    /// How long both sides' certificates still count, as they are now.
    pub(super) fn left(&self) -> Duration {
        let ours = self.credentials.current().not_after();
        let until = ours.min(self.standing.until());
        until.duration_since(SystemTime::now()).unwrap_or_default()
    }
}

impl Core {
    /// Ends the connection if its peer's certificate has been revoked since it was let in.
    pub(super) fn judge_again(&mut self) {
        let current = self.proof.credentials.current();
        if Arc::ptr_eq(&current, &self.proof.judged_by) {
            return;
        }
        if current.is_revoked(&self.proof.chain) {
            let error = Error::Revoked {
                id: self.proof.id.clone(),
            };
            self.cut(&error, "certificate revoked");
        }
        self.proof.judged_by = current;
    }

    /// Ends the connection if its peer's certificate has run out, and the peer has shown no newer one since.
    pub(super) fn look_at_the_certificate(&mut self, now: Instant) {
        let wall = SystemTime::now();
        let left = self.proof.standing.until().duration_since(wall);
        match left {
            Ok(left) if !left.is_zero() => {
                if self.proof.not_after <= wall {
                    self.drain();
                }
                self.clock.expires_in(now, left);
            }
            _ => {
                let error = Error::Expired {
                    id: self.proof.id.clone(),
                };
                self.cut(&error, "certificate expired");
            }
        }
    }

    /// Ends the connection and everything on it: its peer has no certificate that counts any more.
    fn cut(&mut self, error: &Error, why: &str) {
        if self.phase != Phase::Running {
            return;
        }
        tracing::info!(peer = %self.addr, %error, "connection ended");
        for key in self.session.streams.keys() {
            self.session.reset(key, Code::CANCEL);
            self.lost(key, error.clone());
        }
        self.tell_end(Some(error.clone()));
        self.part(Code::NO_ERROR, why);
    }
}
