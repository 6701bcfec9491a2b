//! A throw-away certificate authority that signs whatever it is asked for.

use std::sync::Arc;

use hbone::SpiffeId;
use mesh::ca::{Authority, CaError};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    SanType,
};
use time::OffsetDateTime;

#[derive(Clone)]
pub(crate) struct Ca(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    refused: Mutex<Vec<SpiffeId>>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self(Arc::new(Inner {
            issuer,
            root,
            refused: Mutex::default(),
        }))
    }

    /// From now on `id` is refused.
    pub(crate) fn refuse(&self, id: &SpiffeId) {
        self.0.refused.lock().push(id.clone());
    }

    pub(crate) fn forgive(&self) {
        self.0.refused.lock().clear();
    }
}

impl Authority for Ca {
    async fn sign(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        if self.0.refused.lock().contains(id) {
            let message = "the test says no".to_owned();
            return Err(CaError::Refused {
                code: tonic::Code::PermissionDenied,
                message,
            });
        }
        let csr = CertificateSigningRequestParams::from_pem(&csr)?;
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::minutes(1);
        params.not_after = now + time::Duration::hours(1);
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let leaf = params.signed_by(&csr.public_key, &self.0.issuer)?;
        Ok(vec![leaf.pem(), self.0.root.clone()])
    }
}
