//! The way to the controller: its address, the roots that its certificate must chain to, and the token we show.
//!
//! Roots and token are files that Kubernetes rewrites; both are read again at each use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::skew::Skew;

/// TCP, name resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS after TCP.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// Both: a controller that is not there is known not to be within this.
pub(crate) const REACHED_WITHIN: Duration = CONNECT_TIMEOUT.saturating_add(TLS_TIMEOUT);
/// A ping when nothing else was heard, also between messages: a controller whose node vanished sends no FIN.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where the controller is and how it is known.
#[derive(Clone, Debug)]
pub struct Control {
    /// `host:port`
    pub address: String,
    /// The DNS name that its certificate must have; `None`: the host of `address`.
    pub server_name: Option<String>,
    /// PEM file of the roots that its certificate must chain to.
    pub roots: PathBuf,
    /// File of the bound service account token; `None`: show none.
    pub token: Option<PathBuf>,
}

/// Why the controller was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The roots' file holds no certificate, or something else.
    #[error("{path}: {reason}")]
    Roots {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token's file holds what cannot be a token.
    #[error("{0}: not a token")]
    Token(PathBuf),
    /// Neither connection nor handshake.
    #[error("{address}: {reason}")]
    Connect {
        /// Of the controller.
        address: String,
        /// The causes, outermost first.
        reason: String,
    },
}

// === impl Control ===

impl Control {
    /// A new connection, with the roots as they are in their file now.
    pub async fn connect(&self) -> Result<Channel, ControlError> {
        self.connect_trusting(&self.read_roots()?).await
    }

    /// The roots' file, checked to hold certificates.
    pub(crate) fn read_roots(&self) -> Result<Vec<u8>, ControlError> {
        let pem = read(&self.roots)?;
        let invalid = |reason: String| ControlError::Roots {
            path: self.roots.clone(),
            reason,
        };
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&pem) {
            let root = root.map_err(|error| invalid(error.to_string()))?;
            roots
                .add(root)
                .map_err(|error| invalid(error.to_string()))?;
        }
        match roots.is_empty() {
            true => Err(invalid("it holds no certificate".to_owned())),
            false => Ok(pem),
        }
    }

    /// As [`Self::connect`], with roots read before.
    pub(crate) async fn connect_trusting(&self, roots: &[u8]) -> Result<Channel, ControlError> {
        let failed = |error: tonic::transport::Error| ControlError::Connect {
            address: self.address.clone(),
            reason: causes(&error),
        };
        // The only provider linked is aws-lc; tonic takes it when the process names no default.
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .timeout(TLS_TIMEOUT);
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Endpoint::from_shared(format!("https://{}", self.address))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(failed)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .http2_adaptive_window(true)
            .connect()
            .await
            .map_err(failed)
    }

    /// `Bearer <token>`, with the token as it is in its file now.
    pub fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, ControlError> {
        let Some(path) = &self.token else {
            return Ok(None);
        };
        let invalid = || ControlError::Token(path.clone());
        let token = String::from_utf8(read(path)?).map_err(|_| invalid())?;
        let token = token.trim();
        if token.is_empty() {
            return Err(invalid());
        }
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| invalid())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// A request of `message` that shows the token.
    pub(crate) fn authorized<T>(&self, message: T) -> Result<tonic::Request<T>, ControlError> {
        let mut request = tonic::Request::new(message);
        if let Some(authorization) = self.authorization()? {
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        Ok(request)
    }
}

// === free ===

/// An error with all that caused it: the outermost alone says "transport error".
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        if let Some(skew) = Skew::in_handshake(cause) {
            return format!("{text}: {skew}");
        }
        source = cause.source();
    }
    text
}

fn read(path: &Path) -> Result<Vec<u8>, ControlError> {
    std::fs::read(path).map_err(|source| ControlError::File {
        path: path.to_owned(),
        source,
    })
}
