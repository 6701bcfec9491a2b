//! The certificate service: a signing request in, a chain out.

pub mod authority;
pub mod authorize;
pub mod issue;
pub mod roots;

use std::sync::Arc;
use std::time::Duration;

use mesh::proto::certificate::istio_certificate_service_server::IstioCertificateService;
use mesh::proto::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use self::authority::Authority;
use self::authorize::{Rules, authorize};
use self::issue::IssueError;
use crate::discovery::authenticate::{Authenticate, Caller};
use crate::discovery::snapshot::Snapshot;
use crate::metrics::Metrics;

/// In the request's metadata: for whom a node proxy asks.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The service.
#[derive(Clone)]
pub struct Certificates {
    /// Who is calling.
    pub authenticate: Arc<dyn Authenticate>,
    /// Who may have what.
    pub rules: Arc<Rules>,
    /// Which pods run where.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What signs.
    pub authority: Arc<Authority>,
    /// What is counted.
    pub metrics: Metrics,
}

// === impl Certificates ===

impl Certificates {
    async fn sign(&self, request: Request<IstioCertificateRequest>) -> Result<Vec<String>, Status> {
        let caller = Caller::of(request.metadata(), &*self.authenticate).await?;
        let request = request.into_inner();
        let asked = impersonated(&request)?;
        let snapshot = self.snapshots.borrow().clone();
        let permit = authorize(&caller, asked, &self.rules, &snapshot)
            .map_err(|denied| Status::permission_denied(denied.to_string()))?;
        let life = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));
        let chain =
            self.authority
                .sign(&request.csr, &permit, life)
                .map_err(|error| match error {
                    IssueError::Signing(_) => Status::internal(error.to_string()),
                    _ => Status::invalid_argument(error.to_string()),
                })?;
        tracing::debug!(id = %permit.id(), caller = %caller.account, "signed");
        Ok(chain)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.remote_addr();
        match self.sign(request).await {
            Ok(cert_chain) => {
                self.metrics.issued();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(status) => {
                self.metrics.refused("certificates", status.code());
                tracing::warn!(?peer, code = ?status.code(), reason = status.message(), "certificate refused");
                Err(status)
            }
        }
    }
}

/// For whom a node proxy asks. A member of that name that is no text is not taken for none at all.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<&str>, Status> {
    let Some(value) = request
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get(IMPERSONATED))
    else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(id)) => Ok(Some(id)),
        _ => Err(Status::invalid_argument(format!(
            "{IMPERSONATED} is not a string"
        ))),
    }
}
