//! TLS for the ports that want it: the certificate given, or one made up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// An acceptor that offers HTTP/2 and HTTP/1.1.
pub(super) fn acceptor(files: Option<&(PathBuf, PathBuf)>, hostname: &str) -> Result<TlsAcceptor> {
    let (chain, key) = match files {
        Some((crt, key)) if crt.exists() && key.exists() => load(crt, key)?,
        // The conformance fixture names files that its own image carries; ours need not.
        _ => made_up(hostname)?,
    };
    let mut config = rustls::ServerConfig::builder_with_provider(crate::echo::crypto())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn load(crt: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(crt)
        .and_then(Iterator::collect)
        .with_context(|| format!("certificate {}", crt.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("key {}", key.display()))?;
    Ok((chain, key))
}

fn made_up(hostname: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let made = rcgen::generate_simple_self_signed([hostname.to_owned(), "echo".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}
