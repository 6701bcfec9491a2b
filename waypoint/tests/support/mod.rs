//! A mesh in one thread: a throw-away CA, a waypoint, backends behind tunnels, and clients that open them.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses a part of this"
)]

use std::cell::RefCell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hbone::{
    Credentials, CredentialsWriter, Destination, Error, Expect, Forwarded, Identity, Opened, Pool,
    PoolLimits, Request, Revocations, Target, TcpDial, TrustDomain, UnknownRevocation, credentials,
};
use mesh::names::{Network, ServiceName};
use mesh::process::telemetry::{self, LogFormat};
use mesh::proto::{waypoint as routes, workload as words};
use mesh::verdict::waypoint::SelfInfo;
use mesh::world::{WorldWriter, world};
use mesh::xds::{ADDRESS_TYPE, ROUTE_TYPE, Update};
use prometheus_client::registry::Registry;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, IsCa,
    Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tracing::subscriber::DefaultGuard;
use waypoint::limits::Limits;
use waypoint::lookups;
use waypoint::metrics::Metrics;
use waypoint::proxy::{Phase, Shared};
use waypoint::serve;

use self::book::{Answer, Book};
use self::log::Log;
pub use self::rules::{backend, rule};

pub mod app;
mod book;
mod log;
mod rules;

/// Longer than any test takes; what hangs fails with this.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where all connections to a waypoint of the tests come from.
pub const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The client's pod, and what its tunnels say is its address.
pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub const CLIENT_ADDR: &str = "10.1.0.7:40000";
pub const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";

/// Each test has a loopback network of its own, because tunnels have one port only.
static NETWORK: AtomicU8 = AtomicU8::new(1);

/// Runs a test as the data plane runs: one thread, one `LocalSet`.
pub fn local<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let limited = async {
        tokio::time::timeout(PATIENCE, test)
            .await
            .expect("the test hangs")
    };
    LocalSet::new().block_on(&runtime, limited)
}

fn identity(
    issuer: &Issuer<'static, KeyPair>,
    root: &str,
    id: &str,
    serial: Option<u64>,
) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("an id"))];
    params.serial_number = serial.map(Into::into);
    let leaf = params.signed_by(&key, issuer).expect("a leaf").pem();
    Identity::from_pem(&leaf, &key.serialize_pem(), root).expect("an identity")
}

/// A mesh with one waypoint.
pub struct Mesh {
    network: [u8; 2],
    issuer: Issuer<'static, KeyPair>,
    root: String,
    writer: RefCell<WorldWriter>,
    /// The waypoint's own certificate.
    own: CredentialsWriter,
    pub phase: watch::Sender<Phase>,
    pub waypoint: JoinHandle<()>,
    pub registry: Registry,
    /// Names that clients were asked for by.
    pub asked: RefCell<mpsc::UnboundedReceiver<String>>,
    /// Called when one is asked for; where there is nothing to call, no answer can come.
    pub answer: Rc<RefCell<Option<Answer>>>,
    log: Log,
    _logging: DefaultGuard,
}

/// A service of the tests' namespace.
pub struct Service<'a> {
    pub name: &'a str,
    pub vip: &'a str,
    pub ports: &'a [(u16, words::AppProtocol)],
    pub bound: bool,
}

/// A pod of the tests' namespace.
pub struct Pod<'a> {
    pub name: &'a str,
    pub account: &'a str,
    pub ip: IpAddr,
    /// Names of services, whose every port is served on 8080.
    pub services: &'a [&'a str],
    pub meshed: bool,
    pub healthy: bool,
    /// Whether it is behind the waypoint itself.
    pub bound: bool,
}

pub fn hostname(name: &str) -> String {
    format!("{name}.shop.svc.cluster.local")
}

impl Mesh {
    pub async fn start() -> Self {
        Self::start_within(Limits::default()).await
    }

    /// With other limits than the usual ones.
    pub async fn start_within(limits: Limits) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root").pem();
        let issuer = Issuer::new(params, key);
        // The process's id keeps test programs apart that run at once.
        let high = u8::try_from(std::process::id() % 200).expect("small") + 20;
        let network = [high, NETWORK.fetch_add(1, Ordering::Relaxed)];

        let log = Log::default();
        let (subscriber, _) =
            telemetry::subscriber(LogFormat::Json, "debug,h2=off", log.clone()).expect("logging");
        let logging = tracing::subscriber::set_default(subscriber);

        let (writer, world) = world();
        let (lookups, asker) = lookups::lookups();
        let (ask, asked) = mpsc::unbounded_channel();
        let answer = Rc::default();
        let book = Book {
            ask,
            answer: Rc::clone(&answer),
        };
        spawn_local(asker.run(book, Network::default()));
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut registry = Registry::default();
        let (own, credentials) = credentials(identity(&issuer, &root, WAYPOINT, None));
        let mut mesh = Self {
            network,
            issuer,
            root,
            own,
            writer: RefCell::new(writer),
            phase,
            waypoint: spawn_local(async {}),
            registry: Registry::default(),
            asked: RefCell::new(asked),
            answer,
            log,
            _logging: logging,
        };
        let shared = Shared {
            me: SelfInfo {
                service: service_name("waypoint"),
                address: None,
                trust_domain: TrustDomain::default(),
            },
            world,
            credentials,
            lookups,
            metrics: Metrics::register(&mut registry),
            phase: phases,
        };
        mesh.registry = registry;
        let listener = TcpListener::bind(mesh.waypoint_addr())
            .await
            .expect("the waypoint's port");
        mesh.waypoint = spawn_local(serve::serve(shared, limits, vec![listener]));
        let client = CLIENT_ADDR.parse::<SocketAddr>().expect("an address").ip();
        mesh.client(&[PEER, client]);
        mesh
    }

    /// An address of this test's own.
    pub fn ip(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, self.network[0], self.network[1], host).into()
    }

    pub fn waypoint_addr(&self) -> SocketAddr {
        (self.ip(1), hbone::PORT).into()
    }

    pub fn credentials(&self, id: &str) -> Credentials {
        credentials(identity(&self.issuer, &self.root, id, None)).1
    }

    /// With a certificate of this serial number.
    pub fn numbered(&self, id: &str, serial: u64) -> Credentials {
        credentials(identity(&self.issuer, &self.root, id, Some(serial))).1
    }

    /// The waypoint hears that the certificate of this serial number is revoked.
    pub fn revoke(&self, serial: u64) {
        let now = OffsetDateTime::now_utc();
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::from_secs(3600),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list");
        let lists = list.pem().expect("a text");
        let lists = Revocations::from_pem(&lists, UnknownRevocation::Allow).expect("lists");
        self.own.replace(self.own.current().informed(Some(lists)));
    }

    /// Tells the proxy something, as the controller would.
    pub fn tell(&self, type_url: &'static str, name: &str, message: &impl Message) {
        let updated = vec![(name.to_owned(), message.encode_to_vec().into())];
        let update = Update {
            type_url,
            updated,
            removed: vec![],
        };
        self.writer
            .borrow_mut()
            .apply(&update)
            .expect("a valid resource");
    }

    pub fn forget(&self, type_url: &'static str, name: &str) {
        let update = Update {
            type_url,
            updated: vec![],
            removed: vec![name.to_owned()],
        };
        self.writer.borrow_mut().apply(&update).expect("a removal");
    }

    pub fn service(&self, service: &Service<'_>) {
        let ip: IpAddr = service.vip.parse().expect("an address");
        let ports = service.ports.iter().map(|(port, protocol)| words::Port {
            service_port: u32::from(*port),
            target_port: 8080,
            app_protocol: (*protocol).into(),
        });
        let message = words::Service {
            name: service.name.into(),
            namespace: "shop".into(),
            hostname: hostname(service.name),
            addresses: vec![words::NetworkAddress {
                address: bytes(ip).to_vec(),
                ..Default::default()
            }],
            ports: ports.collect(),
            waypoint: service.bound.then(waypoint),
            ..Default::default()
        };
        let address = words::Address {
            r#type: Some(words::address::Type::Service(message)),
        };
        self.tell(
            ADDRESS_TYPE,
            &format!("shop/{}", hostname(service.name)),
            &address,
        );
    }

    pub fn pod(&self, pod: &Pod<'_>) {
        let ports = |service: u32| words::Port {
            service_port: service,
            target_port: 8080,
            ..Default::default()
        };
        let message = words::Workload {
            uid: uid(pod.name),
            name: pod.name.into(),
            namespace: "shop".into(),
            addresses: vec![bytes(pod.ip)],
            tunnel_protocol: if pod.meshed {
                words::TunnelProtocol::Hbone
            } else {
                words::TunnelProtocol::None
            }
            .into(),
            service_account: pod.account.into(),
            canonical_name: pod.account.into(),
            workload_name: pod.account.into(),
            cluster_id: "Kubernetes".into(),
            waypoint: pod.bound.then(waypoint),
            services: pod
                .services
                .iter()
                .map(|service| {
                    (
                        format!("shop/{}", hostname(service)),
                        words::PortList {
                            ports: vec![ports(80)],
                        },
                    )
                })
                .collect(),
            status: if pod.healthy {
                words::WorkloadStatus::Healthy
            } else {
                words::WorkloadStatus::Unhealthy
            }
            .into(),
            ..Default::default()
        };
        let address = words::Address {
            r#type: Some(words::address::Type::Workload(message)),
        };
        self.tell(ADDRESS_TYPE, &uid(pod.name), &address);
    }

    /// The client's pod, at these addresses.
    pub fn client(&self, addresses: &[IpAddr]) {
        let client = words::Workload {
            uid: uid("client-1"),
            name: "client-1".into(),
            namespace: "shop".into(),
            addresses: addresses.iter().map(|ip| bytes(*ip)).collect(),
            service_account: "client".into(),
            canonical_name: "client".into(),
            workload_name: "client".into(),
            cluster_id: "Kubernetes".into(),
            ..Default::default()
        };
        let address = words::Address {
            r#type: Some(words::address::Type::Workload(client)),
        };
        self.tell(ADDRESS_TYPE, &uid("client-1"), &address);
    }

    /// A bound service `web` at 10.96.0.1:80 with one healthy pod per name, at `ip(10)`, `ip(11)`, ...
    pub fn web(&self, protocol: words::AppProtocol, pods: &[&str]) {
        self.service(&Service {
            name: "web",
            vip: "10.96.0.1",
            ports: &[(80, protocol)],
            bound: true,
        });
        for (host, name) in (10..).zip(pods) {
            let ip = self.ip(host);
            self.pod(&Pod {
                name,
                account: name,
                ip,
                services: &["web"],
                meshed: true,
                healthy: true,
                bound: false,
            });
        }
    }

    pub fn route(&self, name: &str, rules: Vec<routes::Rule>) {
        let route = routes::Route {
            namespace: "shop".into(),
            name: name.into(),
            created: 1,
            parents: vec![routes::Parent {
                namespace: "shop".into(),
                hostname: hostname("web"),
                port: 0,
            }],
            rules,
        };
        self.tell(ROUTE_TYPE, &format!("shop/{name}"), &route);
    }

    pub fn unroute(&self, name: &str) {
        self.forget(ROUTE_TYPE, &format!("shop/{name}"));
    }

    /// The pod `name` of this account, as [`web`](Self::web) makes them, at `ip(host)`.
    pub fn web_pod(&self, host: u8, name: &str, account: &str) {
        self.pod(&Pod {
            name,
            account,
            ip: self.ip(host),
            services: &["web"],
            meshed: true,
            healthy: true,
            bound: false,
        });
    }

    /// A node proxy's pool in the name of a pod.
    pub fn pool(&self, id: &str) -> Pool<TcpDial> {
        Pool::new(self.credentials(id), TcpDial, PoolLimits::default())
    }

    /// Asks the waypoint for a tunnel in the name of [`CLIENT_ADDR`].
    pub async fn open(&self, pool: &Pool<TcpDial>, target: &str) -> Result<Opened, Error> {
        self.open_as(pool, target, CLIENT_ADDR).await
    }

    /// The same in the name of anybody.
    pub async fn open_as(
        &self,
        pool: &Pool<TcpDial>,
        target: &str,
        client: &str,
    ) -> Result<Opened, Error> {
        let to = Destination {
            addr: self.waypoint_addr(),
            expect: Expect::one(WAYPOINT.parse().expect("an id")),
            workload: Arc::from("waypoint"),
        };
        let mut request = Request::to(target.parse::<Target>().expect("a target"));
        request.forwarded = Some(Forwarded {
            client: client.parse().expect("an address"),
            host: None,
        });
        pool.open(&to, &request).await
    }

    /// Waits until a line with all of these words was logged.
    pub async fn logged(&self, words: &[&str]) -> String {
        loop {
            let more = self.log.0.1.notified();
            if let Some(line) = self
                .lines()
                .iter()
                .find(|line| words.iter().all(|word| line.contains(word)))
            {
                return line.clone();
            }
            if tokio::time::timeout(PATIENCE / 3, more).await.is_err() {
                panic!("not logged: {words:?}\n{}", self.lines().join("\n"));
            }
        }
    }

    pub fn lines(&self) -> Vec<String> {
        let bytes = self.log.0.0.try_lock().expect("one thread");
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("metrics");
        text
    }
}

pub fn service_name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        hostname: hostname(name).into(),
    }
}

pub fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

/// How a binding to the waypoint is told.
fn waypoint() -> words::GatewayAddress {
    words::GatewayAddress {
        destination: Some(words::gateway_address::Destination::Hostname(
            words::NamespacedHostname {
                namespace: "shop".into(),
                hostname: hostname("waypoint"),
            },
        )),
        hbone_mtls_port: 15008,
    }
}

fn bytes(ip: IpAddr) -> bytes::Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

/// What a backend saw of the tunnels to it.
pub type Seen = Rc<RefCell<Vec<Request>>>;
