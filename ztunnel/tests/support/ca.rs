//! A throw-away certificate authority that signs whatever it is asked for.

use std::sync::Arc;

use hbone::SpiffeId;
use mesh::ca::{Authority, CaError};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
    SanType,
};
use time::{Duration, OffsetDateTime};

#[derive(Clone)]
pub(crate) struct Ca(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    refused: Mutex<Vec<SpiffeId>>,
    /// How long what is signed from now on is valid.
    life: Mutex<Duration>,
    /// Whose certificates were signed: their serial numbers are their places, from one.
    signed: Mutex<Vec<SpiffeId>>,
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
            life: Mutex::new(Duration::HOUR),
            signed: Mutex::default(),
        }))
    }

    /// A list that revokes all certificates that `id` has had so far.
    pub(crate) fn revoke(&self, id: &SpiffeId) -> String {
        let now = OffsetDateTime::now_utc();
        let signed = self.0.signed.lock();
        let of_id = signed
            .iter()
            .zip(1_u64..)
            .filter(|(signed, _)| *signed == id);
        let revoked = of_id.map(|(_, serial)| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::HOUR,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0.issuer).unwrap().pem().unwrap()
    }

    /// From now on certificates are valid for so many seconds.
    pub(crate) fn sign_for(&self, seconds: i64) {
        *self.0.life.lock() = Duration::seconds(seconds);
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
        params.not_before = now - Duration::minutes(1);
        params.not_after = now + *self.0.life.lock();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.serial_number = Some({
            let mut signed = self.0.signed.lock();
            signed.push(id.clone());
            (signed.len() as u64).into()
        });
        let leaf = params.signed_by(&csr.public_key, &self.0.issuer)?;
        Ok(vec![leaf.pem(), self.0.root.clone()])
    }
}
