//! The certificate service: a signing request in, a chain out.

pub mod authority;
pub mod authorize;
pub mod issue;
pub mod roots;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mesh::proto::certificate::istio_certificate_service_server::IstioCertificateService;
use mesh::proto::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use self::authority::Authority;
use self::authorize::{Denied, Permit, Rules, authorize};
use self::issue::IssueError;
use crate::connection::CallerConnection;
use crate::connection::admission::{Class, Holder};
use crate::discovery::authenticate::{Authenticate, Caller};
use crate::discovery::refusals::Refusals;
use crate::discovery::snapshot::Snapshot;
use crate::index::changes::Role;
use crate::metrics::Metrics;

/// In the request's metadata: for whom a node proxy asks.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// How long a refusal waits for our watches to see what would make it none.
const PERMIT_WAIT: Duration = Duration::from_secs(1);

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
    /// Who is refused.
    pub refusals: Refusals,
}

// === impl Certificates ===

impl Certificates {
    /// The proxy may have heard of a new pod from another replica, whose watches are ahead of ours by a moment.
    async fn permit(&self, caller: &Caller, asked: Option<&str>) -> Result<Permit, Denied> {
        let mut snapshots = self.snapshots.clone();
        let deadline = Instant::now() + PERMIT_WAIT;
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let denied = match authorize(caller, asked, &self.rules, &snapshot) {
                Err(denied) if denied.may_pass() => denied,
                verdict => return verdict,
            };
            if !matches!(timeout_at(deadline, snapshots.changed()).await, Ok(Ok(()))) {
                return Err(denied);
            }
        }
    }

    /// Whose the connection of an authorised caller is.
    fn holder(&self, caller: &Caller) -> Holder {
        let pod = caller.pod.clone().unwrap_or_default();
        let snapshot = self.snapshots.borrow();
        let node_proxy = snapshot
            .pod(&pod)
            .is_some_and(|placement| placement.role == Role::NodeProxy);
        let class = if node_proxy {
            Class::NodeProxy
        } else {
            Class::Other
        };
        Holder { pod, class }
    }

    async fn sign(
        &self,
        request: Request<IstioCertificateRequest>,
        who: &mut Option<Caller>,
    ) -> Result<Vec<String>, Status> {
        let connection = CallerConnection::of(&request);
        let caller = &*who.insert(Caller::of(&request, &*self.authenticate).await?);
        let request = request.into_inner();
        let asked = impersonated(&request)?;
        let permit = self
            .permit(caller, asked)
            .await
            .map_err(|denied| Status::permission_denied(denied.to_string()))?;
        let _call = match connection {
            Some(connection) => Some(connection.prove(self.holder(caller))?),
            None => None,
        };
        let life = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));
        let signed =
            self.authority
                .sign(&request.csr, &permit, life)
                .map_err(|error| match error {
                    IssueError::Signing(_) | IssueError::IssuerExpired(_) => {
                        Status::internal(error.to_string())
                    }
                    _ => Status::invalid_argument(error.to_string()),
                })?;
        tracing::info!(
            id = %permit.id(),
            pod = caller.pod.as_deref(),
            account = %caller.account,
            node = permit.node(),
            serial = signed.serial,
            not_after = %Timestamp::try_from(signed.not_after).unwrap_or_default(),
            "certificate signed"
        );
        Ok(signed.chain)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = CallerConnection::of(&request).map(|connection| connection.peer());
        let mut caller = None;
        match self.sign(request, &mut caller).await {
            Ok(cert_chain) => {
                self.metrics.issued();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(status) => {
                let refusals = &self.refusals;
                refusals.note("certificates", peer, caller.as_ref(), &status);
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

#[cfg(test)]
mod tests;
