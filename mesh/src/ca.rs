//! Asks the controller for a certificate of one identity: a fresh key, a request that names only the identity, and a checked answer.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hbone::{Identity, InvalidCredentials, SpiffeId};
use prost_types::value::Kind;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tokio::sync::Mutex;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::control::{Control, ControlError, causes};
use crate::proto::certificate::IstioCertificateRequest;
use crate::proto::certificate::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::skew::Skew;

/// How long one answer may take, connection included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The lifetime asked for.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// A chain with its roots; while roots rotate there are several.
const MAX_ANSWER: usize = 1 << 20;

/// Who signs certificates.
pub trait Authority: Send + Sync + 'static {
    /// Has the request signed: the leaf, its intermediates, and last the roots, each as PEM.
    fn sign(
        &self,
        id: &SpiffeId,
        csr: String,
    ) -> impl Future<Output = Result<Vec<String>, CaError>> + Send;
}

/// The controller's certificate service.
#[derive(Debug)]
pub struct CertificateClient {
    control: Control,
    cluster: String,
    caller: Caller,
    /// The connection, with the roots it was made with: kept between requests, made anew when the roots' file changes.
    connection: Mutex<Option<(Vec<u8>, Channel)>>,
}

/// In whose name certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node proxy, on behalf of the pods of its node.
    Node,
    /// A workload, for itself.
    Workload,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The controller was not reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The controller was reached, and did not answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The controller refused.
    #[error("{code}: {message}")]
    Refused {
        /// Of gRPC.
        code: tonic::Code,
        /// The controller's reason.
        message: String,
    },
    /// The answer is no chain with its roots, or not of the key that was asked for.
    #[error("the answer is no certificate: {0}")]
    Invalid(#[from] InvalidCredentials),
    /// A chain without roots.
    #[error("the answer has {0} parts, not a leaf and its roots")]
    NoRoots(usize),
    /// The answer names another identity than was asked for.
    #[error("asked for {asked}, the answer is for {got}")]
    OtherIdentity {
        /// By us.
        asked: SpiffeId,
        /// In the leaf.
        got: SpiffeId,
    },
    /// The answer's life has not begun by our clock, or is over.
    #[error("{0}")]
    Skew(Skew),
    /// No request could be made.
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
}

/// A new key and a certificate for it, whole and of that identity.
pub async fn obtain(authority: &impl Authority, id: &SpiffeId) -> Result<Identity, CaError> {
    let key = KeyPair::generate()?;
    let parts = authority.sign(id, request(id, &key)?).await?;
    let (Some((roots, chain)), true) = (parts.split_last(), parts.len() >= 2) else {
        return Err(CaError::NoRoots(parts.len()));
    };
    let identity = Identity::from_pem(&chain.join("\n"), &key.serialize_pem(), roots)?;
    if identity.id() != id {
        return Err(CaError::OtherIdentity {
            asked: id.clone(),
            got: identity.id().clone(),
        });
    }
    Ok(identity)
}

/// An identity that cannot be used by this clock is as good as none, and says why.
pub(crate) fn usable(identity: Identity, now: SystemTime) -> Result<Identity, CaError> {
    match Skew::of(identity.not_before(), identity.not_after(), now) {
        Some(skew) => Err(CaError::Skew(skew)),
        None => Ok(identity),
    }
}

/// PEM of a request for `id`: an empty subject, and the identity as its only name.
fn request(id: &SpiffeId, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    params.serialize_request(key)?.pem()
}

// === impl CertificateClient ===

impl CertificateClient {
    /// A client that connects at its first request.
    pub fn new(control: Control, cluster: impl Into<String>, caller: Caller) -> Self {
        Self {
            control,
            cluster: cluster.into(),
            caller,
            connection: Mutex::new(None),
        }
    }

    async fn create(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        let message = IstioCertificateRequest {
            csr,
            validity_duration: LIFETIME.as_secs().try_into().unwrap_or(i64::MAX),
            metadata: (self.caller == Caller::Node).then(|| impersonated(id)),
        };
        let mut request = self.control.authorized(message)?;
        if let Ok(cluster) = MetadataValue::try_from(&self.cluster) {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let answer = IstioCertificateServiceClient::new(self.channel().await?)
            .max_decoding_message_size(MAX_ANSWER)
            .create_certificate(request)
            .await;
        match answer {
            Ok(answer) => Ok(answer.into_inner().cert_chain),
            Err(status) => {
                let cause = std::error::Error::source(&status).map(causes);
                if cause.is_some() {
                    // The connection is broken; the next request makes another.
                    *self.connection.lock().await = None;
                }
                let message = cause.unwrap_or_else(|| status.message().to_owned());
                Err(CaError::Refused {
                    code: status.code(),
                    message,
                })
            }
        }
    }

    async fn channel(&self) -> Result<Channel, ControlError> {
        let roots = self.control.read_roots()?;
        let mut connection = self.connection.lock().await;
        if let Some((trusted, channel)) = &*connection
            && *trusted == roots
        {
            return Ok(channel.clone());
        }
        let channel = self.control.connect_trusting(&roots).await?;
        *connection = Some((roots, channel.clone()));
        Ok(channel)
    }
}

impl Authority for CertificateClient {
    async fn sign(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        match tokio::time::timeout(TIMEOUT, self.create(id, csr)).await {
            Ok(answer) => answer,
            Err(_) => {
                *self.connection.lock().await = None;
                Err(CaError::Timeout)
            }
        }
    }
}

impl<A: Authority> Authority for Arc<A> {
    async fn sign(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        A::sign(self, id, csr).await
    }
}

// === impl CaError ===

impl CaError {
    /// A stable name, for metrics and status.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Control(_) | Self::Timeout => "unreachable",
            Self::Refused {
                code: tonic::Code::PermissionDenied,
                ..
            } => "permission_denied",
            Self::Refused {
                code: tonic::Code::Unauthenticated,
                ..
            } => "unauthenticated",
            Self::Refused { .. } => "refused",
            Self::Invalid(_) | Self::NoRoots(_) | Self::OtherIdentity { .. } => "invalid_answer",
            Self::Skew(_) => "clock_skew",
            Self::Request(_) => "request",
        }
    }
}

// === free ===

fn impersonated(id: &SpiffeId) -> prost_types::Struct {
    let value = prost_types::Value {
        kind: Some(Kind::StringValue(id.to_string())),
    };
    prost_types::Struct {
        fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
    }
}
