//! What a client remembers of servers it has met: a ticket each, to continue without certificates.
//!
//! A ticket belongs to one configuration, so to one identity, its revocations, and the identities
//! that were expected: another configuration never sees it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Servers remembered per identity: about 2.5 KB each, with the server's certificate.
const MAX_SERVERS: usize = 128;

/// All servers that one identity has met.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<Key, Tls13ClientSessionValue>>);

/// The sessions of one configuration.
pub(crate) struct Store {
    all: Arc<Sessions>,
    configuration: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    configuration: u64,
    server: ServerName<'static>,
}

// === impl Sessions ===

impl Sessions {
    /// The part of the configuration with this number.
    pub(crate) fn store(self: &Arc<Self>, configuration: u64) -> Arc<Store> {
        Arc::new(Store {
            all: self.clone(),
            configuration,
        })
    }
}

// === impl Store ===

impl Store {
    fn key(&self, server: ServerName<'static>) -> Key {
        Key {
            configuration: self.configuration,
            server,
        }
    }
}

impl ClientSessionStore for Store {
    /// One ticket per server, the newest: pools dial a server once, and again when that is over.
    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let key = self.key(server);
        let mut all = self.all.0.lock();
        if all.len() >= MAX_SERVERS
            && !all.contains_key(&key)
            && let Some(other) = all.keys().next().cloned()
        {
            // Whichever it is: it costs that server one full handshake.
            all.remove(&other);
        }
        all.insert(key, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.all.0.lock().remove(&self.key(server.clone()))
    }

    /// Not remembered: shares of our two first choices are always sent, and a peer that has once had
    /// neither may have learnt since.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.configuration).finish()
    }
}
