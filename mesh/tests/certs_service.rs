//! The certificate client against the service on the wire: what it shows, what it asks, what it makes of the answer.

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hbone::SpiffeId;
use mesh::ca::{CaError, Caller, CertificateClient, obtain};
use mesh::proto::certificate::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh::proto::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use support::{Ca, Files, SERVER_NAME, serve, serve_on};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

/// Signs for who shows "Bearer good"; says in the refusal what it saw otherwise.
#[derive(Clone)]
struct Signer(Arc<Ca>);

#[tonic::async_trait]
impl IstioCertificateService for Signer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name: &str| {
            let value = request.metadata().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        if header("authorization") != "Bearer good" || header("clusterid") != "Kubernetes" {
            return Err(Status::unauthenticated(format!("{:?}", request.metadata())));
        }
        let message = request.get_ref();
        assert_eq!(message.validity_duration, 86_400);
        let impersonated = message
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"))
            .and_then(|value| value.kind.clone());
        let Some(Kind::StringValue(id)) = impersonated else {
            return Err(Status::permission_denied("for yourself? no"));
        };
        let now = SystemTime::now();
        let leaf = self
            .0
            .leaf(&message.csr, &id, now, now + Duration::from_secs(3600));
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf, self.0.pem()],
        }))
    }
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart"
        .parse()
        .expect("an id")
}

#[tokio::test]
async fn signs_for_a_pod_of_the_node() {
    let ca = Arc::new(Ca::new());
    let service = IstioCertificateServiceServer::new(Signer(Arc::clone(&ca)));
    let address = serve(ca.server(SERVER_NAME), service).await;
    let files = Files::new(&ca.pem(), "good");
    let client = CertificateClient::new(files.control(address), "Kubernetes", Caller::Node);
    let identity = obtain(&client, &id()).await.expect("a certificate");
    assert_eq!(*identity.id(), id());
    assert!(identity.not_after() > SystemTime::now());

    // The token is read for each request.
    files.token("worn out");
    let error = obtain(&client, &id()).await.expect_err("refused");
    assert_eq!(error.code(), "unauthenticated");
    files.token("good");
    obtain(&client, &id()).await.expect("a certificate");

    let client = CertificateClient::new(files.control(address), "Kubernetes", Caller::Workload);
    let error = obtain(&client, &id()).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "The caller does not have permission to execute the specified operation: for yourself? no"
    );
}

#[tokio::test]
async fn follows_the_controller_to_new_roots() {
    let (old, new) = (Arc::new(Ca::new()), Arc::new(Ca::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let service = IstioCertificateServiceServer::new(Signer(Arc::clone(&new)));
    serve_on(listener, new.server(SERVER_NAME), service);
    let files = Files::new(&old.pem(), "good");
    let client = CertificateClient::new(files.control(address), "Kubernetes", Caller::Node);
    let error = obtain(&client, &id()).await.expect_err("not trusted");
    assert!(matches!(error, CaError::Control(_)), "{error}");
    assert_eq!(error.code(), "unreachable");
    files.roots(&new.pem());
    obtain(&client, &id()).await.expect("a certificate");
}

#[tokio::test]
async fn a_controller_whose_clock_is_ahead_is_refused_with_the_skew() {
    let ca = Arc::new(Ca::new());
    let service = IstioCertificateServiceServer::new(Signer(Arc::clone(&ca)));
    let from = SystemTime::now() + Duration::from_secs(14 * 60 + 30);
    let address = serve(ca.server_from(SERVER_NAME, from), service).await;
    let files = Files::new(&ca.pem(), "good");
    let client = CertificateClient::new(files.control(address), "Kubernetes", Caller::Node);
    let error = obtain(&client, &id()).await.expect_err("not valid yet");
    let text = error.to_string();
    assert!(
        text.contains("the certificate begins in 14 minutes: clocks differ"),
        "{text}"
    );
}
