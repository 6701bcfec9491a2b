use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::*;
use crate::discovery::authenticate::AuthenticateError;
use crate::index::changes::{Changes, PodPlacement, Role};
use crate::index::names::Key;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Everybody is the ztunnel of n1.
struct Ztunnel;

#[tonic::async_trait]
impl Authenticate for Ztunnel {
    async fn whose(&self, _token: &str, _peer: IpAddr) -> Result<Caller, AuthenticateError> {
        Ok(Caller {
            account: Key::new("ambit-system", "ztunnel"),
            pod: Some("zt".into()),
            node: Some("n1".into()),
        })
    }
}

fn placed(uid: &str, namespace: &str, account: &str, role: Role) -> Changes {
    let placement = PodPlacement {
        uid: uid.into(),
        pod: Key::new(namespace, uid),
        node: "n1".into(),
        service_account: Some(account.into()),
        captured: role == Role::Application,
        role,
    };
    Changes {
        placements: vec![(uid.into(), Some(placement.into()))],
        ..Changes::default()
    }
}

fn service() -> (watch::Sender<Arc<Snapshot>>, Certificates) {
    let mut snapshot = Snapshot::default();
    snapshot.apply(&placed("zt", "ambit-system", "ztunnel", Role::NodeProxy));
    let (publish, snapshots) = watch::channel(Arc::new(snapshot));
    let metrics = Metrics::default();
    let certificates = Certificates {
        authenticate: Arc::new(Ztunnel),
        rules: Arc::new(Rules {
            trust_domain: hbone::TrustDomain::default(),
            allow_self_issue: false,
        }),
        snapshots,
        authority: Arc::new(Authority::ephemeral("cluster.local").expect("a root")),
        refusals: Refusals::new(metrics.clone()),
        metrics,
    };
    (publish, certificates)
}

fn request(id: &str) -> Request<IstioCertificateRequest> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .expect("a request");
    let value = prost_types::Value {
        kind: Some(Kind::StringValue(id.to_owned())),
    };
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        metadata: Some(prost_types::Struct {
            fields: [(IMPERSONATED.to_owned(), value)].into(),
        }),
        ..Default::default()
    });
    let token = "Bearer any".parse().expect("a header");
    request.metadata_mut().insert("authorization", token);
    request
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_another_replica_knows_already_is_waited_for_a_moment() {
    let (publish, certificates) = service();
    let begun = Instant::now();
    let asked = certificates.create_certificate(request(CART));
    tokio::pin!(asked);
    assert!(futures_util::poll!(&mut asked).is_pending());
    // Something else, and then the pod.
    let mut snapshot = (**publish.borrow()).clone();
    publish.send_replace(Arc::new(snapshot.clone()));
    assert!(futures_util::poll!(&mut asked).is_pending());
    snapshot.apply(&placed("cart", "shop", "cart", Role::Application));
    publish.send_replace(Arc::new(snapshot));
    let signed = asked.await.expect("signed").into_inner();
    assert_eq!(signed.cert_chain.len(), 2);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_is_refused_in_time_and_what_can_never_be_at_once() {
    let (_publish, certificates) = service();
    for (id, waits) in [(CART, PERMIT_WAIT), ("cart", Duration::ZERO)] {
        let begun = Instant::now();
        let refused = certificates.create_certificate(request(id)).await;
        let status = refused.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
        assert_eq!(begun.elapsed().as_secs(), waits.as_secs(), "{id}");
    }
}

/// The lines at INFO that the thread which made it wrote, by their fields.
#[derive(Clone)]
struct Log {
    of: ThreadId,
    lines: Arc<Mutex<Vec<HashMap<&'static str, String>>>>,
}

struct Fields(HashMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::INFO && metadata.target() == "controller::ca"
    }

    fn event(&self, event: &Event<'_>) {
        if thread::current().id() != self.of {
            return;
        }
        let mut fields = Fields(HashMap::new());
        event.record(&mut fields);
        self.lines.lock().push(fields.0);
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_certificate_is_a_line_that_says_whose_and_which() {
    let log = Log {
        of: thread::current().id(),
        lines: Arc::default(),
    };
    // For all threads: one that comes by without a subscriber may have it remembered that nobody listens.
    tracing::subscriber::set_global_default(log.clone()).expect("the only one");
    let (publish, certificates) = service();
    let mut snapshot = (**publish.borrow()).clone();
    snapshot.apply(&placed("cart", "shop", "cart", Role::Application));
    publish.send_replace(Arc::new(snapshot));

    let refused = certificates.create_certificate(request("cart")).await;
    refused.expect_err("no identity");
    assert!(log.lines.lock().is_empty(), "nothing was signed");

    let signed = certificates.create_certificate(request(CART)).await;
    let chain = signed.expect("signed").into_inner().cert_chain;
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).expect("PEM");
    let leaf = leaf.parse_x509().expect("a certificate");
    let lines = log.lines.lock();
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    let end = Timestamp::from_second(leaf.validity().not_after.timestamp()).expect("a time");
    let serial: String = leaf
        .raw_serial()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    for (field, expected) in [
        ("message", "certificate signed"),
        ("id", CART),
        ("pod", "zt"),
        ("account", "ambit-system/ztunnel"),
        ("node", "n1"),
        ("serial", &serial),
    ] {
        assert_eq!(
            line.get(field).map(String::as_str),
            Some(expected),
            "{field}"
        );
    }
    let said: Timestamp = line["not_after"].parse().expect("a time");
    assert_eq!(said.as_second(), end.as_second());
}
