//! For tests: a certificate authority, and both ends of handshakes over loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
};
use rustls::client::Resumption;
use rustls::{ClientConfig, ServerConfig};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::handshake::{Proved, dial, serve};
use super::server_config;
use crate::record::{HEAD, Opened, RecordError, Records, TAIL};
use crate::{Error, Expect, Identity, TrustDomain};

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

pub(crate) struct Ca {
    pub(crate) root: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("ours")
    }

    /// Of another name.
    pub(crate) fn other() -> Self {
        Self::named("other")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().pem();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn leaf(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity::from_pem(&chain, &key.serialize_pem(), &self.root).unwrap()
    }

    pub(crate) fn identity(&self, id: &str) -> Identity {
        self.leaf(id, |_| ())
    }

    /// A list that revokes these serial numbers and needs an update in so many seconds.
    pub(crate) fn revoke(&self, serials: &[u64], next_update: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + time::Duration::seconds(next_update),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

pub(crate) fn expect(id: &str) -> Expect {
    Expect::one(id.parse().unwrap())
}

pub(crate) fn config(identity: &Identity) -> Arc<ServerConfig> {
    let trust: Arc<[TrustDomain]> = [TrustDomain::default()].into();
    Arc::new(server_config(identity, &trust).unwrap())
}

/// What tokio-rustls needs to meet [`SERVER`]; it resumes nothing.
pub(crate) fn stock_client(identity: &Identity) -> ClientConfig {
    let mut config = (*identity.client_config(&expect(SERVER)).unwrap()).clone();
    config.resumption = Resumption::disabled();
    config
}

/// Two ends of one loopback connection, and the address of the second.
pub(crate) async fn pair() -> (TcpStream, TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far, addr)
}

/// A handshake of two ends of ours.
pub(crate) async fn meet(
    client: &Identity,
    expect: &Expect,
    server: &Arc<ServerConfig>,
) -> (Result<End, Error>, Result<End, Error>) {
    let (near, far, addr) = pair().await;
    let near_end = async {
        let proved = dial(near, addr, client, expect).await?;
        Ok(End::of(proved).await)
    };
    let far_end = async {
        let proved = serve(far, addr, server.clone()).await?;
        Ok(End::of(proved).await)
    };
    tokio::join!(near_end, far_end)
}

/// Two ends of ours that know one another; nothing is on the way between them.
pub(crate) async fn ends() -> (End, End) {
    let ca = Ca::new();
    let mut server = (*config(&ca.identity(SERVER))).clone();
    server.send_tls13_tickets = 0;
    let client = ca.identity(CLIENT);
    let (near, far) = meet(&client, &expect(SERVER), &Arc::new(server)).await;
    (near.unwrap(), far.unwrap())
}

/// One end after its handshake, moving whole records.
pub(crate) struct End {
    pub(crate) proved: Proved,
    input: Vec<u8>,
}

impl End {
    pub(crate) async fn of(mut proved: Proved) -> Self {
        let unsent = std::mem::take(&mut proved.unsent);
        proved.tcp.write_all(&unsent).await.unwrap();
        let input = std::mem::take(&mut proved.early);
        Self { proved, input }
    }

    pub(crate) fn records(&mut self) -> &mut Records {
        &mut self.proved.records
    }

    pub(crate) fn seal(&mut self, text: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut out = self.records().take_urgent().unwrap_or_default();
        let mut record = vec![0; HEAD + text.len() + TAIL];
        record[HEAD..HEAD + text.len()].copy_from_slice(text);
        self.records().seal(&mut record)?;
        out.extend(record);
        Ok(out)
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.proved.tcp.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn send(&mut self, text: &[u8]) {
        let record = self.seal(text).unwrap();
        self.write(&record).await;
    }

    /// The next data; nothing after close_notify.
    pub(crate) async fn receive(&mut self) -> Result<Option<Vec<u8>>, RecordError> {
        loop {
            match self.proved.records.open(&mut self.input)? {
                Opened::Data { plain, used } => {
                    let text = self.input[plain].to_vec();
                    self.input.drain(..used);
                    return Ok(Some(text));
                }
                Opened::Handled { used } => drop(self.input.drain(..used)),
                Opened::Closed => return Ok(None),
                Opened::More => {
                    let read = self.proved.tcp.read_buf(&mut self.input).await.unwrap();
                    assert!(read > 0, "closed without an alert");
                }
            }
        }
    }

    pub(crate) async fn gets(&mut self, text: &[u8]) {
        assert_eq!(self.receive().await.unwrap().as_deref(), Some(text));
    }
}
