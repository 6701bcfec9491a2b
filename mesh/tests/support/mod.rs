//! A throw-away authority, and TLS servers on loopback.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use mesh::control::Control;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SanType,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::server::ServerTlsConfig;
use tonic::transport::{Identity, Server};

pub const SERVER_NAME: &str = "ambit-controller.ambit-system.svc";

/// Signs what it is asked to.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a root"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A list that revokes these serial numbers.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let now = time::OffsetDateTime::now_utc();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::hours(1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.0).expect("a list");
        list.pem().expect("a text")
    }

    /// Certificate and key of a server.
    pub fn server(&self, name: &str) -> Identity {
        self.server_from(name, SystemTime::UNIX_EPOCH)
    }

    /// As [`Self::server`], of one whose life begins then.
    pub fn server_from(&self, name: &str, from: SystemTime) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a DNS name");
        params.not_before = from.into();
        let leaf = params.signed_by(&key, &self.0).expect("a leaf");
        Identity::from_pem(leaf.pem(), key.serialize_pem())
    }

    /// A leaf for the request's key and `id`; panics if the request asks for anything but one URI, or for `id` not.
    pub fn leaf(&self, csr: &str, id: &str, from: SystemTime, to: SystemTime) -> String {
        let csr = CertificateSigningRequestParams::from_pem(csr).expect("a valid request");
        assert!(
            csr.params.distinguished_name.iter().next().is_none(),
            "the subject is empty"
        );
        assert_eq!(csr.params.subject_alt_names.len(), 1);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("a URI"))];
        params.not_before = from.into();
        params.not_after = to.into();
        params
            .signed_by(&csr.public_key, &self.0)
            .expect("a leaf")
            .pem()
    }
}

/// The names that a request asks for.
pub fn asked(csr: &str) -> Vec<SanType> {
    CertificateSigningRequestParams::from_pem(csr)
        .expect("a request")
        .params
        .subject_alt_names
}

/// The files that a proxy has of its controller.
pub struct Files {
    folder: TempDir,
}

impl Files {
    pub fn new(roots: &str, token: &str) -> Self {
        let files = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        files.roots(roots);
        files.token(token);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn roots(&self, pem: &str) {
        std::fs::write(self.path("roots.pem"), pem).expect("written");
    }

    pub fn token(&self, token: &str) {
        std::fs::write(self.path("token"), token).expect("written");
    }

    pub fn control(&self, address: SocketAddr) -> Control {
        Control {
            address: address.to_string(),
            server_name: Some(SERVER_NAME.to_owned()),
            roots: self.path("roots.pem"),
            token: Some(self.path("token")),
        }
    }
}

/// Serves on a free port of loopback until the test ends.
pub async fn serve<S>(identity: Identity, service: S) -> SocketAddr
where
    S: Service<http::Request<Body>, Error = Infallible> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Response: axum::response::IntoResponse,
    S::Future: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    serve_on(listener, identity, service);
    address
}

/// As [`serve`]; ends when the handle is aborted.
pub fn serve_on<S>(
    listener: TcpListener,
    identity: Identity,
    service: S,
) -> tokio::task::JoinHandle<()>
where
    S: Service<http::Request<Body>, Error = Infallible> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Response: axum::response::IntoResponse,
    S::Future: Send + 'static,
{
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .expect("a TLS configuration")
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move { server.await.expect("it serves") })
}
