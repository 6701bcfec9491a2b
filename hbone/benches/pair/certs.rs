//! A throw-away CA with one certificate per end, and the TLS configurations of the usual design.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::Result;

pub(crate) const NEAR: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub(crate) const FAR: &str = "spiffe://cluster.local/ns/shop/sa/server";

const NAMES: [&str; 5] = ["NEAR_CHAIN", "NEAR_KEY", "FAR_CHAIN", "FAR_KEY", "ROOT"];

/// Both ends' certificates as PEM, handed to the children in their environment.
pub(crate) struct Certs([String; 5]);

/// One end's chain, key and roots as PEM.
pub(crate) struct Pem {
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) root: String,
}

/// Takes whoever the roots vouch for.
#[derive(Debug)]
struct Vouched {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

// === impl Certs ===

impl Certs {
    /// A new authority and two leaves, as the mesh has them: P-256, one SPIFFE URI.
    pub(crate) fn make() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let leaf = |id: &str| -> Result<(String, String)> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
            params.not_before = time::OffsetDateTime::now_utc() - time::Duration::HOUR;
            params.not_after = time::OffsetDateTime::now_utc() + time::Duration::DAY;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        let (near, far) = (leaf(NEAR)?, leaf(FAR)?);
        Ok(Self([near.0, near.1, far.0, far.1, root]))
    }

    /// As a child's environment.
    pub(crate) fn env(&self) -> impl Iterator<Item = (String, &str)> {
        let variable = |(name, text)| (format!("BENCH_PAIR_{name}"), text);
        NAMES
            .into_iter()
            .zip(self.0.iter().map(String::as_str))
            .map(variable)
    }
}

// === impl Pem ===

impl Pem {
    /// What the parent gave the near end.
    pub(crate) fn near() -> Result<Self> {
        Self::read(0)
    }

    /// What the parent gave the far end.
    pub(crate) fn far() -> Result<Self> {
        Self::read(2)
    }

    fn read(first: usize) -> Result<Self> {
        let text = |at: usize| std::env::var(format!("BENCH_PAIR_{}", NAMES[at]));
        Ok(Self {
            chain: text(first)?,
            key: text(first + 1)?,
            root: text(4)?,
        })
    }

    /// The client's configuration, without resumption.
    pub(crate) fn client(&self) -> Result<ClientConfig> {
        let vouched = Arc::new(Vouched {
            roots: self.roots()?,
            provider: provider(),
        });
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(vouched)
            .with_client_auth_cert(self.chain()?, self.key()?)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// The server's configuration, without tickets.
    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(clients.build()?)
            .with_single_cert(self.chain()?, self.key()?)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        let pem = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        Ok(pem.collect::<std::result::Result<_, _>>()?)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        Ok(PrivateKeyDer::from_pem_slice(self.key.as_bytes())?)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.root.as_bytes())?)?;
        Ok(Arc::new(roots))
    }
}

/// The algorithms of `hbone`, in its order.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}

// === impl Vouched ===

impl ServerCertVerifier for Vouched {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
